"""The passes that a stage runs: what each takes, and where its result goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lemix_hpc.engines.protocol import MicroBatch, ServeBatch, StageEngine, Work
from lemix_hpc.policy.latency import Shape
from lemix_hpc.runtime.stage.expected_batches import ExpectedBatches
from lemix_hpc.runtime.stage.group_seals import GroupSeals
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.stage.micro_batch_tracker import Gradient, MicroBatchTracker
from lemix_hpc.runtime.stage.resting_activations import RestingActivations
from lemix_hpc.runtime.stage.weight_updates import WeightUpdates
from lemix_hpc.runtime.stage.work_items import Arrived, Pass
from lemix_hpc.runtime.transport import messages as m


class Passes:
    """Makes passes out of what arrived, and sends on what they give.

    `on_group_done` is called when all backwards of a group have run here; its gradient is whole for `seals` then, or later.
    """

    def __init__(
        self,
        links: StageLinks,
        engine: StageEngine,
        updates: WeightUpdates,
        now: Callable[[], float],
        on_group_done: Callable[[int], None],
        *,
        in_flight: int,
        gpipe: bool,
        flush: bool,
    ) -> None:
        self.expected = ExpectedBatches()
        self.groups = MicroBatchTracker(links.place.stage, in_flight, gpipe=gpipe, flush=flush)
        self.seals = GroupSeals(links, engine, updates, now)
        self.resting = RestingActivations(links, engine.offload, engine.bring_back)
        self._place = links.place
        self._links = links
        self._engine = engine
        self._updates = updates
        self._now = now
        self._on_group_done = on_group_done

    def serve(self, arrived: Arrived[m.Serve]) -> Pass:
        """Forward of a serving batch, under the version that it met on the stages before, or that its scheduler counts on."""
        message = arrived.message
        if message.version >= 0 and message.version != self._updates.version:
            raise RuntimeError(
                f"batch {message.batch.id} ran under weights {message.version}, this stage has {self._updates.version}"
            )
        batch, version = message.batch, self._updates.version
        prepared = self.expected.begins(batch.id)

        def done(result: Any) -> None:
            self.expected.over(batch.id)
            if not self._place.last:
                self._links.down(m.Serve(batch, version, message.key), result)
            elif result is not None:
                self._links.to_leader(m.Served(batch.id, result, version, self._now()))

        made = _serving(batch, self._engine.serve(batch, arrived.payload), done)
        made.worked, made.again = prepared, lambda: self.serve(arrived)
        return made

    def expect(self, arrived: Arrived[ServeBatch]) -> Pass:
        """What of a batch can be done before its activations come."""
        batch = arrived.message
        made = _serving(batch, self._engine.expect(batch), lambda _: self.expected.prepared(batch.id, made.worked))
        made.prepares = True
        return made

    def forward(self, arrived: Arrived[MicroBatch]) -> Pass:
        """Training forward; on the last stage it makes its own backward ready."""
        self.groups.started(arrived.message)
        return self._forward(arrived)

    def _forward(self, arrived: Arrived[MicroBatch]) -> Pass:
        micro_batch = arrived.message

        def done(result: Any) -> None:
            self.groups.forward_done(micro_batch)
            self.resting.rests(micro_batch.id)
            if self._place.last:
                self._links.to_leader(m.Loss(micro_batch.id, result))
                self.groups.gradient_arrived(micro_batch.id, None, self._now())
            else:
                self._links.down(m.Forward(micro_batch), result)

        work = self._engine.forward(micro_batch, arrived.payload)
        shape = _shape(micro_batch)
        return Pass("forward", work, done, [micro_batch.id], shape=shape, again=lambda: self._forward(arrived))

    @property
    def idle(self) -> bool:
        """Whether no pass has to follow one that has run, or of which the first stage has told."""
        return self.groups.idle and not self.seals.open and self.expected.idle

    def settle(self) -> bool:
        """Bring back what the next backward needs. Whether anything has changed."""
        return self.resting.settle(self.groups.next_backward)

    @property
    def backward_since(self) -> float:
        """Since when the next backward can run [s]; inf if none can."""
        micro_batch = self.groups.next_backward
        there = micro_batch is not None and self.resting.there(micro_batch)
        return self.groups.backward_since if there else math.inf

    def backward(self) -> Pass:
        """Backward of the next micro-batch whose gradient is there."""
        gradient = self.groups.take_gradient()
        self.resting.begins(gradient.micro_batch.id)
        return self._backward(gradient)

    def _backward(self, gradient: Gradient) -> Pass:
        micro_batch = gradient.micro_batch

        def done(result: Any) -> None:
            self.groups.backward_done(micro_batch)
            self.resting.over(micro_batch.id)
            if not self._place.first:
                self._links.up(m.Backward(micro_batch.id), result)
            if self.groups.complete(micro_batch.group):
                self.groups.close(micro_batch.group)
                self._on_group_done(micro_batch.group)

        work = self._engine.backward(micro_batch.id, gradient.grad)
        shape = _shape(micro_batch)
        return Pass("backward", work, done, [micro_batch.id], shape=shape, again=lambda: self._backward(gradient))

    def forget(self, message: m.Forget) -> None:
        """Requests are over on all stages."""
        self._engine.forget(message.requests)
        self._links.down(message)


def _serving(batch: ServeBatch, work: Work[Any], done: Callable[[Any], None]) -> Pass:
    # A task may have several sequences in a batch: a client's prompts, or choices.
    tasks = list(dict.fromkeys(sequence.request for sequence in batch.sequences))
    shape = Shape.of([s.length for s in batch.sequences], [s.cached for s in batch.sequences]) if tasks else None
    return Pass("serve", work, done, tasks, batch.id, shape, [s.request for s in batch.sequences if s.partial])


def _shape(micro_batch: MicroBatch) -> Shape:
    return Shape.of([micro_batch.length] * micro_batch.rows)
