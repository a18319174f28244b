"""The node's server at the death of its engine; all else of it is tested in runs, since it needs stages."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.exceptions import EngineDeadError

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.vllm.server import Event, NodeServer


async def application(scope: Any, _receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Answers as vLLM's does."""
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
