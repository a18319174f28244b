"""The life of a weight update on a node: prepared on every stage, reported ready up the pipeline, committed down it.

Preparing changes nothing that is served, and rests for serving. When all stages are ready the first one decides when to
commit; the marker travels in the same ordered channel as the activations, and every stage publishes when it comes. An
update goes by the weight version that it makes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lemix_hpc.engines.protocol import Payload, StageEngine, Work
from lemix_hpc.records.schema import SpanKind
from lemix_hpc.runtime.stage.allreduce import Sum
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.stage.weight_copies import WeightCopies, send_copy
from lemix_hpc.runtime.stage.work_items import Arrived, Pass
from lemix_hpc.runtime.transport import messages as m


class Update(Protocol):
    """One update as one stage sees it."""

    @property
    def kind(self) -> SpanKind: ...

    def publish(self) -> Work[None]:
        """Change the weights: short, and without a stop."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """An optimizer step by a sealed group; `tied` is the summed gradient of tied weights."""

    engine: StageEngine
    group: int
    grad_norm: float
    tied: Payload | None
    kind: SpanKind = "step"

    def prepare(self) -> Work[None] | None:
        return self.engine.prepare(self.group, self.grad_norm, self.tied)

    def publish(self) -> Work[None]:
        return self.engine.publish(self.group)


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of the weights of several nodes, whose sum is here on all stages."""

    engine: StageEngine
    sum: Sum
    nodes: int
    kind: SpanKind = "copy"

    def prepare(self) -> Work[None] | None:
        return self.engine.prepare_average(self.sum.own, self.sum.total, self.nodes)

    def publish(self) -> Work[None]:
        return self.engine.publish_average()


@dataclass(frozen=True, slots=True)
class Copy:
    """Weights of another node, which are here in full: that was their preparation."""

    engine: StageEngine
    weights: list[Payload]
    kind: SpanKind = "copy"

    def publish(self) -> Work[None]:
        self.engine.write_weights(self.weights)
        return
        yield


class WeightUpdates:
    """A stage's updates and its weight version.

    `asked`: the first stage waits for permission to commit, or has it and has not committed yet. `open` updates are between the
    start of their preparation and their publication. On the first stage one at a time is, and others wait for their turn; on
    a later one the next may be there before the last is published, and waits. `on_published` is told of each publication.
    """

    def __init__(
        self,
        links: StageLinks,
        engine: StageEngine,
        now: Callable[[], float],
        on_published: Callable[[Update], None],
        *,
        version: int = 0,
    ) -> None:
        self.version = version
        self._held_at: int | None = None
        self._links = links
        self._engine = engine
        self._now = now
        self._copies = WeightCopies()
        self._waiting: deque[Step | Average] = deque()
        self._open: dict[int, Update] = {}
        self._preparation: Arrived[Pass] | None = None
        self._ready_here: set[int] = set()
        self._ready_behind: set[int] = set()
        self._due: list[int] = []
        self._told = version
        self._ready: Arrived[m.Commit] | None = None
        self._on_published = on_published
        self.asked = False

    @property
    def stepping(self) -> bool:
        """Whether a step is open or waits for its turn."""
        return any(isinstance(update, Step) for update in (*self._waiting, *self._open.values()))

    def step(self, group: int, grad_norm: float, tied: Payload | None) -> None:
        """On the first stage: `group` is sealed on all stages."""
        self.add(Step(self._engine, group, grad_norm, tied))

    def add(self, update: Step | Average) -> None:
        """On the first stage: an update that all stages can prepare."""
        self._waiting.append(update)
        self._begin_next()

    def prepare(self, message: m.Prepare, tied: Payload | None) -> None:
        """The first stage has begun a step."""
        self.open(message.version, Step(self._engine, message.group, message.grad_norm, tied))

    def open(self, version: int, update: Step | Average) -> None:
        """An update that was begun on the first stage, to be prepared when its turn comes."""
        self._open[version] = update
        self._prepare_next()

    def copy_arrived(self, part: m.WeightsPart, payload: Payload | None) -> None:
        """A tensor of another node's weights."""
        self._copies.add(part, payload)
        if self._copies.complete(part.version):
            self._open[part.version] = Copy(self._engine, self._copies.take(part.version))
            self._prepared(part.version)

    @property
    def at_rest(self) -> bool:
        """Whether no update is between the start of its preparation and its publication."""
        return not self._open

    def hold_at(self, version: int) -> None:
        """Prepare nothing on top of this version until `release`: it is going to be saved."""
        self._held_at = version

    def release(self) -> None:
        """It has been."""
        self._held_at = None
        self._prepare_next()

    def prepared_behind(self, version: int) -> None:
        """All stages behind this one have prepared an update."""
        self._ready_behind.add(version)
        self._look_if_due(version)

    @property
    def preparation_since(self) -> float:
        """Since when there is an update to prepare [s]; inf without one."""
        return math.inf if self._preparation is None else self._preparation.since

    def take_preparation(self) -> Pass:
        """The preparation to start now."""
        assert self._preparation is not None, "picked as ready"
        preparation, self._preparation = self._preparation.message, None
        return preparation

    @property
    def decided(self) -> Arrived[m.Commit] | None:
        """On the first stage: the update to commit now, where nobody has to be asked."""
        return self._ready if self.may_publish() and not self.asked else None

    @property
    def holding(self) -> bool:
        """Whether training has to wait: an update is about to be committed, and no batch behind it may wait for a pass."""
        return self._told > self.version

    def settle(self) -> None:
        """Between two passes: report what is ready here and behind. The first stage asks for permission to commit it, where
        somebody has to be asked."""
        if not self.may_publish():
            return
        self.report()
        if self._ready is not None and not self.asked:
            self.asked = self._engine.ask_to_commit()

    def report(self) -> None:
        """Report what is ready here and behind to the stage before; on the first one, let it be committed."""
        for version in self._due:
            self._told = max(self._told, version)
            if self._links.place.first:
                self._ready = Arrived(m.Commit(version), None, self._now())
            else:
                self._links.up(m.Prepared(version))
        self._due.clear()

    def permitted(self) -> m.Commit:
        """On the first stage: the update that may be committed now."""
        assert self._ready is not None, "asked for"
        return self._ready.message

    def may_publish(self) -> bool:
        """Whether the weights may change now: no micro-batch between its forward and its backward needs the old ones."""
        return not self._engine.holds_graph

    def publish(self, commit: m.Commit) -> Pass:
        """Put an update in force, and tell the next stage in order with the activations."""
        update = self._open[commit.version]
        self._ready, self.asked = None, False

        def done(_: Any) -> None:
            self.version = commit.version
            self._open = {version: later for version, later in self._open.items() if version > commit.version}
            self._ready_here = {version for version in self._ready_here if version > commit.version}
            self._ready_behind = {version for version in self._ready_behind if version > commit.version}
            self._links.down(commit)
            if not isinstance(update, Copy):
                self._changed(update)
            self._on_published(update)
            self._begin_next()
            self._prepare_next()

        return Pass(update.kind, update.publish(), done, [])

    def _begin_next(self) -> None:
        """On the first stage: begin the step that has waited longest, unless one is open."""
        if self._open or not self._waiting:
            return
        update, version = self._waiting.popleft(), self.version + 1
        if isinstance(update, Step):
            self._links.behind(m.Prepare(version, update.group, update.grad_norm), update.tied)
        else:
            self._links.behind(m.PrepareAverage(version))
        self.open(version, update)

    def _prepare_next(self) -> None:
        """Let the stage prepare the update that comes next. What is prepared must be published first: engines keep one."""
        if self._held_at == self.version:
            return
        version = self.version + 1
        update = self._open.get(version)
        if not isinstance(update, Step | Average) or self._preparation is not None or version in self._ready_here:
            return
        work = update.prepare()
        if work is None:
            self._prepared(version)
        else:
            preparation = Pass(update.kind, work, lambda _: self._prepared(version), [])
            self._preparation = Arrived(preparation, None, self._now())

    def _prepared(self, version: int) -> None:
        self._ready_here.add(version)
        self._look_if_due(version)

    def _look_if_due(self, version: int) -> None:
        """Once an update is ready here and behind, the stage before is to know; on the first stage, the newest is due."""
        if version in self._ready_here and (self._links.place.last or version in self._ready_behind):
            self._due.append(version)

    def _changed(self, update: Update) -> None:
        """This node has changed its weights."""
        place = self._links.place
        if place.first and isinstance(update, Step):
            self._links.to_leader(
                m.Stepped(place.node, update.group, self.version, not math.isfinite(update.grad_norm))
            )
        if self.version % place.copy_every == 0:
            send_copy(self._engine, self._links, self.version)
