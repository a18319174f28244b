"""Saving the state of a stage at one weight version of its node, without anybody waiting for a write.

The first stage chooses the version: that of its next update, or its own when no update is open. It tells all stages before it
tells them to prepare the update that follows, which would change what is saved. Each stage copies its state into host memory
when it has that version, as work that rests for serving; a process of low priority writes the copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.checkpoints.manifest import SavedFile
from lemix_hpc.checkpoints.resumption import NodeStart
from lemix_hpc.checkpoints.stage_state import StageState, file_name
from lemix_hpc.checkpoints.state_writer import StateWriter
from lemix_hpc.engines.protocol import StageEngine
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.stage.weight_updates import Average, Step, Update, WeightUpdates
from lemix_hpc.runtime.stage.work_items import Pass
from lemix_hpc.runtime.transport import messages as m


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What is to be written: a state, and how far the node was when it was taken."""

    order: m.Save
    state: StageState
    steps: int
    round: int
    seconds: float


class Saves:
    """One save at a time. `wake` ends this rank's sleep when a file is written; `pool` waits for the writing."""

    def __init__(
        self,
        links: StageLinks,
        engine: StageEngine,
        updates: WeightUpdates,
        now: Callable[[], float],
        wake: Callable[[], None],
        *,
        start: NodeStart,
        pool: Executor | None = None,
    ) -> None:
        self._links = links
        self._engine = engine
        self._updates = updates
        self._now = now
        self._wake = wake
        self._pool = pool or ThreadPoolExecutor(1, "save")
        self._writer = StateWriter()
        self._steps = start.steps
        self._round = -1
        self._asked: m.SaveNext | None = None
        self._begun = 0
        self._due: m.Save | None = None
        self._since = math.inf
        self._writing: Future[m.Saved] | None = None

    def ask(self, order: m.SaveNext) -> None:
        """On the first stage: save at the next version at which that can be. It may be asked again, on other terms."""
        if order.number == self._begun:
            return
        self._asked = order
        if self._updates.at_rest:
            self._begin()

    def published(self, update: Update) -> None:
        """An update has come into force on this stage."""
        if isinstance(update, Step):
            self._steps += 1
        elif isinstance(update, Average):
            self._round = update.sum.round
        self._begin()

    def order(self, save: m.Save) -> None:
        """Save at this version, which this stage has or will have next."""
        self._due, self._since = save, self._now()
        self._updates.hold_at(save.version)

    @property
    def since(self) -> float:
        """Since when there is a snapshot to take [s]; inf without one."""
        due = self._due is not None and self._due.version == self._updates.version
        # The copy's memory is that of the one before.
        return self._since if due and self._writing is None else math.inf

    def take(self) -> Pass:
        """The snapshot to take now."""
        order, start = self._due, self._now()
        assert order is not None, "picked as ready"
        self._due = None

        def done(state: StageState) -> None:
            self._updates.release()
            snapshot = _Snapshot(order, state, self._steps, self._round, self._now() - start)
            self._writing = self._pool.submit(self._write, snapshot)
            self._writing.add_done_callback(lambda _: self._wake())

        return Pass("save", self._engine.snapshot(), done, [])

    def poll(self) -> bool:
        """Report what has been written. False if nothing has."""
        if self._writing is None or not self._writing.done():
            return False
        self._links.to_leader(self._writing.result())
        self._writing = None
        return True

    @property
    def idle(self) -> bool:
        """Nothing is to be saved or being written."""
        return self._due is None and self._writing is None

    def close(self) -> None:
        """The last call."""
        self._pool.shutdown()
        self._writer.close()

    def _begin(self) -> None:
        """On the first stage: save the version that is in force, if that was asked for."""
        asked = self._asked
        if asked is None or self._round < asked.round:
            return
        self._asked, self._begun = None, asked.number
        save = m.Save(asked.number, self._updates.version, asked.directory)
        self._links.behind(save)
        self.order(save)

    def _write(self, snapshot: _Snapshot) -> m.Saved:
        """In a thread. A file that cannot be written is told like one that is."""
        place, order, state = self._links.place, snapshot.order, snapshot.state
        name, start = file_name(place.node, place.stage), self._now()
        nbytes, sha256, error = 0, "", ""
        try:
            written = self._writer.write(state, Path(order.directory, name))
            nbytes, sha256 = written.nbytes, written.sha256
        except OSError as failed:
            error = f"{failed.filename or order.directory}: {failed.strerror or failed}"
        return m.Saved(
            number=order.number,
            node=place.node,
            version=order.version,
            steps=snapshot.steps,
            round=snapshot.round,
            updates=state.updates,
            schedule=state.schedule,
            dtype=state.dtype,
            file=SavedFile(name, place.stage, nbytes, sha256, snapshot.seconds, self._now() - start),
            error=error,
        )
