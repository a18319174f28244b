"""Calls that come again, over a real socket; the scheduler's loop is a thread that answers what a prompt says."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lemix_hpc.config.serving_section import Http
from lemix_hpc.records.journal import Accepted, Answered, Record
from lemix_hpc.runtime.http import answers as module
from lemix_hpc.runtime.http.answers import Answers
from lemix_hpc.runtime.http.app import AppContext, make_app
from lemix_hpc.runtime.http.call import Call, ResponsePart
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.http.metrics import Figures
from lemix_hpc.runtime.http.request_guard import Guard
from lemix_hpc.runtime.http.server import HttpServer, bind, url
from lemix_hpc.workload.tasks import ApiCall
from lemix_hpc.workload.tokenizer import ByteTokenizer

JSON = [("content-type", "application/json"), ("x-lemix-weight-versions", "1-2"), ("connection", "close")]
EVENTS = [("content-type", "text/event-stream; charset=utf-8")]


class Run:
    """Answers in order of arrival, each with the number of its task; `held` ones when `go` is set."""

    def __init__(self, given: list[Answered], waiting: list[Accepted]) -> None:
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
        context = AppContext(
            self.server, Guard(None, 1.0), 1, ByteTokenizer(), 64, lambda: 7.5, Figures, self._answers, None
        )
        self.server.open(make_app(context))
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

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=url(self._listener), timeout=30)

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
        body = json.loads(call.api.body)
        if body["prompt"] == "held":
            self.held.set()
            self.go.wait()
        if body["prompt"] == "lost":
            call.fail(ApiError(502, "no answer", "server_error"))
        elif body["prompt"] == "broken":
            call.part(ResponsePart(500, JSON, b"{}", False))
        elif body.get("stream"):
            for number in range(3):
                event = b'data: {"task": %d, "piece": %d}\n\n' % (call.number, number)
                call.part(ResponsePart(200 * (not number), EVENTS if not number else [], event, True))
            call.part(ResponsePart(0, [], b"data: [DONE]\n\n", False))
        else:
            status = 400 if body["prompt"] == "bad" else 200
            text = json.dumps({"task": call.number, "text": "é" * body.get("max_tokens", 1)}).encode()
            call.part(ResponsePart(status, JSON, text, False))


@contextlib.contextmanager
def running(given: list[Answered] | None = None, waiting: list[Accepted] | None = None) -> Iterator[Run]:
    run = Run(given or [], waiting or [])
    try:
        yield run
    finally:
        run.close()


def post(client: httpx.Client, id: str | None, prompt: str = "hi", **more: Any) -> httpx.Response:
    headers = {} if id is None else {"x-request-id": id}
    return client.post("/v1/completions", json={"prompt": prompt} | more, headers=headers)


def same(one: httpx.Response, other: httpx.Response) -> bool:
    """The same answer, and the second of them was given again."""
    kept = [{n: v for n, v in r.headers.items() if n.startswith(("x-", "content-type"))} for r in (one, other)]
    replayed = kept[1].pop("x-lemix-replayed", None), kept[0].pop("x-lemix-replayed", None)
    assert kept[0] == kept[1] and replayed == ("true", None)
    return (one.status_code, one.content) == (other.status_code, other.content)


def test_what_was_answered_is_answered_again_in_the_same_words() -> None:
    with running() as run, run.client() as client:
        assert same(post(client, "mine"), post(client, "mine"))
        assert same(post(client, "wrong", "bad"), post(client, "wrong", "bad"))
        first, second = post(client, "stream", stream=True), post(client, "stream", stream=True)
        assert same(first, second) and first.text.endswith("data: [DONE]\n\n")
        with client.stream(
            "POST", "/v1/completions", json={"prompt": "hi", "stream": True}, headers={"x-request-id": "stream"}
        ) as again:
            assert list(again.iter_lines()) == first.text.split("\n")[:-1]
        assert run.tasks == 3
        assert post(client, None).json()["task"] != post(client, None).json()["task"], "nobody named these"
        assert [(answer.id, answer.number, answer.time) for answer in run.answered] == [
            ("mine", 0, 7.5),
            ("wrong", 1, 7.5),
            ("stream", 2, 7.5),
        ]


def test_errors_of_the_server_are_no_answers() -> None:
    with running() as run, run.client() as client:
        for prompt, status in (("lost", 502), ("broken", 500)):
            assert [post(client, prompt, prompt).status_code for _ in range(2)] == [status, status]
        assert run.tasks == 4 and not run.answered


def test_another_call_under_the_same_name_is_refused() -> None:
    with running() as run, run.client() as client:
        post(client, "mine")
        for more in ({"prompt": "other"}, {"stream": True}):
            refused = post(client, "mine", **more)
            assert refused.status_code == 422
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "request_id_reused")
            assert "X-Request-Id mine is that of another call" in error["message"]
        assert (
            client.post("/v1/chat/completions", json={"prompt": "hi"}, headers={"x-request-id": "mine"}).status_code
            == 422
        )
        assert run.tasks == 1


def test_a_call_that_is_under_way_is_not_begun_twice() -> None:
    with running() as run, run.client() as client:
        first = threading.Thread(target=lambda: post(client, "slow", "held"))
        first.start()
        assert run.held.wait(30)
        refused = post(client, "slow", "held")
        assert (refused.status_code, refused.headers["retry-after"]) == (409, "1")
        assert refused.json()["error"]["code"] == "request_id_under_way"
        assert post(client, "slow", "other").status_code == 422
        run.go.set()
        first.join()
        assert post(client, "slow", "held").headers["x-lemix-replayed"] == "true"
        assert run.tasks == 1


def test_a_client_that_hung_up_may_come_again() -> None:
    with running() as run, run.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={"prompt": "held"}, headers={"x-request-id": "a"}, timeout=0.2)
        run.go.set()
        end = time.monotonic() + 30
        while (answer := post(client, "a", "held")).status_code == 409:
            assert time.monotonic() < end
        assert answer.status_code == 200


def test_a_call_that_could_not_come_in_has_not_begun() -> None:
    with running() as run, run.client() as client:
        run.server.disk = "No space left on device"
        assert post(client, "mine").status_code == 503
        run.server.disk = None
        assert post(client, "mine").status_code == 200


def test_the_next_attempt_knows_what_was_answered_and_what_was_asked() -> None:
    with running() as run, run.client() as client:
        before = post(client, "mine")
        records = run.answered
    body = httpx.Request("POST", "http://x", json={"prompt": "cut"}).content
    cut = Accepted(9, "cut", 0.5, 3, ApiCall("POST", "/v1/completions", (), body).digest)
    with running(records, [cut]) as run, run.client() as client:
        assert same(before, post(client, "mine"))
        assert post(client, "cut", "other").status_code == 422
        assert post(client, "cut", "cut").status_code == 200
        assert run.tasks == 1


def test_a_long_answer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 100)
    with running() as run, run.client() as client:
        tasks = [post(client, "long", max_tokens=200).json()["task"] for _ in range(2)]
        assert tasks == [0, 1] and not run.answered
