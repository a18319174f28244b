"""Runs: start them, wait for them, and read what they did."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lemix_hpc.api.recipes import Changes, Given, loaded
from lemix_hpc.config.errors import UserError
from lemix_hpc.launch import cancel as endings
from lemix_hpc.launch.endings import failures
from lemix_hpc.launch.place import runs_root
from lemix_hpc.launch.preflight import preflight
from lemix_hpc.launch.registry import find_run
from lemix_hpc.launch.run_report import report_of
from lemix_hpc.launch.start import choose_cluster, resumable, start
from lemix_hpc.launch.start import resume as start_again
from lemix_hpc.launch.states import FINAL, read_progress, run_state
from lemix_hpc.launch.visibility import unseen
from lemix_hpc.records.reader import read_facts, record_directories, stream_run
from lemix_hpc.records.schema import Progress, RunFacts, ServedTask, Span, TrainedTask
from lemix_hpc.records.stretches import spans_of

if TYPE_CHECKING:
    from lemix_hpc.launch.start import ClusterKind

Cluster = Literal["auto", "slurm", "local", "allocation"]

LOOK_HERE_S, ASK_SLURM_S = 0.25, 5.0


class RunError(Exception):
    """A run that was waited for ended otherwise than well; `run` is it, and `state` in Slurm's words."""

    def __init__(self, run: Run, state: str) -> None:
        attempt = run._dir.last_attempt
        told = "" if attempt is None else failures(attempt).rstrip()
        super().__init__(f"{run.id} ended as {state}{f': {told}' if told else ''}")
        self.run, self.state = run, state


class Run:
    """A run that was started, whoever did it: by its id, the start of one, or its directory.

    Raises UserError where there is none, and from all that is asked of it where its files are missing or damaged. Times of
    records are in seconds since the run's start.
    """

    def __init__(self, run: str | Path) -> None:
        self._dir = find_run(str(run))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def id(self) -> str:
        return self._dir.id

    @property
    def path(self) -> Path:
        """Its directory."""
        return self._dir.path

    @property
    def state(self) -> str:
        """In Slurm's words: PENDING, RUNNING, COMPLETED, FAILED, ...; UNKNOWN if nobody can tell."""
        return run_state(self._dir, self._dir.read_record())

    @property
    def ended(self) -> bool:
        """Whether it will do no more by itself."""
        return self.state in FINAL

    @property
    def progress(self) -> Progress | None:
        """The last picture of it, such as `address` and `served`; None before the first."""
        return read_progress(self._dir)

    @property
    def facts(self) -> RunFacts:
        """What is known of it as a whole, such as limits and drift. There once its engines are ready."""
        return read_facts(record_directories(self.path)[-1])

    def report(self) -> dict[str, Any]:
        """All figures, by the names of docs/metrics.md; of a run that goes on, or was cut off, of what there is so far, and
        `complete` is False."""
        return report_of(self._dir)

    def requests(self) -> Iterator[ServedTask]:
        """All requests, one by one from the files."""
        return (task for task in stream_run(self.path).tasks() if isinstance(task, ServedTask))

    def micro_batches(self) -> Iterator[TrainedTask]:
        """All of training, one by one from the files."""
        return (task for task in stream_run(self.path).tasks() if isinstance(task, TrainedTask))

    def spans(self) -> Iterator[Span]:
        """What each stage did for which task and when, one by one from the files."""
        return (span for stretch in stream_run(self.path).stretches() for span in spans_of(stretch))

    def wait(self, timeout_s: float | None = None) -> str:
        """Until it has ended: its state then. Raises TimeoutError if it goes on for longer."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        every_s = ASK_SLURM_S if self._dir.read_record().cluster == "slurm" else LOOK_HERE_S
        while (state := self.state) not in FINAL:
            if end is not None and time.monotonic() + every_s > end:
                raise TimeoutError(f"{self.id} is still {state} after {timeout_s} s; it goes on")
            time.sleep(every_s)
        return state

    def stop(self) -> None:
        """Let it finish what it has begun, save, report and end. `resume` can go on with it."""
        endings.stop(self._dir, self._dir.read_record())

    def cancel(self) -> None:
        """End it at once."""
        endings.cancel(self._dir, self._dir.read_record())

    def resume(self, cluster: Cluster | None = None, *, renew: bool = False) -> None:
        """Go on with it where it ended before its work was done. Returns at once."""
        record = resumable(self._dir)
        kind = choose_cluster(cluster or record.cluster)
        recipe = loaded(self._dir.recipe, None)
        _tell(preflight(recipe, kind, self.path))
        start_again(self._dir, recipe.recipe, kind, renew=renew)


def submit(
    recipe: Given,
    changes: Changes | None = None,
    *,
    cluster: Cluster | None = None,
    out: str | Path | None = None,
    renew: bool = False,
) -> Run:
    """Start a run and return at once, as `lemix submit` does; it goes on when this program ends.

    What is noticed beforehand is warned of. Raises UserError with every mistake found, and nothing is started then.
    """
    ready = loaded(recipe, changes)
    kind: ClusterKind = choose_cluster(cluster or ready.recipe.cluster.kind)
    if renew and kind != "slurm":
        raise UserError(f"renew: only Slurm jobs have a limit that makes it necessary, and this run is {kind}")
    _tell(preflight(ready, kind))
    place = None if out is None else Path(out)
    if kind == "slurm" and (warning := unseen(ready.recipe, place or runs_root())):
        _tell([warning])
    return Run(start(ready.recipe, kind, place, renew=renew).run.path)


def run(
    recipe: Given,
    changes: Changes | None = None,
    *,
    cluster: Cluster | None = None,
    out: str | Path | None = None,
) -> Run:
    """Start a run and wait until it has ended. Whatever ends the wait, such as Ctrl-C, asks the run to stop.

    Raises UserError as `submit` does, and RunError if the run does not complete.
    """
    started = submit(recipe, changes, cluster=cluster, out=out)
    try:
        state = started.wait()
    except BaseException:
        started.stop()
        raise
    if state != "COMPLETED":
        raise RunError(started, state)
    return started


def rows(of: Iterable[msgspec.Struct]) -> list[dict[str, Any]]:
    """Requests, micro-batches or spans as dictionaries, as `pandas.DataFrame` takes them."""
    return [msgspec.structs.asdict(one) for one in of]


def _tell(notices: Iterable[str]) -> None:
    for notice in notices:
        warnings.warn(notice, stacklevel=3)
