"""The passes that a stage runs: what each takes, and where its result goes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lemix_hpc.engines.protocol import MicroBatch, Payload, StageEngine
from lemix_hpc.engines.protocol import Work as EngineWork
from lemix_hpc.policy.latency import Shape
from lemix_hpc.runtime import messages as m
from lemix_hpc.runtime.groups import StageGroups
from lemix_hpc.runtime.layout import Layout
from lemix_hpc.runtime.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.records import SpanKind
from lemix_hpc.runtime.weight_copies import WeightCopies, snapshot


@dataclass(frozen=True, slots=True)
class StagePlace:
    """Where a stage stands, and which nodes get its weights every `copy_every` steps."""

    layout: Layout
    node: int
    stage: int
    copy_to: tuple[int, ...] = ()
    copy_every: int = 1

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.layout.stages - 1


M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Arrived(Generic[M]):
    """What there is to do on a stage, the tensor that came with it, and when it came [s]."""

    message: M
    payload: Payload | None
    since: float


Update = Arrived[m.Commit | m.Install]
"""A weight update in its place between forwards: an optimizer step (with tied gradients), or weights of another node."""


@dataclass(slots=True)
class Pass:
    """Work that was started; `done` takes its result. `since`: start of the current stretch, None while it rests.

    `shape` is what it costs by, None for weight updates; `worked` the seconds of all stretches that are closed.
    """

    kind: SpanKind
    work: EngineWork[Any]
    done: Callable[[Any], None]
    tasks: list[int]
    batch: int = -1
    shape: Shape | None = None
    since: float | None = None
    until: float = 0.0
    worked: float = 0.0


class Passes:
    """Makes passes out of what arrived, and sends on what they give. Knows the stage's weight version."""

    def __init__(
        self, place: StagePlace, engine: StageEngine, mailbox: Mailbox, now: Callable[[], float], *, gpipe: bool
    ):
        self.place = place
        self.version = 0
        self.groups = StageGroups(place.stage, place.layout.stages, gpipe=gpipe)
        self.copies = WeightCopies()
        self.own_updates: deque[Update] = deque()
        self._engine = engine
        self._mailbox = mailbox
        self._now = now
        self._sealed_behind: dict[int, tuple[float, Payload | None]] = {}

    def serve(self, arrived: Arrived[m.Serve]) -> Pass:
        """Forward of a serving batch, under the version that it met on the stages before."""
        message = arrived.message
        if not self.place.first and message.version != self.version:
            raise RuntimeError(
                f"batch {message.batch.id} ran under weights {message.version}, this stage has {self.version}"
            )
        batch, version = message.batch, self.version

        def done(result: Any) -> None:
            if not self.place.last:
                self._down(m.Serve(batch, version, message.key), result)
            elif result is not None:
                self.to_leader(m.Served(batch.id, result, version, self._now()))

        tasks = [sequence.request for sequence in batch.sequences]
        shape = Shape.of([s.length for s in batch.sequences], [s.cached for s in batch.sequences])
        return Pass("serve", self._engine.serve(batch, arrived.payload), done, tasks, batch.id, shape)

    def forward(self, arrived: Arrived[MicroBatch]) -> Pass:
        """Training forward; on the last stage it makes its own backward ready."""
        micro_batch = arrived.message
        self.groups.started(micro_batch)

        def done(result: Any) -> None:
            self.groups.forward_done(micro_batch)
            if self.place.last:
                self.to_leader(m.Loss(micro_batch.id, result))
                self.groups.gradient_arrived(micro_batch.id, None, self._now())
            else:
                self._down(m.Forward(micro_batch), result)

        work = self._engine.forward(micro_batch, arrived.payload)
        return Pass("forward", work, done, [micro_batch.id], shape=_shape(micro_batch))

    def backward(self) -> Pass:
        """Backward of the next micro-batch whose gradient is there."""
        gradient = self.groups.take_gradient()
        micro_batch = gradient.micro_batch

        def done(result: Any) -> None:
            self.groups.backward_done(micro_batch)
            if not self.place.first:
                self._up(m.Backward(micro_batch.id), result)
            self._seal(micro_batch.group)

        work = self._engine.backward(micro_batch.id, gradient.grad)
        return Pass("backward", work, done, [micro_batch.id], shape=_shape(micro_batch))

    def sealed_behind(self, message: m.Sealed, tied: Payload | None) -> None:
        """The stage after this one has all gradients of a group."""
        self._sealed_behind[message.group] = (message.square_norm, tied)
        self._seal(message.group)

    def _seal(self, group: int) -> None:
        """Set a group's gradient aside once it is complete here and behind; the first stage then decides to step."""
        if not self.groups.complete(group) or not (self.place.last or group in self._sealed_behind):
            return
        behind, tied = self._sealed_behind.pop(group, (0.0, None))
        gradient = self._engine.seal(group, tied)
        self.groups.close(group)
        square_norm = behind + gradient.square_norm
        if self.place.first:
            self.own_updates.append(Arrived(m.Commit(group, math.sqrt(square_norm)), gradient.tied, self._now()))
        else:
            self._up(m.Sealed(group, square_norm), gradient.tied)

    def update_may_run(self, update: Update) -> bool:
        """Whether weights may change now: no pass needs the old ones, and copied ones are here in full."""
        if self._engine.holds_graph:
            return False
        return isinstance(update.message, m.Commit) or self.copies.complete(update.message.version)

    def update(self, update: Update) -> Pass:
        """Change the weights, and tell the next stage in order with the activations."""
        if isinstance(update.message, m.Install):
            return self._install(update.message)
        commit = update.message

        def done(_: Any) -> None:
            self.version += 1
            self._down(commit, update.payload)
            if self.place.first:
                self.to_leader(m.Stepped(self.place.node, commit.group, self.version))
            if self.version % self.place.copy_every == 0:
                self._copy_out()

        def work() -> EngineWork[None]:
            yield from self._engine.prepare(commit.group, commit.grad_norm, update.payload)
            yield from self._engine.publish(commit.group)

        return Pass("step", work(), done, [])

    def _install(self, install: m.Install) -> Pass:
        def work() -> EngineWork[None]:
            self._engine.write_weights(self.copies.take(install.version))
            yield from ()

        def done(_: Any) -> None:
            self.version = install.version
            self._down(install)

        return Pass("copy", work(), done, [])

    def _copy_out(self) -> None:
        weights = [snapshot(tensor) for tensor in self._engine.read_weights()] if self.place.copy_to else []
        for node in self.place.copy_to:
            rank = self.place.layout.worker(node, self.place.stage)
            for index, tensor in enumerate(weights or [None]):
                self._mailbox.send(rank, Inbox.STAGE, m.WeightsPart(self.version, index, len(weights)), tensor)

    def forget(self, message: m.Forget) -> None:
        """Requests are over on all stages."""
        self._engine.forget(message.requests)
        self._down(message)

    def to_leader(self, message: m.AnyMessage) -> None:
        self._mailbox.send(self.place.layout.leader(self.place.node), Inbox.LEADER, message)

    def _down(self, message: m.AnyMessage, payload: Payload | None = None) -> None:
        if not self.place.last:
            self._mailbox.send(self._rank(self.place.stage + 1), Inbox.STAGE, message, payload)

    def _up(self, message: m.AnyMessage, payload: Payload | None) -> None:
        self._mailbox.send(self._rank(self.place.stage - 1), Inbox.STAGE, message, payload)

    def _rank(self, stage: int) -> int:
        return self.place.layout.worker(self.place.node, stage)


def _shape(micro_batch: MicroBatch) -> Shape:
    return Shape.of([micro_batch.length] * micro_batch.rows)
