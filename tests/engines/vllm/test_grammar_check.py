"""Grammars that vLLM's compilers fail in, or never come to an end with, are refused; the process that tries them lives on."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from lemix_hpc.engines.vllm import grammar_process
from lemix_hpc.engines.vllm.args import server_args
from lemix_hpc.engines.vllm.grammar_check import GrammarCheck
from tests.engines.vllm.test_args import recipe


def params(**kind: Any) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(**kind))


async def verdict(check: GrammarCheck, **kind: Any) -> str:
    """Why it is refused, or ""."""
    try:
        await check.check(params(**kind))
    except VLLMValidationError as error:
        return str(error)
    return ""


# By the process's own rules, with a compiler of this test


def toy_judge(given: SamplingParams) -> str:
    assert given.structured_outputs is not None
    match given.structured_outputs.regex:
        case "endless":
            while True:
                pass
        case "huge":
            return str(len(bytearray(2 << 30)))
        case "crash":
            faulthandler.disable()
            ctypes.string_at(0)
        case "bad":
            return "bad grammar"
    return ""


class Started:
    """Starts the process as a fork of this one, and remembers it."""

    def __init__(self) -> None:
        self.processes: list[Any] = []

    def __call__(self, _: Any) -> tuple[Connection, Any]:
        context = multiprocessing.get_context("fork")
        door, inside = context.Pipe()
        process = context.Process(target=_answer, args=(inside, door))
        process.start()
        inside.close()
        self.processes.append(process)
        return door, process


def _answer(inside: Connection, door: Connection) -> None:
    door.close()
    grammar_process.answer_all(inside, toy_judge)


def test_what_takes_too_long_too_much_or_crashes_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_process, "CPU_S", 1)
    started = Started()

    async def ask() -> list[str]:
        check = GrammarCheck(None, started)
        kinds = ["endless", "huge", "crash", "bad", "good", "bad"]
        found = await asyncio.gather(*(verdict(check, regex=kind) for kind in kinds))
        check.close()
        return found

    endless, huge, crash, *others = asyncio.run(ask())
    assert endless == "The grammar takes more than 1 s to compile."
    assert "1024 MiB, or breaks the compiler" in huge and "breaks the compiler" in crash
    assert others == ["bad grammar", "", "bad grammar"]
    (process,) = started.processes
    process.join(30)
    assert process.exitcode == 0


def test_what_takes_too_long_by_the_clock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_process, "WALL_S", 0.0)
    monkeypatch.setattr(f"{__name__}.toy_judge", lambda _: signal.pause())

    async def ask() -> str:
        check = GrammarCheck(None, Started())
        found = await verdict(check, regex="waits")
        check.close()
        return found

    assert "to compile" in asyncio.run(ask())


def test_a_process_that_ends_fails_those_who_wait_and_another_is_started() -> None:
    started = Started()

    async def ask() -> list[str]:
        check = GrammarCheck(None, started)
        assert await verdict(check, regex="good") == ""
        waits = asyncio.create_task(verdict(check, regex="endless"))
        while not check._asked:
            await asyncio.sleep(0)
        os.kill(started.processes[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="has ended"):
            await waits
        again = [await verdict(check, regex="good"), await verdict(check, regex="bad"), await verdict(check, regex="x")]
        check.close()
        return again

    assert asyncio.run(ask()) == ["", "bad grammar", ""]
    assert len(started.processes) == 2
    for process in started.processes:
        process.join(30)


# vLLM's own compilers

DEEP: dict[str, Any] = {}
for _ in range(30):
    DEEP = {"type": "object", "properties": {"a": DEEP}}

REFUSED: dict[str, dict[str, Any]] = {
    "a schema that is itself": {"json": {"$ref": "#"}},
    "two schemas that are each other": {
        "json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    },
    "a reference to nothing": {"json": {"$ref": "#/$defs/none"}},
    "text that is no schema": {"json": "{"},
    "a schema of an unknown type": {"json": {"type": "nonsense"}},
    "an unfinished group": {"regex": "(a"},
    "a regular expression with a reference back": {"regex": r"(a)\1"},
    "a grammar without a root": {"grammar": 'other ::= "a"'},
    "a grammar that names a rule which is not there": {"grammar": "root ::= other"},
    "text that is no grammar": {"grammar": "?? ::="},
    "an empty list of choices": {"choice": []},
    "a structural tag without tags": {"structural_tag": "{}"},
    "a structural tag that is no JSON": {"structural_tag": "{"},
    "what xgrammar has not, which another compiler would take": {"json": {"type": "integer", "multipleOf": 3}},
}
BOMBS: dict[str, dict[str, Any]] = {
    "repetitions of repetitions": {"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"},
    "exponents of states": {"regex": "(a|b)*a" + "(a|b)" * 200},
    "10^9 items": {"json": {"type": "array", "items": {"type": "string"}, "minItems": 10**9}},
    "10^8 characters": {"json": {"type": "string", "maxLength": 10**8}},
    "10,000 alternatives": {"json": {"anyOf": [{"type": "object", "properties": {f"p{n}": {}}} for n in range(1500)]}},
    "rules that double": {
        "grammar": "".join(f"r{n} ::= r{n + 1} r{n + 1}\n" for n in range(40)).replace("r0", "root") + 'r40 ::= "a"'
    },
    "a rule that begins with itself": {"grammar": 'root ::= root "a" | root root | ""'},
    "definitions that multiply": {
        "json": {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{n}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(9)}
            | {"d9": {"type": "string"}},
        }
    },
}
TAKEN: dict[str, dict[str, Any]] = {
    "an object": {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    "a tree": {"json": {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}},
    "30 levels": {"json": DEEP},
    "any object": {"json_object": True},
    "a reference to the net, which is not followed": {"json": {"$ref": "https://example.com/schema.json"}},
    "a regular expression": {"regex": r"\d{3}-\d{4}"},
    "choices": {"choice": ["yes", "no"]},
    "a grammar": {"grammar": 'root ::= "a" root | ""'},
    "tags": {
        "structural_tag": json.dumps(
            {"structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}], "triggers": ["<f"]}
        )
    },
}


def test_grammars_are_refused_as_vllm_cannot_compile_them(tmp_path: Path) -> None:
    """All with one process: that takes seconds to start."""
    config = AsyncEngineArgs.from_cli_args(server_args(recipe(), tmp_path)).create_engine_config()
    every = REFUSED | BOMBS | TAKEN

    async def ask() -> dict[str, str]:
        check = GrammarCheck(config)
        found = await asyncio.gather(*(verdict(check, **kind) for kind in every.values()))
        check.close()
        assert check._process is not None
        check._process.wait(30)
        return dict(zip(every, found, strict=True))

    found = asyncio.run(ask())
    print({name: why[:70] for name, why in found.items() if name in BOMBS})
    assert [name for name in REFUSED if not found[name]] == []
    assert {name: why for name, why in found.items() if name in TAKEN and why} == {}
