"""Print the logs of ranks, and go on as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import FINAL, run_state
from lemix_hpc.records.attempts import attempts

LOOK_EVERY_S = 0.5
UNREAD_LOOKS = 120
"""In a row, a minute, after which files that cannot be read are given up."""


def print_logs(
    run: RunDir, rank: int | None, attempt: int | None = None, *, follow: bool, write: Callable[[str], None]
) -> None:
    """Write the lines of an attempt's logs, by default the last one's, those of several ranks each behind `rank R: `.

    Raises UserError if the rank has no log and none can come any more, and for an attempt that there is not.
    """
    record = run.read_record()
    if record.cluster == "simulated":
        raise UserError(f"{run.id} was simulated, so it has no logs; `lemix report {run.id}` prints its report")
    if rank is not None and rank >= record.world_size:
        raise UserError(f"--rank {rank}: the run has ranks 0 to {record.world_size - 1}")
    known = [each.number for each in attempts(run.path)]
    if attempt is not None and attempt not in known:
        there = f"attempts {known[0]} to {known[-1]}" if known else "none yet"
        raise UserError(f"--attempt {attempt}: the run has {there}")
    read: dict[Path, int] = {}
    unread = 0
    while True:
        try:
            # Asked before reading: what a run wrote until its end is then read in this turn.
            ended = not follow or run_state(run, record) in FINAL
            for path in _log_files(run, rank, attempt):
                _write_new(path, read, write, named=rank is None, last=ended)
            unread = 0
        except (UserError, OSError):
            # A file server that was away, or a file that is written this moment: the run goes on meanwhile.
            ended, unread = False, unread + 1
            if not follow or unread >= UNREAD_LOOKS:
                raise
        if ended:
            break
        time.sleep(LOOK_EVERY_S)
    if not read:
        which = f"rank {rank}" if rank is not None else "this run"
        raise UserError(f"{run.id}: there is no log of {which} yet in {run.logs}")


def _write_new(path: Path, read: dict[Path, int], write: Callable[[str], None], *, named: bool, last: bool) -> None:
    """The lines of a log behind those that were `read`."""
    prefix = f"{path.stem.replace('-', ' ')}: " if named else ""
    lines, read[path] = _new_lines(path, read.get(path, 0), last=last)
    for line in lines:
        write(prefix + line)


def launcher_logs(run: RunDir) -> list[Path]:
    """What mpiexec or srun wrote in the last attempt, and ranks before they had a log of their own; those with content."""
    last = run.last_attempt
    # The jobs of an array share a directory.
    candidates = [
        *([] if last is None else [run.launcher_log(last.number)]),
        run.supervisor_log,
        *sorted(run.submitit.glob(f"{run.read_record().job}_*_log.err")),
    ]
    return [log for log in candidates if log.is_file() and log.stat().st_size]


def last_lines(log: Path) -> str:
    """The last ten lines of a log, without blank ones."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-10:])


def _log_files(run: RunDir, rank: int | None, attempt: int | None) -> list[Path]:
    wanted = [each for each in attempts(run.path) if attempt in (None, each.number)]
    if not wanted:
        return [run.supervisor_log] if rank is None and run.supervisor_log.exists() else []
    launcher = run.launcher_log(wanted[-1].number)
    files = launcher.parent.glob("rank-*.log" if rank is None else f"rank-{rank}.log")
    common = [launcher] if rank is None else []
    if rank is None and attempt is None:
        common.insert(0, run.supervisor_log)
    return [log for log in common if log.exists()] + sorted(files, key=_number)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _new_lines(path: Path, offset: int, *, last: bool) -> tuple[list[str], int]:
    """Whole lines behind `offset`, and the offset behind them; with `last` an unfinished line too."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    if not last:
        content = content[: content.rfind(b"\n") + 1]
    return content.decode(errors="replace").splitlines(), offset + len(content)
