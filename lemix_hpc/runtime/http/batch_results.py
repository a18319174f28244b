"""Results of an OpenAI batch, a line for each of its lines, in the order in which they are done."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.records.attempts import Attempt, lineage
from lemix_hpc.records.files import patiently
from lemix_hpc.records.line_chain import line_chain, put_together
from lemix_hpc.records.line_file import LineFile
from lemix_hpc.records.schema import RESULTS
from lemix_hpc.runtime.http.call import ResponsePart
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.workload.batch_calls import name_of
from lemix_hpc.workload.lines import BadLine

_EXPIRED = "This request could not be executed before the run ended."


class _Result(msgspec.Struct):
    custom_id: str | None = None


class BatchResults:
    """Writes `results.jsonl` of an attempt. `bad`: lines that were left out, which get an error each.

    A result is written when its line has its outcome: then the journal says how many results count.
    """

    def __init__(self, attempt: Attempt, bad: Iterable[BadLine]) -> None:
        self._file = LineFile(attempt.path / RESULTS)
        attempt.publish(RESULTS)
        self._ready: dict[str, bytes] = {}
        self._written = 0
        for line in bad:
            error = {"code": "invalid_request", "message": line.reason}
            self._write(result_line(name_of(line.content), None, error))

    def ended(self, custom_id: str) -> int:
        """A line, or somebody else's request, has its outcome: write its result, if it has one. Returns how many there are."""
        if (line := self._ready.pop(custom_id, None)) is not None:
            self._write(line)
        return self._written

    def sync(self) -> None:
        """Wait until all results so far are on the disk. Raises OSError."""
        self._file.sync()

    def client(self, custom_id: str) -> BatchLine:
        """Who waits for the answer to a line."""
        return BatchLine(self, custom_id)

    def answered(self, custom_id: str, status: int, request_id: str, body: bytes) -> None:
        response = {"status_code": status, "request_id": request_id, "body": body_in_json(body)}
        self._ready[custom_id] = result_line(custom_id, response, None)

    def failed(self, custom_id: str, error: ApiError) -> None:
        error_told = {"code": error.code or error.kind, "message": error.message}
        self._ready[custom_id] = result_line(custom_id, None, error_told)

    @property
    def trouble(self) -> str | None:
        """Why the disk does not take more, None while it does."""
        return self._file.trouble

    def close(self, timeout_s: float = 0.0, over: Callable[[], bool] = lambda: False) -> None:
        """Raises OSError if the disk does not take what is left in `timeout_s`, or before it is `over`."""
        patiently(self._file.sync, timeout_s, over)
        self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        self._written += 1


def expire(run_dir: Path, names: Iterable[str]) -> int:
    """At the end of a run that nobody goes on with: an error record, as OpenAI has it, for each line without an answer.

    `names`: the custom_ids of the batch, in order. Returns how many had none. A run that is resumed all the same asks them
    again. Raises OSError.
    """
    line = lineage(run_dir)
    files = line_chain(line, RESULTS)
    decode = msgspec.json.Decoder(_Result).decode
    answered = {decode(result).custom_id for file in files for result in file.lines()}
    open_ones = [name for name in names if name not in answered]
    with (line[-1].path / RESULTS).open("ab", buffering=0) as file:
        for name in open_ones:
            file.write(result_line(name, None, {"code": "batch_expired", "message": _EXPIRED}))
    put_together(run_dir, line_chain(line, RESULTS), RESULTS)
    return len(open_ones)


def result_line(custom_id: str | None, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    """A line of OpenAI's results: of an answer, or of an error."""
    line = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"


class BatchLine:
    """Collects the answer to one line."""

    def __init__(self, results: BatchResults, custom_id: str) -> None:
        self._results = results
        self._custom_id = custom_id
        self._status = 0
        self._body = bytearray()
        self.number: int | None = None
        # All lines come at once, and the last ones may have to wait for hours.
        self.unhurried = self.patient = True

    def part(self, part: ResponsePart) -> None:
        self._status = self._status or part.status
        self._body += part.body
        if not part.more:
            self._results.answered(self._custom_id, self._status, f"lemix-{self.number}", bytes(self._body))

    def fail(self, error: ApiError) -> None:
        self._results.failed(self._custom_id, error)


def body_in_json(body: bytes) -> msgspec.Raw | str:
    """The body of an answer as it came; one that is not JSON as a string."""
    try:
        msgspec.json.decode(body)
    except BROKEN_JSON:
        return body.decode(errors="replace")
    return msgspec.Raw(body)
