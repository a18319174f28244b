import json
from pathlib import Path
from typing import Any

from lemix_hpc.records.attempts import Attempt, claim
from lemix_hpc.runtime.http.batch_results import RESULTS, BatchResults, expire
from lemix_hpc.runtime.http.call import ResponsePart
from lemix_hpc.runtime.http.errors import closing
from lemix_hpc.workload.lines import BadLine


def new_attempt(run_dir: Path) -> Attempt:
    attempt = claim(run_dir)
    attempt.make_current()
    return attempt


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / RESULTS).read_text().splitlines()]


def test_every_line_has_its_result_in_openais_format(tmp_path: Path) -> None:
    bad = [BadLine(b'{"custom_id": "z"}', "line 2: no body"), BadLine(b"\xff", "line 3: not text")]
    results = BatchResults(new_attempt(tmp_path), bad)
    good, late, refused, odd = (results.client(name) for name in ("a", "b", "c", "d"))
    good.number, late.number, odd.number = 1, 2, 3
    late.part(ResponsePart(400, [], b'{"error": {"message":', True))
    good.part(ResponsePart(200, [("x", "y")], b'{"id":  "cmpl-lemix-1", "n": 1e3}', False))
    late.part(ResponsePart(0, [], b' "no"}}', False))
    refused.fail(closing())
    odd.part(ResponsePart(500, [], b"Oops", False))
    results.close()
    lines = written(tmp_path)
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in lines)
    assert len({line["id"] for line in lines}) == 6
    assert [line["custom_id"] for line in lines] == ["z", None, "a", "b", "c", "d"]
    assert [line["error"] and line["error"]["code"] for line in lines] == [
        "invalid_request",
        "invalid_request",
        None,
        None,
        "service_unavailable_error",
        None,
    ]
    assert lines[0]["error"]["message"] == "line 2: no body" and lines[0]["response"] is None
    answer = {"id": "cmpl-lemix-1", "n": 1000.0}
    assert lines[2]["response"] == {"status_code": 200, "request_id": "lemix-1", "body": answer}
    assert lines[3]["response"]["body"] == {"error": {"message": "no"}} and lines[3]["response"]["status_code"] == 400
    assert lines[5]["response"]["body"] == "Oops"


def test_a_result_is_in_the_file_as_soon_as_it_is_there(tmp_path: Path) -> None:
    results = BatchResults(new_attempt(tmp_path), [])
    results.client("a").part(ResponsePart(200, [], b"{}", False))
    assert [line["custom_id"] for line in written(tmp_path)] == ["a"]


def test_the_next_attempt_begins_with_what_was_answered(tmp_path: Path) -> None:
    first = new_attempt(tmp_path)
    results = BatchResults(first, [BadLine(b"\xff", "line 3: not text")])
    for name in "abc":
        results.client(name).part(ResponsePart(200, [], b"{}", False))
    results.close()
    kept = {line["id"] for line in written(tmp_path) if line["custom_id"] in ("a", "c")}
    with (first.path / RESULTS).open("ab") as file:
        file.write(b'{"id":"batch_req_torn","custom_id":"d","resp')
    second = new_attempt(tmp_path)
    results = BatchResults(second, [BadLine(b"\xff", "line 3: not text")])
    results.inherit(first, {"a", "c", "d"})
    results.client("b").part(ResponsePart(200, [], b"{}", False))
    lines = written(tmp_path)
    assert [line["custom_id"] for line in lines] == [None, "a", "c", "b"]
    assert {line["id"] for line in lines} > kept, "the lines as they were"


def test_lines_without_an_answer_expire_when_nobody_goes_on(tmp_path: Path) -> None:
    attempt = new_attempt(tmp_path)
    results = BatchResults(attempt, [])
    results.client("b").part(ResponsePart(200, [], b"{}", False))
    results.close()
    assert expire(tmp_path, ["a", "b", "c"]) == 2
    lines = written(tmp_path)
    assert [line["custom_id"] for line in lines] == ["b", "a", "c"]
    assert [line["error"] and line["error"]["code"] for line in lines] == [None, "batch_expired", "batch_expired"]
    assert expire(tmp_path, ["a", "b", "c"]) == 0
    again = BatchResults(new_attempt(tmp_path), [])
    again.inherit(attempt, {"b"})
    assert [line["custom_id"] for line in written(tmp_path)] == ["b"], "those that expired are asked again"
