"""When a run saves its training state, and what makes a checkpoint of the stages' files."""

from __future__ import annotations

import math
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lemix_hpc.checkpoints import store
from lemix_hpc.checkpoints.manifest import Manifest, SavedNode
from lemix_hpc.records.schema import CheckpointFacts
from lemix_hpc.runtime.scheduler.save_plan import SavePlan
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout

RETRY_S = 5.0
LONGEST_RETRY_S = 300.0
"""A save that failed is tried again after so long; twice as long after each further failure, up to the longest."""
LAST_RETRY_S = 2.0
LAST_TIMEOUT_S = 120.0
"""At the end of a run, when nothing else is left to do: how often the last save is tried, and for how long."""


@dataclass(slots=True)
class _Save:
    """A save under way: the unfinished directory, and what the stages have told."""

    number: int
    path: Path
    reports: list[m.Saved] = field(default_factory=list)


class Checkpoints:
    """One save at a time. A failed one is told of and tried again, at the end of the run for a limited time.

    Nodes that average their weights are all saved behind the same average. `wake` ends the rank's sleep. In a thread
    `secure` makes safe what a checkpoint counts on, before that counts; it may raise OSError.
    """

    def __init__(
        self,
        plan: SavePlan,
        layout: Layout,
        mailbox: Mailbox,
        now: Callable[[], float],
        wake: Callable[[], None],
        *,
        secure: Callable[[], None] = lambda: None,
        pool: Executor | None = None,
    ) -> None:
        self._plan = plan
        self._layout = layout
        self._mailbox = mailbox
        self._now = now
        self._wake = wake
        self._averages = plan.template.across_nodes == "average"
        self._round = -1
        self._secure = secure
        self._pool = pool or ThreadPoolExecutor(1, "checkpoints")
        self._number = 0
        self._steps = self._begun_steps = self._covered = plan.template.step
        self._begun_at: float | None = None
        self._over = False
        self._given_up_at = math.inf
        self._retry_at = math.inf
        self._retry_after = RETRY_S
        self._save: _Save | None = None
        self._completion: Future[store.Checkpoint] | None = None
        self._manifests: list[Manifest] = []
        self._failures: list[str] = []
        self._failing = False

    def turn(self, steps: int) -> bool:
        """Begin what is due and end what is complete. False when there was nothing to do. `steps`: of all nodes so far, in all
        attempts."""
        self._steps = steps
        if self._begun_at is None:
            self._begun_at = self._now()
        ended = self._completion is not None and self._completion.done()
        if ended:
            self._end()
        due = self._save is None and self._is_due
        if due:
            self._begin()
        return ended or due

    @property
    def due(self) -> float:
        """When the clock alone makes a save due [s]; inf if it does not."""
        every, begun = self._plan.every_s, self._begun_at
        if self._save is not None:
            return math.inf
        if every is None or begun is None or self._steps == self._begun_steps or self._over:
            return self._retry_at
        return min(begun + every, self._retry_at)

    def clear(self) -> None:
        """Before the run: remove what an earlier attempt has left unfinished."""
        try:
            store.remove_unfinished(self._plan.directory)
        except OSError as error:
            print(f"unfinished checkpoints could not be removed: {error}", flush=True)

    def finish(self) -> None:
        """Nothing is trained any more: end the save that is under way, and save what has been learned since."""
        self._over = True
        if self._retry_at < math.inf:
            self._retry_at = self._now()
        if self._save is not None:
            self._ask(self._save)  # the average that it waits for may never come

    @property
    def at_rest(self) -> bool:
        """Whether no save is under way, due, or to be tried again at the end."""
        again = self._over and self._uncovered and self._now() < self._given_up_at
        return self._save is None and not self._is_due and not again

    @property
    def trouble(self) -> str | None:
        """Why the last save has failed, None if it has not."""
        return self._failures[-1] if self._failing else None

    @property
    def unsaved(self) -> str | None:
        """At the end: why what was learned last is in no checkpoint, None if it is."""
        return self.trouble if self._over and self._uncovered else None

    def summed(self, number: int) -> None:
        """A sum over nodes has come into force on some stage."""
        self._round = max(self._round, number)

    def received(self, saved: m.Saved) -> None:
        """A stage's report."""
        save = self._save
        assert save is not None and saved.number == save.number, "one save at a time"
        save.reports.append(saved)
        if len(save.reports) == len(self._plan.nodes) * self._layout.stages:
            self._complete(save)

    def facts(self) -> CheckpointFacts:
        """What there is to tell at the end."""
        files = [file for manifest in self._manifests for node in manifest.saved for file in node.files]
        return CheckpointFacts(
            saved=len(self._manifests),
            failed=len(self._failures),
            last_step=self.last_step,
            last_failure=self._failures[-1] if self._failures else None,
            nbytes=sum(file.nbytes for file in files),
            snapshot_max_s=max((file.snapshot_s for file in files), default=None),
            write_max_s=max((file.write_s for file in files), default=None),
            unsaved_steps=self._steps - self._covered if self.unsaved is not None else 0,
        )

    @property
    def last_step(self) -> int | None:
        """The step of the last checkpoint of this run."""
        return self._manifests[-1].step if self._manifests else None

    def close(self) -> None:
        """The last call."""
        self._pool.shutdown()

    @property
    def _uncovered(self) -> bool:
        """Whether the end of the run has something to save."""
        return self._plan.at_end and self._steps > self._covered

    @property
    def _is_due(self) -> bool:
        now = self._now()
        if self._over:
            tried = self._retry_at < math.inf
            return self._uncovered and now < self._given_up_at and (not tried or now >= self._retry_at)
        new = self._steps - self._begun_steps
        by_steps = self._plan.every_steps is not None and new >= self._plan.every_steps
        return by_steps or (new > 0 and now >= self.due) or now >= self._retry_at

    def _begin(self) -> None:
        self._number += 1
        self._retry_at = math.inf
        self._begun_at, self._begun_steps = self._now(), self._steps
        try:
            # No two attempts at a run may ever write into one directory.
            path = store.begin(self._plan.directory, f"{self._number}-{secrets.token_hex(4)}")
        except OSError as error:
            self._failed(f"{self._plan.directory}: {error.strerror or error}")
            return
        self._save = _Save(self._number, path)
        self._ask(self._save)

    def _ask(self, save: _Save) -> None:
        # Mid-run behind the next average, which no node should have yet; at the end behind the last there was.
        behind = self._round + (not self._over) if self._averages else -1
        order = m.SaveNext(save.number, str(save.path), behind)
        for node in self._plan.nodes:
            self._mailbox.send(self._layout.worker(node, 0), Inbox.STAGE, order)

    def _complete(self, save: _Save) -> None:
        """All stages have reported."""
        errors = [saved.error for saved in save.reports if saved.error]
        rounds = {saved.round for saved in save.reports}
        if not errors and len(rounds) == 1:
            manifest = self._manifest(save.reports)
            self._completion = self._pool.submit(_completed, save.path, manifest, self._plan, self._secure)
            self._completion.add_done_callback(lambda _: self._wake())
            return
        self._save = None
        self._pool.submit(shutil.rmtree, save.path, ignore_errors=True)
        if errors:
            self._failed(errors[0])
        else:  # a node had the next average before it was asked: all are asked again, for a later one
            self._begin()

    def _end(self) -> None:
        completion, save = self._completion, self._save
        assert completion is not None and save is not None, "a save was complete"
        self._completion = self._save = None
        try:
            checkpoint = completion.result()
        except OSError as error:
            self._pool.submit(shutil.rmtree, save.path, ignore_errors=True)
            self._failed(f"{error.filename or save.path}: {error.strerror or error}")
            return
        self._retry_after, self._failing = RETRY_S, False
        self._manifests.append(checkpoint.manifest)
        self._covered = max(self._covered, checkpoint.manifest.step)
        print(f"checkpoint {checkpoint.path.name}: {checkpoint.manifest.nbytes} bytes", flush=True)

    def _failed(self, why: str) -> None:
        now, self._failing = self._now(), True
        self._failures.append(why)
        if self._over:
            self._retry_at = now + LAST_RETRY_S
            self._given_up_at = min(self._given_up_at, now + LAST_TIMEOUT_S)
            if self._retry_at >= self._given_up_at:
                self._given_up_at = now
        else:
            self._retry_at = now + self._retry_after
            self._retry_after = min(2 * self._retry_after, LONGEST_RETRY_S)
        again = "" if now >= self._given_up_at else f"; it is tried again in {self._retry_at - now:g} s"
        print(f"the training state could not be saved: {why}{again}", flush=True)

    def _manifest(self, reports: Sequence[m.Saved]) -> Manifest:
        nodes = [self._node([saved for saved in reports if saved.node == node]) for node in self._plan.nodes]
        return msgspec.structs.replace(
            self._plan.template,
            step=sum(node.steps for node in nodes),
            created=time.time(),
            dtype=reports[0].dtype,
            saved=nodes,
        )

    def _node(self, reports: Sequence[m.Saved]) -> SavedNode:
        first = reports[0]
        files = sorted((saved.file for saved in reports), key=lambda file: file.stage)
        return SavedNode(first.node, first.version, first.steps, first.updates, first.schedule, first.round, files)


def _completed(path: Path, manifest: Manifest, plan: SavePlan, secure: Callable[[], None]) -> store.Checkpoint:
    """In a thread: the names of files may take as long as their content."""
    secure()
    checkpoint = store.complete(path, manifest)
    try:
        store.prune(plan.directory, plan.keep)
    except OSError as error:
        print(f"an older checkpoint could not be removed: {error}", flush=True)
    return checkpoint
