"""Files of lines that each attempt goes on with where the one before it ends: `samples.jsonl` and `results.jsonl`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from lemix_hpc.records.attempts import Attempt, AttemptStart
from lemix_hpc.records.files import sync_directory
from lemix_hpc.records.schema import RESULTS, SAMPLES

_COUNTED: dict[str, Callable[[AttemptStart], int | None]] = {
    RESULTS: lambda start: start.results,
    SAMPLES: lambda start: start.samples,
}


@dataclass(frozen=True, slots=True)
class CountedFile:
    """A file of which the first `count` lines count; None: all that are whole."""

    path: Path
    count: int | None

    def lines(self) -> Iterator[bytes]:
        """With their line ends. Raises OSError."""
        with self.path.open("rb") as file:
            yield from (line for line in islice(file, self.count) if line.endswith(b"\n"))


class _Call(msgspec.Struct):
    """A sample, of a call that brought `of` together, if that had a name."""

    request: str | None = None
    of: int = 0


def line_chain(line: Sequence[Attempt], name: str) -> list[CountedFile]:
    """The files of this name of a lineage, in order, as far as they are there and count."""
    files: list[CountedFile] = []
    count: int | None = None
    for attempt in reversed(line):
        files.append(CountedFile(attempt.path / name, count))
        start = attempt.started
        assert start is not None, "only attempts that started are in a lineage"
        count = _COUNTED[name](start)
        if count is None:
            break  # It is the first one.
    return [file for file in reversed(files) if file.count != 0 and file.path.exists()]


def acknowledged(path: Path) -> int:
    """How many lines of a `samples.jsonl`, which may be missing, are of calls that are there as a whole. What was not written
    to the end was never acknowledged, and is sent again. Raises OSError."""
    if not path.exists():
        return 0
    whole = left = 0
    decoder = msgspec.json.Decoder(_Call)
    for count, line in enumerate(CountedFile(path, None).lines(), start=1):
        call = decoder.decode(line)
        left = (left or (1 if call.request is None else call.of)) - 1
        whole = whole if left else count
    return whole


def put_together(run_dir: Path, files: Sequence[CountedFile], name: str) -> None:
    """Let the run's directory have a file with all lines of a chain, instead of the link to its last one. Raises OSError."""
    if len(files) < 2:
        return
    partial = run_dir / f"{name}.partial"
    with partial.open("wb") as target:
        for file in files:
            target.writelines(file.lines())
        target.flush()
        os.fsync(target.fileno())
    partial.replace(run_dir / name)
    sync_directory(run_dir)
