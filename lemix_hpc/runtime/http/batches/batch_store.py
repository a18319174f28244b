"""Batches on the disk: those that are over in the run's directory, the others with the attempt that works on them.

So an attempt that was taken for dead cannot change what the next one does: it writes where nobody reads any more.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from lemix_hpc.records.attempts import Attempt
from lemix_hpc.records.files import replace
from lemix_hpc.records.line_file import LineFile
from lemix_hpc.runtime.http.batches.batch import OVER, Batch, Status
from lemix_hpc.runtime.http.errors import ApiError

BATCHES = "batches"
_ID = re.compile(r"batch_[0-9a-f]{24}")


class _Response(msgspec.Struct, frozen=True):
    status_code: int


class Line(msgspec.Struct, frozen=True):
    """What a result says of its line: its name, and its answer if it has one."""

    custom_id: str
    response: _Response | None = None

    @property
    def answered(self) -> bool:
        return self.response is not None and self.response.status_code == 200


class BatchStore:
    """`before`: the attempt that this one goes on from. Methods raise OSError."""

    def __init__(self, attempt: Attempt, before: Attempt | None) -> None:
        self._attempt = attempt
        self._open = attempt.path / BATCHES
        self._over = attempt.run_dir / BATCHES
        for directory in (self._open, self._over):
            directory.mkdir(exist_ok=True)
        for path in sorted((before.path / BATCHES).glob("batch_*.json")) if before is not None else ():
            if not (self._over / path.name).exists():
                replace(self._open / path.name, path.read_bytes(), sync=True)
                replace(self.results(path.stem), _whole_lines(path.with_suffix(".jsonl")), sync=True)

    def put(self, batch: Batch) -> Batch:
        """Write a batch down. Raises ApiError if the run goes on in a later attempt."""
        self._must_count()
        replace(self._file(batch), msgspec.json.encode(batch), sync=True)
        # Whoever goes on with the run has read what is open since then, or reads it after this.
        self._must_count()
        if batch.status in OVER:
            (self._open / f"{batch.id}.json").unlink(missing_ok=True)
            self.results(batch.id).unlink(missing_ok=True)
        return batch

    def change(self, id: str, status: Status, **changes: object) -> Batch:
        """A batch in its next state; one that is being cancelled can only be cancelled. For one thread at a time.

        Raises ApiError as `get` and `put`, and for one that is over.
        """
        batch = self.get(id)
        if batch.status in OVER:
            raise ApiError(409, f"The batch {id} is {batch.status} already.", "invalid_request_error")
        if batch.status == "cancelling" and status != "cancelled":
            return batch
        return self.put(msgspec.structs.replace(batch, status=status, **changes))

    def get(self, id: str) -> Batch:
        """Raises ApiError if there is none of this name."""
        if _ID.fullmatch(id):
            for directory in (self._over, self._open):
                path = directory / f"{id}.json"
                if path.exists():
                    return msgspec.json.decode(path.read_bytes(), type=Batch)
        raise no_batch(id)

    def all(self) -> list[Batch]:
        """The newest first."""
        names = {path.stem for directory in (self._over, self._open) for path in directory.glob("batch_*.json")}
        return sorted(map(self.get, names), key=lambda batch: (batch.created_at, batch.id), reverse=True)

    def unfinished(self) -> list[Batch]:
        """The oldest first."""
        return [batch for batch in reversed(self.all()) if batch.status not in OVER]

    def _file(self, batch: Batch) -> Path:
        return (self._over if batch.status in OVER else self._open) / f"{batch.id}.json"

    def _must_count(self) -> None:
        if self._attempt.superseded:
            raise ApiError(503, "The run goes on elsewhere.", "service_unavailable_error", retry_after=5)

    def results(self, id: str) -> Path:
        """The file of the results so far of a batch that is not over."""
        return self._open / f"{id}.jsonl"

    def go_on(self, id: str) -> tuple[LineFile, dict[str, bool]]:
        """The results of a batch, to add to them, and those that are there: whether each line was answered, by its name."""
        path = self.results(id)
        return LineFile(path, goes_on=True), results_in(path)


def no_batch(id: str) -> ApiError:
    return ApiError(404, f"There is no batch {id!r}.", "invalid_request_error")


def results_in(path: Path) -> dict[str, bool]:
    """The lines that a file of results is about, by name: whether they were answered, with a status of 200."""
    lines = (msgspec.json.decode(line, type=Line) for line in _whole_lines(path).splitlines())
    return {line.custom_id: line.answered for line in lines}


def split_results(path: Path) -> tuple[list[bytes], list[bytes]]:
    """The results in a file: those of lines that were answered, and the others."""
    lines = _whole_lines(path).splitlines(keepends=True)
    answered = [msgspec.json.decode(line, type=Line).answered for line in lines]
    good = [line for line, ok in zip(lines, answered, strict=True) if ok]
    return good, [line for line, ok in zip(lines, answered, strict=True) if not ok]


def _whole_lines(path: Path) -> bytes:
    """Without a last one that was cut off; nothing of a file that is not there."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
