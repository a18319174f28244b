import json
from pathlib import Path
from typing import Any

from lemix_hpc.records.attempts import Attempt, AttemptStart, claim, lineage
from lemix_hpc.records.line_chain import line_chain, put_together
from lemix_hpc.records.schema import RESULTS
from lemix_hpc.runtime.http.batch_results import BatchResults, expire
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
    assert [results.ended(name) for name in "abcd"] == [3, 4, 5, 6]
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


def answer(results: BatchResults, names: str) -> None:
    for name in names:
        results.client(name).part(ResponsePart(200, [], b"{}", False))


def goes_on(attempt: Attempt, before: Attempt, results: int) -> None:
    attempt.start(AttemptStart(time=0.0, host="h", inherits=before.number, results=results))


def test_a_result_is_in_the_file_once_its_line_has_its_outcome(tmp_path: Path) -> None:
    results = BatchResults(new_attempt(tmp_path), [])
    answer(results, "ab")
    assert written(tmp_path) == []
    assert results.ended("b") == 1 and results.ended("of a client") == 1
    assert [line["custom_id"] for line in written(tmp_path)] == ["b"]


def test_results_of_all_attempts_are_put_together_as_far_as_they_count(tmp_path: Path) -> None:
    first = new_attempt(tmp_path)
    first.start(AttemptStart(time=0.0, host="h"))
    results = BatchResults(first, [BadLine(b"\xff", "line 3: not text")])
    answer(results, "abc")
    assert [results.ended(name) for name in "ac"] == [2, 3]
    kept = [line["id"] for line in written(tmp_path)]
    results.ended("b")  # which the journal does not know
    results.close()
    with (first.path / RESULTS).open("ab") as file:
        file.write(b'{"id":"batch_req_torn","custom_id":"d","resp')
    second = new_attempt(tmp_path)
    goes_on(second, first, 3)
    results = BatchResults(second, ())
    answer(results, "b")
    results.ended("b")
    results.close()
    assert [line["custom_id"] for line in written(tmp_path)] == ["b"]
    put_together(tmp_path, line_chain(lineage(tmp_path), RESULTS), RESULTS)
    lines = written(tmp_path)
    assert [line["custom_id"] for line in lines] == [None, "a", "c", "b"]
    assert [line["id"] for line in lines[:3]] == kept, "the lines as they were"
    third = new_attempt(tmp_path)
    goes_on(third, second, 1)
    BatchResults(third, ()).close()
    assert written(tmp_path) == [], "the link to what goes on is back"
    put_together(tmp_path, line_chain(lineage(tmp_path), RESULTS), RESULTS)
    assert written(tmp_path) == lines


def test_lines_without_an_answer_expire_when_nobody_goes_on(tmp_path: Path) -> None:
    attempts = [new_attempt(tmp_path)]
    attempts[0].start(AttemptStart(time=0.0, host="h"))
    for name in "db":
        results = BatchResults(attempts[-1], [])
        answer(results, name)
        assert results.ended(name) == 1
        results.close()
        if len(attempts) == 1:
            attempts.append(new_attempt(tmp_path))
            goes_on(attempts[1], attempts[0], 1)
    assert expire(tmp_path, list("abcd")) == 2
    lines = written(tmp_path)
    assert [line["custom_id"] for line in lines] == ["d", "b", "a", "c"]
    assert [line["error"] and line["error"]["code"] for line in lines] == [None, None, "batch_expired", "batch_expired"]
    assert expire(tmp_path, list("abcd")) == 0
    again = new_attempt(tmp_path)
    goes_on(again, attempts[1], 1)
    files = line_chain(lineage(tmp_path), RESULTS)
    names = [json.loads(line)["custom_id"] for file in files for line in file.lines()]
    assert names == ["d", "b"], "those that expired are asked again"
