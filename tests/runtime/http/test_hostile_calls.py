"""Calls that would cost too much, or break what reads them: each is refused in OpenAI's words, and the next is answered."""

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_endpoint import fuzz
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextFields
from lemix_hpc.records.attempts import claim
from lemix_hpc.runtime.http import app, sample_intake
from lemix_hpc.runtime.http.sample_intake import SampleIntake
from lemix_hpc.runtime.http.shared_look import FRESH_S, SharedLook
from lemix_hpc.workload.samples import SampleQueue
from lemix_hpc.workload.tokenizer import ByteTokenizer, HuggingFaceChatTokenizer
from tests.inputs.http_table import http_rows
from tests.runtime.http.in_process import CONTEXT, KEY, Run, post, running
from tests.runtime.http.odd_calls import NESTED, REFUSED
from tests.workload.chat_templates import tokenizer

ROWS = http_rows()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    attempt = claim(tmp_path_factory.mktemp("run"))
    queue = SampleQueue(Training(sequence_length=8, packing="padded"), ByteTokenizer())
    with running(samples=SampleIntake(attempt, TextFields(), queue, lambda: None)) as run:
        yield run


SENT = [(row, sent) for row, calls in REFUSED.items() for sent in calls]


@pytest.mark.parametrize(("row", "sent"), SENT, ids=[f"{row[:30]}-{n}" for n, (row, _) in enumerate(SENT)])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_call_that_is_refused(run: Run, path: str, row: str, sent: bytes) -> None:
    """As docs/inputs.md says."""
    with run.client() as client:
        answer = client.post(path, content=sent)
        assert (answer.status_code,) == ROWS[row].statuses
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error" and ROWS[row].is_in(error["message"]), error
        assert post(client).status_code == 200


def test_a_chat_that_the_template_does_not_come_to_an_end_with_is_refused() -> None:
    row = ROWS["a chat for which the model's template needs more than 300,000 steps"]
    doubling = "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(messages | length) }}"
    own = HuggingFaceChatTokenizer(tokenizer(doubling), 0)
    message = {"role": "user", "content": "x"}
    with running(tokenizer=own) as run, run.client() as client:
        for count, statuses in ((40, row.statuses), (2, (200,))):
            answer = client.post("/v1/chat/completions", json={"messages": [message] * count, "prompt": "hi"})
            assert (answer.status_code,) == statuses
            assert answer.status_code == 200 or row.is_in(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("sent", "lengths", "answers"),
    [
        ({"max_tokens": 10**9}, (2, CONTEXT - 2), 1),
        ({"max_tokens": "1000000000"}, (2, CONTEXT - 2), 1),
        ({"max_tokens": 3, "n": 128}, (2, 384), 128),
        ({"prompt": ["hi", "you"], "max_tokens": 3, "n": 2}, (5, 12), 4),
        ({"prompt": "x" * 900_000}, (CONTEXT, 1), 1),
    ],
)
def test_a_call_counts_as_what_it_is(run: Run, sent: dict[str, Any], lengths: tuple[int, int], answers: int) -> None:
    with run.client() as client:
        assert client.post("/v1/completions", json={"prompt": "hi"} | sent).status_code == 200
    assert (run.calls[-1].lengths, run.calls[-1].api.answers) == (lengths, answers)


def test_of_a_prompt_that_is_far_too_long_no_more_is_read_than_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def encode(self: ByteTokenizer, text: str) -> list[int]:  # noqa: ARG001
        read.append(len(text))
        return list(text.encode())

    monkeypatch.setattr(ByteTokenizer, "encode", encode)
    with running() as run, run.client() as client:
        assert post(client, prompt="x" * 900_000).status_code == 200
    assert sum(read) <= 16 * CONTEXT


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/x-ndjson", 200),
        (None, 200),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_samples_are_json_and_say_so(run: Run, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    with run.client() as client:
        answer = client.post("/v1/training/samples", content=b'{"text": "a"}', headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert "send application/json or application/jsonl" in answer.json()["error"]["message"]


def test_samples_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.client() as client:
        many = client.post("/v1/training/samples", content=b'{"text": "a"}\n' * 10_001)
        assert many.status_code == 400 and "more than 10000 lines" in many.json()["error"]["message"]
        monkeypatch.setattr(sample_intake, "MOST_WAITING", 0)
        full = client.post("/v1/training/samples", content=b'{"text": "a"}')
        assert full.status_code == 429 and "wait to be trained on" in full.json()["error"]["message"]
        monkeypatch.undo()
        monkeypatch.setattr(app, "MOST_POSTS", 0)
        busy = client.post("/v1/training/samples", content=b'{"text": "a"}')
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        for deep in NESTED.values():
            assert client.post("/v1/training/samples", content=deep).status_code in (400, 429)


def test_samples_do_not_hold_up_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    attempt = claim(tmp_path)
    queue = SampleQueue(Training(sequence_length=8, packing="padded"), ByteTokenizer())
    intake = SampleIntake(attempt, TextFields(), queue, lambda: None)
    take = intake.take

    def slow(*args: Any) -> list[str]:
        begun.set()
        go.wait()
        return take(*args)

    monkeypatch.setattr(intake, "take", slow)
    with running(samples=intake) as run, run.client() as client, run.client() as other:
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: answers.append(client.post("/v1/training/samples", json={"text": "a"}))
        )
        thread.start()
        begun.wait()
        assert post(other).status_code == 200, "while the samples are being taken"
        go.set()
        thread.join()
        assert answers[0].status_code == 200


def test_other_calls_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.client() as client:
        assert client.post("/tokenize", json={"prompt": "hi"}).status_code == 200
        long = client.post("/tokenize", json={"prompt": "x" * 999_990 + "y" * 50_000})
        assert long.status_code == 413 or "longer than 1048576 bytes" in long.json()["error"]["message"]
        deep = client.post("/tokenize", content=b'{"prompt":%s}' % NESTED[1000])
        assert deep.status_code == 400 and "64 levels" in deep.json()["error"]["message"]
        monkeypatch.setattr(app, "MOST_OTHERS", 0)
        assert client.post("/detokenize", json={"tokens": [1]}).status_code == 429


def test_health_asks_the_nodes_once_a_second(run: Run) -> None:
    before = len(run.calls)
    with run.client(None) as client:
        assert {client.get("/health").status_code for _ in range(50)} == {200}
    assert len(run.calls) - before < 50
    with run.client() as client:
        assert "lemix_http_health_total 50" in client.get("/metrics").text


def test_a_look_is_shared_until_it_is_old() -> None:
    time, looks = [0.0], itertools.count()

    async def use() -> list[int]:
        shared = SharedLook(look, lambda: time[0])
        found = list(await asyncio.gather(*(shared.get() for _ in range(5))))
        time[0] += FRESH_S / 2
        found.append(await shared.get())
        time[0] += FRESH_S / 2
        return [*found, await shared.get(), shared.asked]

    async def look() -> int:
        return next(looks)

    assert asyncio.run(use()) == [0, 0, 0, 0, 0, 0, 1, 7]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.sampled_from(
    ["prompt", "messages", "n", "max_tokens", "stream", "tools", "response_format", "priority", "model"]
)
BODIES = st.binary() | st.dictionaries(FIELDS, JSON).map(lambda content: json.dumps(content).encode())
PATHS = st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/training/samples", "/tokenize", "/v1/models"])


@pytest.fixture(scope="module")
def anybody(run: Run) -> Iterator[httpx.Client]:
    with run.client() as client:
        yield client


@settings(deadline=10_000)
@given(path=PATHS, sent=BODIES)
def test_whatever_comes_gets_an_answer_that_blames_the_client(anybody: httpx.Client, path: str, sent: bytes) -> None:
    answer = anybody.post(path, content=sent)
    assert answer.status_code in (200, 400, 405, 429)
    assert answer.status_code == 200 or answer.json()["error"]["message"]


def test_keys_are_asked_for_before_anything_is_read(run: Run) -> None:
    with run.client(KEY[:-1]) as client:
        for path in ("/v1/completions", "/tokenize", "/v1/training/samples"):
            assert client.post(path, content=NESTED[1000]).status_code == 401


def test_the_fuzz_of_the_benchmarks_in_short(run: Run) -> None:
    with run.client() as client:
        tally = fuzz(client, "any", requests=200, seconds=20.0, seed=3)
    assert not tally.failed and not tally.unanswered, tally
    assert sum(tally.statuses.values()) == 200
    assert not [status for status in tally.statuses if status >= 500]
