"""The node's server at the death of its engine; all else of it is tested in runs, since it needs stages."""

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.exceptions import EngineDeadError

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.vllm.server import Event, NodeServer
from tests.inputs.http_table import http_rows


async def application(scope: Any, _receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Answers as vLLM's does."""
    if scope["path"] == "/fails":
        raise KeyError("nobody thought of this")
    status = 500 if scope["path"] == "/dies" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


class Server(NodeServer):
    """With an engine of which one only sees whether it lives."""

    async def _serve(self) -> None:
        self._app: Any = application
        self._llm: Any = SimpleNamespace(errored=False, dead_error=EngineDeadError())
        self._ready.set()
        await self._closing.wait()

    def die(self) -> None:
        self._llm.errored = True


def events(server: NodeServer, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        found += server.poll()
        time.sleep(0.001)
    return found


def test_what_is_answered_by_a_dead_engine_is_no_answer(tmp_path: Path) -> None:
    server = Server(Recipe(), tmp_path, time.monotonic, lambda: None)
    server.call(0, "POST", "/lives", [], b"", 0)
    part, done = events(server, 2)
    assert (part.task, part.status, done.task) == (0, 200, 0)
    server.die()
    server.call(1, "POST", "/dies", [], b"", 0)
    with pytest.raises(RuntimeError, match="vLLM's engine has failed"):
        events(server, 1)
    server.close()


def test_what_vllm_fails_in_is_told_as_its_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = http_rows()["an exception in vLLM's server"]
    server = Server(Recipe(), tmp_path, time.monotonic, lambda: None)
    for task, (path, statuses) in enumerate((("/fails", row.statuses), ("/lives", (200,)))):
        server.call(task, "POST", path, [], b"", 0)
        part, done = events(server, 2)
        assert ((part.status,), part.more, done.task) == (statuses, False, task)
        assert path == "/lives" or row.is_in(json.loads(part.body)["error"]["message"])
    server.close()
    assert "vLLM failed in task 0, POST /fails" in capsys.readouterr().out


class Engine:
    """Generates what it is asked, and keeps with which settings. `errored`: as vLLM's."""

    errored = False

    def __init__(self) -> None:
        self.asked: list[tuple[int | None, int | None]] = []

    async def generate(self, _: Any, sampling: Any, *__: Any, **___: Any) -> AsyncIterator[Any]:
        self.asked.append((sampling.logprobs, sampling.prompt_logprobs))
        yield SimpleNamespace(prompt_token_ids=[1], prompt_logprobs=[None])


def test_the_first_request_that_generates_asks_for_log_probabilities(tmp_path: Path) -> None:
    """It is of the warm-up: nobody waits while vLLM compiles what they need."""
    server = Server(Recipe(), tmp_path, time.monotonic, lambda: None)
    engine: Any = Engine()
    server.call(0, "POST", "/lives", [], b"", 0)
    events(server, 2)
    server._llm = engine
    for task, output in ((1, 0), (2, 4), (3, 4), (4, 0)):
        server.generate(task, [1], output, 0.0, 0, 0.0)
        events(server, 1)
    assert engine.asked == [(None, 0), (1, None), (None, None), (None, 0)]
    server.close()
