"""The attempts of a run: each start of its ranks has a directory of its own, `attempts/K`, and nobody else writes there.

A number is claimed by making its directory, which only one can. What users look for in the run's directory, such as
`tasks.jsonl`, is a link to the current attempt's file.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes
from lemix_hpc.records.files import replace
from lemix_hpc.records.made_by import made_by
from lemix_hpc.records.parts import Reach

T = TypeVar("T")

ATTEMPTS = "attempts"
CURRENT = "current"

EndReason = Literal[
    "finished",
    "drained",
    "unsaved",
    "diverged",
    "time-limit",
    "preempted",
    "cancelled",
    "node-failure",
    "killed",
    "out-of-memory",
    "error",
]


class AttemptStart(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt goes on from (`start.json`). It is written before anything else, and fences off those before it.

    `inherits`: the attempt that it continues; `journal_part` and `journal_bytes` of that one's journal, up to which it
    counts, its `tasks.jsonl` up to `tasks`, and so many lines of its `results.jsonl` and `samples.jsonl`. What a rank of it
    writes afterwards does not. None: there was none. `clock`: where the time of the run goes on [s]. `checkpoint`: its name,
    None where training starts over, and `versions` of each node's weights in it. `damage`: what could not be read and is new,
    for people. `time`: seconds since the epoch.
    """

    time: float
    host: str
    job: str | None = None
    inherits: int | None = None
    journal_part: int = 0
    journal_bytes: int = 0
    tasks: Reach | None = None
    results: int | None = None
    samples: int | None = None
    clock: float = 0.0
    checkpoint: str | None = None
    versions: dict[int, int] = {}
    damage: list[str] = []


class AttemptEnd(msgspec.Struct, frozen=True):
    """Why an attempt ended (`end.json`), by its scheduler rank, or by whoever found that it had. `time`: since the epoch."""

    reason: EndReason
    message: str
    time: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """The directory of one attempt."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def run_dir(self) -> Path:
        return self.path.parent.parent

    @property
    def failure(self) -> Path:
        """One line for each rank that failed."""
        return self.path / "failure.txt"

    @property
    def started(self) -> AttemptStart | None:
        """None until it is known what it goes on from."""
        return _read(self.path / "start.json", AttemptStart)

    @property
    def ended(self) -> AttemptEnd | None:
        """None while it runs, and if nobody could say why it ended."""
        return _read(self.path / "end.json", AttemptEnd)

    @property
    def superseded(self) -> bool:
        """Whether a later attempt has begun, which knows nothing of what this one still does."""
        return (self.path.parent / str(self.number + 1)).exists()

    def must_count(self) -> None:
        """Raises RuntimeError in an attempt that was taken for dead, and was left behind."""
        if self.superseded:
            raise RuntimeError("a later attempt goes on with the run; what this one still does is not counted")

    def start(self, start: AttemptStart) -> None:
        """Write down what it goes on from. Raises OSError."""
        _store(self.path / "start.json", start)

    def end(self, end: AttemptEnd) -> None:
        """Write down why it ended. Raises OSError."""
        _store(self.path / "end.json", end)

    def publish(self, *names: str) -> None:
        """Let these of its files be found in the run's directory, once it is the current attempt. Raises OSError."""
        for name in names:
            link = self.run_dir / name
            if link.is_file() and not link.is_symlink():
                link.unlink()  # Those of all attempts were put together, and now there is one more.
            with contextlib.suppress(FileExistsError):
                link.symlink_to(Path(ATTEMPTS, CURRENT, name))

    def make_current(self) -> None:
        """From now on the run's files are this attempt's, unless a later one has begun. Raises OSError."""
        if self.superseded:
            return
        link = self.path.parent / CURRENT
        new = link.with_name(f"{CURRENT}.{self.number}")
        new.unlink(missing_ok=True)
        new.symlink_to(self.path.name)
        new.replace(link)


def claim(run_dir: Path) -> Attempt:
    """A new attempt, behind all that there are. Raises OSError."""
    directory = run_dir / ATTEMPTS
    directory.mkdir(exist_ok=True)
    number = max((attempt.number for attempt in attempts(run_dir)), default=-1)
    while True:
        number += 1
        attempt = Attempt(directory / str(number))
        with contextlib.suppress(FileExistsError):
            attempt.path.mkdir()
            return attempt


def claim_next(before: Attempt) -> Attempt | None:
    """The attempt right behind this one; None if that is somebody else's. Raises OSError."""
    attempt = Attempt(before.path.with_name(str(before.number + 1)))
    try:
        attempt.path.mkdir()
    except FileExistsError:
        return None
    return attempt


def attempts(run_dir: Path) -> list[Attempt]:
    """All attempts of a run in order; none for a simulated one."""
    try:
        paths = [path for path in (run_dir / ATTEMPTS).iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
    return sorted(map(Attempt, paths), key=lambda attempt: attempt.number)


def lineage(run_dir: Path) -> list[Attempt]:
    """The attempts whose work counts, in order: the last one that started, those that it goes on from, and so on back."""
    found: list[Attempt] = []
    wanted: int | None = None
    for attempt in reversed(attempts(run_dir)):
        start = attempt.started
        if start is not None and (not found or attempt.number == wanted):
            found.append(attempt)
            wanted = start.inherits
    return found[::-1]


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except BROKEN_JSON as error:
        raise UserError(f"{path}: not a file that this version can read: {error}{made_by(path)}") from error


def _store(path: Path, content: msgspec.Struct) -> None:
    replace(path, msgspec.json.format(msgspec.json.encode(content)) + b"\n", sync=True)
