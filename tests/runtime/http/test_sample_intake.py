import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.records.attempts import claim
from lemix_hpc.records.line_chain import CountedFile, acknowledged
from lemix_hpc.records.schema import SAMPLES
from lemix_hpc.runtime.http import sample_intake
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.http.sample_intake import SampleIntake
from lemix_hpc.workload.data_set import read_all
from lemix_hpc.workload.samples import SampleQueue
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer


@pytest.fixture
def waiting() -> SampleQueue:
    return SampleQueue(Training(sequence_length=8, packing="padded"), ByteTokenizer())


def intake(tmp_path: Path, waiting: SampleQueue, **more: Any) -> SampleIntake:
    before = [CountedFile(path, acknowledged(path)) for path in more.get("before", ())]
    attempt = claim(tmp_path)
    attempt.make_current()
    return SampleIntake(attempt, more.get("fields", TextFields()), waiting, more.get("wake", lambda: None), before)


def journal(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / SAMPLES).read_text().splitlines()]


def test_what_is_accepted_is_on_disk_before_it_is_used(
    tmp_path: Path, waiting: SampleQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync = os.fsync

    def fsync(file: int) -> None:
        order.append(f"synced {len(journal(tmp_path))}, waiting {waiting.pending}")
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    samples_in = intake(tmp_path, waiting, wake=lambda: order.append("woken"))
    assert samples_in.take(b'{"text": "a"}\n{"prompt": "b", "completion": "c"}', 1.5) == ["sample0", "sample1"]
    assert samples_in.take(b'{"text": "d"}', 2.5) == ["sample2"]
    assert order == ["synced 2, waiting 0", "woken", "synced 3, waiting 2", "woken"]
    assert journal(tmp_path) == [
        {"id": "sample0", "received": 1.5, "text": "a"},
        {"id": "sample1", "received": 1.5, "prompt": "b", "completion": "c"},
        {"id": "sample2", "received": 2.5, "text": "d"},
    ]
    again = read_all(TextData(path=tmp_path / SAMPLES))  # the journal is training text itself
    assert [again.document(index) for index in range(len(again))] == [
        Document("a"),
        Document("c", prompt="b"),
        Document("d"),
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"text": "a"}\n{"text": 3}', "line 2: `text` is int"),
        (b'{"text": "a"}\n\n{"prompt": "too long for", "completion": "c"}', "line 3: the prompt leaves no room"),
    ],
)
def test_nothing_of_a_bad_body_is_taken(tmp_path: Path, waiting: SampleQueue, body: bytes, reason: str) -> None:
    samples_in = intake(tmp_path, waiting)
    with pytest.raises(ApiError, match=reason) as refused:
        samples_in.take(body, 0.0)
    assert refused.value.status == 400 and "Nothing was taken" in refused.value.message
    assert journal(tmp_path) == [] and waiting.pending == 0
    assert samples_in.take(b'{"text": "a"}', 0.0) == ["sample0"]


def test_the_recipes_fields_hold(tmp_path: Path, waiting: SampleQueue) -> None:
    samples_in = intake(tmp_path, waiting, fields=TextFields(prompt="question", completion="answer"))
    samples_in.take(b'{"question": "1+1=", "answer": "2"}', 0.0)
    assert journal(tmp_path) == [{"id": "sample0", "received": 0.0, "prompt": "1+1=", "completion": "2"}]
    with pytest.raises(ApiError, match="expected `question` and `answer`, found `text`"):
        samples_in.take(b'{"text": "a"}', 0.0)


def test_a_full_disk_takes_nothing(tmp_path: Path, waiting: SampleQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    samples_in = intake(tmp_path, waiting)
    samples_in.take(b'{"text": "a"}', 0.0)

    def full(file: int) -> None:  # noqa: ARG001
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ApiError, match="No space left") as refused:
            samples_in.take(b'{"text": "b"}', 0.0)
    assert refused.value.status == 507
    samples_in.take(b'{"text": "c"}', 0.0)
    assert [entry["text"] for entry in journal(tmp_path)] == ["a", "c"]
    assert waiting.pending == 2


def test_after_training_has_ended_nothing_is_taken(tmp_path: Path, waiting: SampleQueue) -> None:
    waiting.closed = True
    with pytest.raises(ApiError, match="Training has ended") as refused:
        intake(tmp_path, waiting).take(b'{"text": "a"}', 0.0)
    assert refused.value.status == 409 and journal(tmp_path) == []


def test_the_next_attempt_has_what_was_accepted(tmp_path: Path, waiting: SampleQueue) -> None:
    first = intake(tmp_path, waiting)
    first.take(b'{"text": "a"}\n{"prompt": "b", "completion": "c"}', 1.5)
    before = journal(tmp_path)
    with (tmp_path / SAMPLES).open("ab") as file:
        file.write(b'{"id": "sample2", "received": 9, "te')
    queue = SampleQueue(Training(sequence_length=8, packing="padded"), ByteTokenizer())
    again = intake(tmp_path, queue, before=[tmp_path / "attempts" / "0" / SAMPLES])
    assert len(before) == 2 and journal(tmp_path) == [], "each attempt has its own"
    assert [sample.id for sample in again.posted] == ["sample0", "sample1"]
    assert queue.pending == 0, "some of them may have been trained on"
    assert again.take(b'{"text": "d"}', 2.5) == ["sample2"]


def test_what_comes_again_is_acknowledged_again_and_taken_once(tmp_path: Path, waiting: SampleQueue) -> None:
    body = b'{"text": "a"}\n{"text": "b"}'
    samples_in = intake(tmp_path, waiting)
    assert samples_in.take(body, 1.0, "mine") == samples_in.take(body, 2.0, "mine") == ["sample0", "sample1"]
    assert samples_in.take(b'{"text": "a"}', 3.0, "other") == ["sample2"]
    with pytest.raises(ApiError, match="mine is that of another call") as refused:
        samples_in.take(b'{"text": "a"}', 3.0, "mine")
    assert (refused.value.status, refused.value.code) == (422, "request_id_reused")
    assert waiting.pending == 3
    assert [entry.get("request") for entry in journal(tmp_path)] == ["mine", "mine", "other"]
    queue = SampleQueue(Training(sequence_length=8, packing="padded"), ByteTokenizer())
    again = intake(tmp_path, queue, before=[tmp_path / "attempts" / "0" / SAMPLES])
    assert again.take(body, 9.0, "mine") == ["sample0", "sample1"]
    queue.closed = True
    assert again.take(b'{"text": "a"}', 9.0, "other") == ["sample2"], "it was promised"
    assert queue.pending == 0 and len(again.posted) == 3


def test_the_last_calls_are_known_again_and_no_more_are_kept(
    tmp_path: Path, waiting: SampleQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_intake, "MOST_KNOWN", 2)
    body = b'{"text": "a"}\n{"text": "b"}'
    samples_in = intake(tmp_path, waiting)
    taken = {name: samples_in.take(body, 1.0, name) for name in ("one", "two", "three")}
    assert samples_in.take(body, 2.0, "one") == ["sample6", "sample7"], "forgotten"
    assert samples_in.take(body, 2.0, "three") == taken["three"] == ["sample4", "sample5"]
    queue = SampleQueue(Training(sequence_length=8, packing="padded"), ByteTokenizer())
    again = intake(tmp_path, queue, before=[tmp_path / "attempts" / "0" / SAMPLES])
    assert again.take(body, 3.0, "one") == ["sample6", "sample7"] and again.take(body, 3.0, "three") == taken["three"]
    assert again.take(body, 3.0, "two") == ["sample8", "sample9"]


def test_a_call_that_was_cut_off_in_the_middle_was_never_acknowledged(tmp_path: Path, waiting: SampleQueue) -> None:
    samples_in = intake(tmp_path, waiting)
    samples_in.take(b'{"text": "a"}', 1.0, "whole")
    body = b'{"text": "b"}\n{"text": "c"}'
    samples_in.take(body, 1.0, "cut")
    path = tmp_path / "attempts" / "0" / SAMPLES
    path.write_bytes(path.read_bytes()[:-9])
    queue = SampleQueue(Training(sequence_length=8, packing="padded"), ByteTokenizer())
    again = intake(tmp_path, queue, before=[tmp_path / "attempts" / "0" / SAMPLES])
    assert [sample.id for sample in again.posted] == ["sample0"]
    assert again.take(body, 2.0, "cut") == ["sample1", "sample2"]
    assert [entry["text"] for entry in journal(tmp_path)] == ["b", "c"]


def test_who_was_left_behind_accepts_nothing(tmp_path: Path, waiting: SampleQueue) -> None:
    behind = intake(tmp_path, waiting)
    claim(tmp_path)
    with pytest.raises(ApiError, match="The run goes on elsewhere") as raised:
        behind.take(b'{"text": "a"}', 1.5)
    assert raised.value.status == 503 and waiting.pending == 0


def test_conversations_are_taken_and_come_again(tmp_path: Path) -> None:
    def new() -> SampleQueue:
        return SampleQueue(Training(sequence_length=32, packing="padded"), ByteTokenizer())

    first = new()
    samples_in = intake(tmp_path, first)
    messages = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b!"}]
    body = json.dumps({"messages": messages, "tools": [{"name": "f"}]}).encode()
    assert samples_in.take(body, 0.5) == ["sample0"]
    [entry] = journal(tmp_path)
    assert (entry["messages"], entry["tools"]) == (messages, [{"name": "f"}])
    with pytest.raises(ApiError, match="line 1: `messages` has no message of the assistant"):
        samples_in.take(json.dumps({"messages": messages[:1]}).encode(), 0.6)
    samples_in.close()
    again = intake(tmp_path, new(), before=[samples_in._attempt.path / SAMPLES])
    [sample] = again.posted
    assert sample.tokens.tolist() == first._pending[0].tokens.tolist()
    prompt, answer = b"user: a?\nassistant: ", b"b!\n"
    assert sample.tokens.tolist() == [[*prompt, *answer], [-100] * len(prompt) + [*answer]]
