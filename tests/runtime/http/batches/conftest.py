"""The endpoint's server with its files and batches, and a scheduler that pretends: OpenAI's client talks to it."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from lemix_hpc.config.serving_section import Http
from lemix_hpc.records.attempts import Attempt, claim
from lemix_hpc.runtime.http.answers import Answers
from lemix_hpc.runtime.http.app import AppContext, make_app
from lemix_hpc.runtime.http.batches.batch_api import BatchApi
from lemix_hpc.runtime.http.batches.batch_runner import BatchRunner
from lemix_hpc.runtime.http.batches.batch_store import BatchStore
from lemix_hpc.runtime.http.batches.file_store import FileStore
from lemix_hpc.runtime.http.call import Call, ResponsePart
from lemix_hpc.runtime.http.errors import ApiError, cut_short, starting
from lemix_hpc.runtime.http.keys import KeyRing
from lemix_hpc.runtime.http.metrics import Figures
from lemix_hpc.runtime.http.request_guard import Guard
from lemix_hpc.runtime.http.server import HttpServer, bind, url
from lemix_hpc.workload.tokenizer import ByteTokenizer
from tests.runtime.http.in_process import key_file

KEY, OTHER = "open sesame", "open too"
KEYS = f"""
keys:
  - {{name: ann, key: {KEY}, rights: [serve]}}
  - {{name: bob, key: {OTHER}}}
  - {{name: eve, key: trains, rights: [train]}}
"""


class Desk:
    """A server in an attempt of a run. Calls with `never` in their body wait, those with `bad` are refused, those with `die`
    get no answer, and those with `later` are told once to come again; `asked` are the bodies of all, `gone` of those given up,
    `keys` the names of whose they are.
    """

    def __init__(self, run_dir: Path, before: Attempt | None, lost: frozenset[str]) -> None:
        self.attempt = claim(run_dir)
        self.asked: list[bytes] = []
        self.gone: list[bytes] = []
        self.keys: set[str] = set()
        self.waiting = threading.Event()
        self._woken = threading.Semaphore(0)
        self._later = True
        listener = bind(Http(port=0))
        self._server = HttpServer(listener, self._woken.release)
        guard = Guard(KeyRing(key_file(run_dir, KEYS)), 1.0)
        files, store = FileStore(run_dir), BatchStore(self.attempt, before)
        runner = BatchRunner(store, files, self._server, ByteTokenizer(), 4096, lambda: 0.0, lost)
        self._server.open(
            make_app(
                AppContext(
                    self._server,
                    guard,
                    1,
                    ByteTokenizer(),
                    4096,
                    lambda: 0.0,
                    Figures,
                    Answers([], []),
                    None,
                    batches=BatchApi(guard, lambda: self._server.refusal, files, store, runner),
                )
            )
        )
        self.client = openai.OpenAI(base_url=f"{url(listener)}/v1", api_key=KEY, max_retries=0)
        self._open = True
        self._thread = threading.Thread(target=self._schedule)
        self._thread.start()
        self._server.accept()

    def close(self) -> None:
        self.client.close()
        self._server.close()
        self._open = False
        self._woken.release()
        self._thread.join()

    def _schedule(self) -> None:
        number = 0
        while self._open:
            self._woken.acquire()
            for call in self._server.poll():
                call.number = number = number + 1
                self.keys.add(call.api.key)
                self._answer(call)

    def _answer(self, call: Call) -> None:
        body = call.api.body
        (self.gone if call.gone else self.asked).append(body)
        if b"never" in body:
            self.waiting.set()
        elif b"die" in body:
            call.fail(cut_short())
        elif b"later" in body and self._later:
            self._later = False
            error = starting()
            call.fail(ApiError(error.status, error.message, error.kind, retry_after=0))
        else:
            call.part(ResponsePart(400 if b"bad" in body else 200, [], b'{"echo":', True))
            call.part(ResponsePart(0, [], body + b"}", False))


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[object]:
    """Opens a server, after an attempt that was there before."""
    with contextlib.ExitStack() as stack:

        def make(before: Attempt | None = None, lost: frozenset[str] = frozenset()) -> Desk:
            desk = Desk(tmp_path, before, lost)
            stack.callback(desk.close)
            return desk

        yield make
