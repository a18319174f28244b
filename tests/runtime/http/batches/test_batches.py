"""Files and batches through OpenAI's client."""

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from lemix_hpc.records import files
from lemix_hpc.records.attempts import claim
from lemix_hpc.runtime.http.batches import batch_api, batch_runner, batch_store
from lemix_hpc.runtime.http.batches.batch import WINDOWS_S
from tests.runtime.http.batches.conftest import OTHER, Desk

OpenDesk = Callable[..., Desk]


def line(name: str, prompt: str = "hi", **changes: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt}} | changes


def upload(desk: Desk, *lines: object, name: str = "in.jsonl") -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    return desk.client.files.create(file=(name, content), purpose="batch").id


def begin(desk: Desk, *lines: object, **changes: Any) -> Batch:
    asked = {"endpoint": "/v1/completions", "completion_window": "24h"} | changes
    return desk.client.batches.create(input_file_id=upload(desk, *lines), **asked)


def over(desk: Desk, batch: Batch) -> Batch:
    end = time.monotonic() + 30
    while (batch := desk.client.batches.retrieve(batch.id)).status in (
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    ):
        assert time.monotonic() < end, batch
        time.sleep(0.01)
    return batch


def content(desk: Desk, id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a file by their names."""
    assert id is not None
    lines = map(json.loads, desk.client.files.content(id).text.splitlines())
    return {line["custom_id"]: line for line in lines}


def test_each_line_is_answered_in_one_of_two_files(open_desk: OpenDesk) -> None:
    desk = open_desk()
    lines = [line("a"), line("b", "bad"), line("c", "die"), line("d", "later")]
    begun = begin(desk, *lines, metadata={"who": "me"})
    assert (begun.status, begun.endpoint, begun.metadata) == ("validating", "/v1/completions", {"who": "me"})
    assert begun.expires_at == begun.created_at + 86400
    batch = over(desk, begun)
    assert batch.status == "completed" and batch.completed_at is not None and batch.in_progress_at is not None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
    answered = content(desk, batch.output_file_id)
    assert answered.keys() == {"a", "d"}
    assert answered["a"]["response"]["status_code"] == 200 and answered["a"]["error"] is None
    assert answered["a"]["response"]["body"] == {"echo": {"prompt": "hi"}}
    failed = content(desk, batch.error_file_id)
    assert failed["b"]["response"]["status_code"] == 400
    assert failed["c"]["response"] is None and failed["c"]["error"]["code"] == "server_error"
    # `later` was told to come again.
    assert len(desk.asked) == 5
    assert [each.id for each in desk.client.batches.list()] == [batch.id]


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        ([{"custom_id": "a"}], "invalid_file", "none of its 1 lines"),
        ([line("a"), line("a")], "invalid_request", "was used before"),
        ([line("a"), line("b", url="/v1/embeddings")], "invalid_request", "url"),
        ([line("a"), line("b", url="/v1/chat/completions")], "mismatched_endpoint", "is not /v1/completions"),
        ([line("a"), line("b", body={"prompt": "x", "stream": True})], "invalid_request", "stream"),
        ([], "invalid_file", "empty"),
    ],
)
def test_a_batch_with_a_bad_line_is_not_begun(
    open_desk: OpenDesk, bad: list[dict[str, Any]], code: str, says: str
) -> None:
    desk = open_desk()
    batch = over(desk, begin(desk, *bad))
    assert batch.status == "failed" and batch.errors is not None and batch.errors.data
    assert (batch.errors.data[0].code, desk.asked) == (code, [])
    assert says in str(batch.errors.data[0].message)


def test_too_many_lines_are_refused(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "MOST_LINES", 2)
    desk = open_desk()
    batch = over(desk, begin(desk, *(line(f"n{n}") for n in range(3))))
    assert batch.status == "failed" and "at most 2" in str(batch.errors)


def test_a_cancelled_batch_keeps_what_was_answered_and_gives_up_the_rest(open_desk: OpenDesk) -> None:
    desk = open_desk()
    begun = begin(desk, line("a"), line("b", "never"))
    assert desk.waiting.wait(30)
    with pytest.raises(openai.ConflictError, match="cancel it first"):
        desk.client.files.delete(begun.input_file_id)
    assert desk.client.batches.cancel(begun.id).status == "cancelling"
    batch = over(desk, begun)
    assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("cancelled", 1, None)
    assert content(desk, batch.output_file_id).keys() == {"a"}
    assert len(desk.gone) == 1 and b"never" in desk.gone[0]
    with pytest.raises(openai.ConflictError, match="is cancelled already"):
        desk.client.batches.cancel(begun.id)
    desk.client.files.delete(begun.input_file_id)


def test_what_is_not_answered_in_its_window_expires(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WINDOWS_S, "24h", 2)
    desk = open_desk()
    batch = over(desk, begin(desk, line("a"), line("b", "never")))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("expired", 1, 1)
    assert content(desk, batch.error_file_id)["b"]["error"]["code"] == "batch_expired"


def test_the_next_attempt_goes_on_and_asks_nothing_twice(open_desk: OpenDesk) -> None:
    first = open_desk()
    begun = begin(first, line("a"), line("b", "never"), line("c", "die"))
    assert first.waiting.wait(30)
    results = first.attempt.path / "batches" / f"{begun.id}.jsonl"
    end = time.monotonic() + 30
    while not (results.exists() and results.read_bytes().count(b"\n") == 2):
        assert time.monotonic() < end
        time.sleep(0.01)
    # A line that was torn when the attempt was killed counts as none.
    with results.open("ab") as file:
        file.write(b'{"custom_id": "b", "resp')
    second = open_desk(before=first.attempt)
    # The first one was taken for dead, and goes on all the same: nobody is told that its work counts.
    with pytest.raises(openai.InternalServerError, match="goes on elsewhere"):
        begin(first, line("x"))
    assert second.waiting.wait(30)
    assert len(second.asked) == 1 and b"never" in second.asked[0]
    assert (
        second.client.batches.retrieve(begun.id).request_counts
        == first.client.batches.retrieve(begun.id).request_counts
    )
    third = open_desk(before=second.attempt, lost=frozenset({f"{begun.id}-2"}))
    batch = over(third, begun)
    assert (batch.status, third.asked) == ("completed", [])
    assert content(third, batch.output_file_id).keys() == {"a"}
    errors = content(third, batch.error_file_id)
    assert {name: line["error"]["code"] for name, line in errors.items()} == {"b": "lost", "c": "server_error"}
    # What is over is so for all that come later.
    last = claim(third.attempt.run_dir)
    assert open_desk(before=last).client.batches.retrieve(begun.id) == batch


def test_a_key_sees_what_came_with_it_alone(open_desk: OpenDesk) -> None:
    desk = open_desk()
    batch = over(desk, begin(desk, line("a")))
    assert batch.output_file_id is not None and desk.keys == {"ann"}
    # It shares its connections with the first one, which closes them.
    other = desk.client.with_options(api_key=OTHER)
    assert (list(other.files.list()), list(other.batches.list())) == ([], [])
    for id in (batch.output_file_id, batch.input_file_id):
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(id)
    for ask in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(batch.id)
    with pytest.raises(openai.NotFoundError, match="no file"):
        other.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h")
    with pytest.raises(openai.PermissionDeniedError):
        desk.client.with_options(api_key="trains").files.list()


def test_files_are_listed_told_of_given_back_and_removed(open_desk: OpenDesk) -> None:
    desk = open_desk()
    ids = [upload(desk, line(f"n{n}"), name=f"{n}.jsonl") for n in range(3)]
    assert {file.id for file in desk.client.files.list(limit=2)} == set(ids)
    page = desk.client.files.list(limit=2)
    assert page.has_more and len(page.data) == 2
    file = desk.client.files.retrieve(ids[0])
    assert (file.filename, file.purpose, file.status) == ("0.jsonl", "batch", "processed")
    assert file.bytes == len(desk.client.files.content(ids[0]).content)
    assert desk.client.files.delete(ids[0]).deleted
    for call in (desk.client.files.retrieve, desk.client.files.content, desk.client.files.delete):
        with pytest.raises(openai.NotFoundError, match="There is no file"):
            call(ids[0])


@pytest.mark.parametrize("id", ["..%2Frun.json", "file-" + "0" * 24, "file-x", "%00"])
def test_a_name_that_is_no_files_is_refused(open_desk: OpenDesk, id: str) -> None:
    desk = open_desk()
    headers = {"authorization": f"Bearer {desk.client.api_key}"}
    for what in ("files", "batches"):
        assert httpx.get(f"{desk.client.base_url}{what}/{id}", headers=headers).status_code == 404


def test_what_cannot_be_taken_is_refused_in_openais_words(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_api, "MOST_MB", 0.001)
    monkeypatch.setattr(batch_api, "MOST_FILES", 1)
    desk = open_desk()
    create = desk.client.files.create
    headers = {"authorization": f"Bearer {desk.client.api_key}"}
    with pytest.raises(openai.APIStatusError) as large:
        create(file=("x", b"x" * 5000), purpose="batch")
    assert large.value.status_code == 413
    pieces = (piece for piece in [b"x" * 800] * 3)
    form = headers | {"content-type": "multipart/form-data; boundary=b"}
    url = str(desk.client.base_url)
    assert httpx.post(f"{url}files", content=pieces, headers=form).status_code in (400, 413)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        create(file=("x", b"x"), purpose="vision")
    for kind in ({}, {"content-type": "multipart/form-data"}):
        sent = httpx.post(f"{url}files", content=b"x", headers=headers | kind)
        assert (sent.status_code, "not a form" in sent.text) == (400, True), sent.text
    id = create(file=("x", b"x"), purpose="batch").id
    with pytest.raises(openai.RateLimitError, match="remove some"):
        create(file=("x", b"x"), purpose="batch")
    good = {"input_file_id": id, "endpoint": "/v1/completions", "completion_window": "24h"}
    bad: list[dict[str, Any]] = [{"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}, {"metadata": {"a": 1}}]
    for change in bad:
        assert httpx.post(f"{url}batches", json=good | change, headers=headers).status_code == 400
    assert httpx.post(f"{url}batches", json=good | {"input_file_id": "file-x"}, headers=headers).status_code == 404
    assert httpx.post(f"{url}batches", content=b"[" * 5000, headers=headers).status_code == 400
    for limit in ("0", "101", "x", "-1"):
        assert httpx.get(f"{url}batches?limit={limit}", headers=headers).status_code == 400
    assert httpx.get(f"{url}files?after=x", headers=headers).status_code == 400
    for method, path in (("GET", "files"), ("POST", "batches"), ("POST", "files"), ("GET", f"files/{id}/content")):
        assert httpx.request(method, f"{url}{path}").status_code == 401


def test_a_full_disk_is_waited_for(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, really, failures = open_desk(), files.replace, [errno.ENOSPC, errno.ESTALE]

    def replace(path: Path, content: bytes, *, sync: bool = False) -> None:
        if b"finalizing" in content and failures:
            raise OSError(failures.pop(), "the disk takes nothing")
        really(path, content, sync=sync)

    monkeypatch.setattr(batch_store, "replace", replace)
    monkeypatch.setattr(files, "RETRY_S", 0.01)
    assert over(desk, begin(desk, line("a"))).status == "completed"
    assert failures == []


def test_a_fault_of_ours_ends_its_batch_alone(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = open_desk()
    monkeypatch.setattr(batch_runner, "body_in_json", lambda body: 1 // 0)  # noqa: ARG005
    batch = over(desk, begin(desk, line("a")))
    assert batch.status == "failed" and "Internal error" in str(batch.errors)
    monkeypatch.undo()
    assert over(desk, begin(desk, line("a"))).status == "completed"
