"""An endpoint on a real socket in this process; the scheduler's loop is a thread that answers what a prompt says."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from lemix_hpc.config.serving_section import Http
from lemix_hpc.records.journal import Accepted, Answered, Record
from lemix_hpc.runtime.http.answers import Answers
from lemix_hpc.runtime.http.app import AppContext, make_app
from lemix_hpc.runtime.http.call import Call, ResponsePart
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.http.keys import KeyRing
from lemix_hpc.runtime.http.metrics import Figures
from lemix_hpc.runtime.http.request_guard import Guard
from lemix_hpc.runtime.http.server import HttpServer, bind, url
from lemix_hpc.workload.tokenizer import ByteTokenizer

KEY = "a-long-secret"
CONTEXT = 64

JSON = [("content-type", "application/json"), ("x-lemix-weight-versions", "1-2"), ("connection", "close")]
EVENTS = [("content-type", "text/event-stream; charset=utf-8")]


class Run:
    """Answers in order of arrival, each with the number of its task; `held` ones when `go` is set.

    `keys`: the content of the file with them; `more`: other fields of the application's context.
    """

    def __init__(
        self,
        given: list[Answered],
        waiting: list[Accepted],
        keys: str = KEY,
        body_s: float = 30.0,
        accepts: bool = True,
        **more: Any,
    ) -> None:
        self.calls: list[Call] = []
        self.promised: list[Record] = []
        self.tasks = 0
        self.go = threading.Event()
        self.held = threading.Event()
        self._over = threading.Event()
        self._woken = threading.Event()
        self._listener = bind(Http(port=0))
        self._answers = Answers(given, waiting)
        self._answers.promise = self.promised.append
        self.server = HttpServer(self._listener, self._woken.set)
        self._directory = tempfile.TemporaryDirectory()
        self.keys = key_file(Path(self._directory.name), keys)
        self.ring = KeyRing(self.keys)
        fields: dict[str, Any] = {
            "server": self.server,
            "guard": Guard(self.ring, 1.0, body_s=body_s),
            "nodes": 1,
            "tokenizer": ByteTokenizer(),
            "context": CONTEXT,
            "now": lambda: 7.5,
            "figures": Figures,
            "answers": self._answers,
            "samples": None,
        }
        self.server.open(make_app(AppContext(**(fields | more))))
        if accepts:
            self.server.accept()
        self._thread = threading.Thread(target=self._answer_all)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self.go.set()
        self._woken.set()
        self._thread.join()
        self.server.close()
        self._listener.close()
        self._directory.cleanup()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port

    def client(self, key: str | None = KEY) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=url(self._listener), headers=headers, timeout=30)

    @property
    def answered(self) -> list[Answered]:
        return [record for record in self.promised if isinstance(record, Answered)]

    def _answer_all(self) -> None:
        while not self._over.is_set():
            self._woken.wait()
            self._woken.clear()
            for call in self.server.poll():
                if not call.gone:
                    self._answer(call)

    def _answer(self, call: Call) -> None:
        call.number = self.tasks
        self.tasks += 1
        self.calls.append(call)
        if call.lengths is None:
            call.part(ResponsePart(200, JSON, b"{}", False))
            return
        body = json.loads(call.api.body)
        prompt, long = body.get("prompt"), body.get("max_tokens", 1)
        if prompt == "held":
            self.held.set()
            self.go.wait()
        if prompt == "lost":
            call.fail(ApiError(502, "no answer", "server_error"))
        elif prompt == "broken":
            call.part(ResponsePart(500, JSON, b"{}", False))
        elif body.get("stream"):
            for number in range(3):
                event = b'data: {"task": %d, "piece": %d}\n\n' % (call.number, number)
                call.part(ResponsePart(200 * (not number), EVENTS if not number else [], event, True))
            call.part(ResponsePart(0, [], b"data: [DONE]\n\n", False))
        else:
            status = 400 if prompt == "bad" else 200
            text = "é" * long if isinstance(long, int) and long < 1 << 21 else ""
            call.part(ResponsePart(status, JSON, json.dumps({"task": call.number, "text": text}).encode(), False))


@contextlib.contextmanager
def running(given: list[Answered] | None = None, waiting: list[Accepted] | None = None, **more: Any) -> Iterator[Run]:
    run = Run(given or [], waiting or [], **more)
    try:
        yield run
    finally:
        run.close()


def key_file(directory: Path, content: str) -> Path:
    """A file of keys for its owner alone."""
    path = directory / "keys"
    path.write_text(content)
    path.chmod(0o600)
    return path


def post(client: httpx.Client, id: str | None = None, prompt: str = "hi", **more: Any) -> httpx.Response:
    headers = {} if id is None else {"x-request-id": id}
    return client.post("/v1/completions", json={"prompt": prompt} | more, headers=headers)
