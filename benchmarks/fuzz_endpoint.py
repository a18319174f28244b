"""Malformed requests beside ordinary ones: whether a run lives on and answers.

    python benchmarks/fuzz_endpoint.py [--minutes 30] [--requests 10000] [--seed 0] [--url URL --key-file FILE] [--json]

Starts `recipes/vllm-http.yaml` on this machine and asks its endpoint, until the time is over or the requests are sent. Half of
the malformed ones are calls with values that nobody expects, on top or inside, the others broken JSON, odd samples, headers and
paths, and bytes that are no HTTP. Each has a time limit of 30 s. With `--url` it asks a run that is there. Exit code 1 if the
run dies, an ordinary request fails, or a malformed one gets no answer.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
START_S = 300.0
LIMIT_S = 30.0
NUMBERS: list[Any] = [
    0,
    -1,
    1,
    2**31,
    -(2**31) - 1,
    2**40,
    2**63 - 1,
    -(2**63),
    2**64,
    10**30,
    0.5,
    -0.5,
    1e308,
    1e-308,
    10**9,
]
TEXTS: list[Any] = [
    "",
    "a",
    "\x00",
    "é" * 40,
    "\U0001f600",
    "x" * 5000,
    "%s%n",
    "../../etc/passwd",
    "<|endoftext|>",
    " " * 3000,
]
OBJECTS: list[Any] = [
    None,
    True,
    [],
    {},
    [[]],
    [None],
    {"a": {"b": [1]}},
    ["a"] * 200,
    [1, "a", None],
    [[1, 2], [3]],
    {"": ""},
]
FIELDS = [
    *("prompt", "messages", "model", "suffix", "echo", "user", "priority", "cache_salt", "request_id", "service_tier"),
    *("max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "stream", "stream_options", "ignore_eos"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("stop", "stop_token_ids", "bad_words", "logit_bias", "allowed_token_ids", "use_beam_search", "length_penalty"),
    *(
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "return_token_ids",
        "skip_special_tokens",
        "truncate_prompt_tokens",
    ),
    *("structured_outputs", "response_format", "tools", "tool_choice", "chat_template", "chat_template_kwargs"),
    *("add_generation_prompt", "continue_final_message", "add_special_tokens", "prompt_embeds", "kv_transfer_params"),
    *(
        "vllm_xargs",
        "mm_processor_kwargs",
        "documents",
        "reasoning_effort",
        "thinking_token_budget",
        "include_reasoning",
    ),
]
CONSTRAINTS: list[dict[str, Any]] = [
    {"structured_outputs": {"regex": "((a{1,300}){1,300}){1,300}"}},
    {"structured_outputs": {"regex": "("}},
    {"structured_outputs": {"grammar": 'root ::= root root | "a"'}},
    {"structured_outputs": {"json": {"type": "array", "minItems": 10**9, "items": {"$ref": "#"}}}},
    {"structured_outputs": {"choice": []}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "nonsense"}},
]
FUNCTION = {
    "name": "add",
    "description": "x",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "1 + 1 ="}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": FUNCTION}]},
    {"role": "tool", "tool_call_id": "a", "content": "2"},
    {"role": "user", "content": "And?", "name": "eve"},
]
WHOLE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": TALK[-1:], "tools": [{"type": "function", "function": FUNCTION}]}),
    ("/v1/chat/completions", {"messages": TALK, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"messages": TALK[-1:], "logprobs": True, "top_logprobs": 2, "stop": ["a"]}),
    (
        "/v1/chat/completions",
        {"messages": TALK[-1:], "chat_template_kwargs": {"a": 1}, "mm_processor_kwargs": {"a": 1}},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": TALK[-1:],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}},
        },
    ),
    ("/v1/completions", {"prompt": ["a", "b"], "stop": ["a"], "logit_bias": {"5": 1.0}, "stop_token_ids": [7]}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"prompt": "a", "structured_outputs": {"choice": ["yes", "no"]}, "bad_words": ["a"]}),
    ("/v1/completions", {"prompt": "a", "structured_outputs": {"json": {"type": "integer"}}, "vllm_xargs": {"a": 1}}),
    ("/v1/completions", {"prompt": "a", "structured_outputs": {"structural_tag": "x"}, "kv_transfer_params": {"a": 1}}),
]
"""Calls that have something inside."""
GENERATING = ("/v1/completions", "/v1/chat/completions")
PATHS = (
    *GENERATING,
    "/v1/training/samples",
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/health",
    "/v1/%63ompletions",
    "//",
    "/docs",
)


@dataclass(frozen=True)
class Malformed:
    """A request; `raw`: bytes for a socket instead."""

    method: str = "POST"
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None


def malformed(chance: random.Random, model: str) -> Malformed:
    """The next one."""
    kinds: list[Callable[[random.Random, str], Malformed]] = [
        odd_call,
        odd_call,
        odd_inside,
        broken_json,
        odd_request,
        no_http,
    ]
    return chance.choice(kinds)(chance, model)


def value(chance: random.Random) -> Any:
    return chance.choice(chance.choice([NUMBERS, TEXTS, OBJECTS]))


def call(chance: random.Random, path: str, model: str) -> dict[str, Any]:
    """An ordinary one."""
    asked: dict[str, Any] = {"model": model, "max_tokens": chance.choice([1, 2, 4])}
    if path == GENERATING[0]:
        return asked | {"prompt": "1 + 1 ="}
    return asked | {"messages": [{"role": "user", "content": "1 + 1 ="}]}


def odd_call(chance: random.Random, model: str) -> Malformed:
    """A call with values that nobody expects."""
    path = chance.choice(GENERATING)
    content = call(chance, path, model)
    if chance.random() < 0.2:
        content |= chance.choice(CONSTRAINTS)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        content[chance.choice(FIELDS)] = value(chance)
    return Malformed(path=path, body=json.dumps(content).encode())


def odd_inside(chance: random.Random, model: str) -> Malformed:
    """A call with such values somewhere in what it is made of."""
    path, whole = chance.choice(WHOLE)
    content = {"model": model, "max_tokens": 2} | copy.deepcopy(whole)
    for _ in range(chance.choice([1, 1, 2])):
        places = [place for key in whole for place in inside(content, key)]
        holder, key = chance.choice(places)
        holder[key] = copy.deepcopy(value(chance))
    return Malformed(path=path, body=json.dumps(content).encode())


def inside(holder: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    """Every place from there on down."""
    yield holder, key
    held = holder[key]
    for inner in held if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ():
        yield from inside(held, inner)


def broken_json(chance: random.Random, model: str) -> Malformed:
    path = chance.choice(PATHS[:5])
    body = bytearray(json.dumps(call(chance, path, model)).encode())
    deep = chance.choice([10, 64, 400, 1000, 100_000])
    kind = chance.randrange(5)
    if kind == 0:
        body = body[: chance.randrange(len(body))]
    elif kind == 1:
        for _ in range(chance.randrange(1, 8)):
            body[chance.randrange(len(body))] = chance.randrange(256)
    elif kind == 2:
        body = bytearray(chance.choice([b"[", b'{"a":']) * deep + b"1")
    elif kind == 3:
        body = bytearray(b'{"x":' + b"[" * deep + b"]" * deep + b"," + bytes(body[1:]))
    else:
        body = bytearray(chance.randbytes(chance.randrange(300)))
    return Malformed(path=path, body=bytes(body))


def odd_request(chance: random.Random, model: str) -> Malformed:
    """Odd methods, paths, headers and samples."""
    path = chance.choice(PATHS)
    headers = {
        chance.choice(
            ["x-vllm-priority", "x-request-id", "content-type", "accept", "traceparent", "expect", "te"]
        ): str(chance.choice([*NUMBERS, "text/plain", "100-continue", "lemix-0", "x" * 3000]))
    }
    samples = [
        b'{"text": 1}',
        b'{"text": "a"}\n{',
        b'{"prompt": "a"}',
        b"{}\n" * 200,
        b'{"text": "%s"}' % (b"x" * 9000),
    ]
    body = chance.choice(samples) if "samples" in path else json.dumps(call(chance, path, model)).encode()
    return Malformed(chance.choice(["POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "BREW"]), path, headers, body)


def no_http(chance: random.Random, model: str) -> Malformed:  # noqa: ARG001
    return Malformed(
        raw=chance.choice(
            [
                chance.randbytes(chance.randrange(1, 200)) + b"\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
                b"GET http://elsewhere/health HTTP/1.1\r\nhost: x\r\n\r\n",
                b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 20,
            ]
        )
    )


@dataclass
class Tally:
    """What became of all requests. `unanswered`: malformed ones without an answer in time; `failed`: ordinary ones.

    `broken`: how many were answered with 500 or more, and the shortest of them, by the error's words and the call's keys.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    slowest_s: float = 0.0
    ordinary: int = 0
    unanswered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def send(client: httpx.Client, request: Malformed, tally: Tally) -> None:
    begin = time.monotonic()
    try:
        if request.raw is not None:
            tally.statuses[send_raw(client, request.raw)] += 1
        else:
            answer = client.request(request.method, request.path, headers=request.headers, content=request.body)
            tally.statuses[answer.status_code] += 1
            if answer.status_code >= 500:
                note_broken(tally, request, answer)
    except (httpx.HTTPError, OSError) as error:
        tally.unanswered.append(f"{request!r:.300}: {error!r}")
    tally.slowest_s = max(tally.slowest_s, time.monotonic() - begin)


def note_broken(tally: Tally, request: Malformed, answer: httpx.Response) -> None:
    try:
        keys = sorted(json.loads(request.body))
    except (ValueError, TypeError):
        keys = []
    kind, sent = f"{answer.status_code} {answer.text:.200} {' '.join(keys)}", f"{request.path} {request.body!r}"
    count, shortest = tally.broken.get(kind, (0, sent))
    tally.broken[kind] = (count + 1, min(shortest, sent, key=len))


def send_raw(client: httpx.Client, raw: bytes) -> int:
    """The status of the first answer, or 0 if the server just hung up."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=LIMIT_S) as link:
        try:
            link.sendall(raw)
            link.shutdown(socket.SHUT_WR)
            first = link.recv(64).split()
        except ConnectionError:
            return 0
    return int(first[1]) if len(first) > 1 else 0


def ask_ordinarily(client: httpx.Client, model: str, over: threading.Event, tally: Tally) -> None:
    """Four times a second."""
    chance = random.Random(1)
    while not over.wait(0.25):
        path = chance.choice(GENERATING)
        try:
            answer = client.post(path, json=call(chance, path, model))
        except httpx.HTTPError as error:
            tally.failed.append(repr(error))
            continue
        tally.ordinary += 1
        if answer.status_code != 200:
            tally.failed.append(f"{answer.status_code} {answer.text:.300}")


def fuzz(client: httpx.Client, model: str, *, requests: int, seconds: float, seed: int) -> Tally:
    """Send so many malformed requests, or for so long, from four threads, beside ordinary ones."""
    tally, over, end = Tally(), threading.Event(), time.monotonic() + seconds
    ordinary = threading.Thread(target=ask_ordinarily, args=(client, model, over, tally))

    def work(number: int) -> None:
        chance = random.Random(seed * 4 + number)
        for _ in range(requests // 4):
            if time.monotonic() >= end:
                return
            send(client, malformed(chance, model), tally)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    ordinary.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    ordinary.join()
    return tally


@contextlib.contextmanager
def run() -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """The recipe's run: its address, the file with its key, and its process."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        command = [str(Path(sys.executable).with_name("lemix")), "run", str(ROOT / "recipes" / "vllm-http.yaml")]
        command += ["--cluster", "local", "--set", "serving.http.port=0", "--out", str(out)]
        with Path(directory, "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            address = None
            while address is None:
                if time.monotonic() > end or process.poll() is not None:
                    raise RuntimeError(f"the run did not start: {Path(directory, 'log').read_text()}")
                time.sleep(0.5)
                with contextlib.suppress(OSError, json.JSONDecodeError):
                    progress = json.loads((out / "progress.json").read_bytes())
                    address = progress["address"] if progress["state"] == "running" else None
            yield address, out / "api_key", process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="of a run's endpoint, such as http://127.0.0.1:8000")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--model", default="vllm-http")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    started = contextlib.nullcontext((given.url, given.key_file, None)) if given.url else run()
    with started as (url, key_file, process):
        headers = {"authorization": f"Bearer {key_file.read_text().strip()}", "content-type": "application/json"}
        with httpx.Client(base_url=url, headers=headers, timeout=LIMIT_S) as client:
            tally = fuzz(client, given.model, requests=given.requests, seconds=60 * given.minutes, seed=given.seed)
            alive = (process is None or process.poll() is None) and client.get("/health").status_code == 200
    sent = sum(tally.statuses.values()) + len(tally.unanswered)
    result = {
        "malformed": sent,
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "unanswered": tally.unanswered,
        "broken": tally.broken,
        "slowest_s": tally.slowest_s,
        "ordinary": tally.ordinary,
        "failed": tally.failed,
        "alive": alive,
    }
    if given.json:
        print(json.dumps(result))
    else:
        print(f"{sent} malformed requests, answers by status (0: hung up): {result['statuses']}")
        for kind, (count, shortest) in sorted(tally.broken.items(), key=lambda item: -item[1][0]):
            print(f"{count} x {kind}, such as {shortest:.300}")
        print(f"slowest answer {tally.slowest_s:.1f} s, {len(tally.unanswered)} without one")
        ordinary = f"{tally.ordinary} ordinary requests, {len(tally.failed)} failed"
        print(f"{ordinary}; the run {'lives' if alive else 'is dead'}")
        print(*tally.unanswered[:5], *tally.failed[:5], sep="\n")
    return 0 if alive and not tally.failed and not tally.unanswered else 1


if __name__ == "__main__":
    sys.exit(main())
