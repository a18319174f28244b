"""Calls that come again, over a real socket; the scheduler's loop is a thread that answers what a prompt says."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from lemix_hpc.records.journal import Accepted
from lemix_hpc.runtime.http import answers as module
from lemix_hpc.workload.tasks import ApiCall
from tests.runtime.http.in_process import post, running


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
