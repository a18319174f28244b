"""The passes that a stage runs: what each takes, and where its result goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lemix_hpc.engines.protocol import MicroBatch, Payload, StageEngine
from lemix_hpc.policy.latency import Shape
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.stage.micro_batch_tracker import Gradient, MicroBatchTracker
from lemix_hpc.runtime.stage.resting_activations import RestingActivations
from lemix_hpc.runtime.stage.weight_updates import WeightUpdates
from lemix_hpc.runtime.stage.work_items import Arrived, Pass
from lemix_hpc.runtime.transport import messages as m


class Passes:
    """Makes passes out of what arrived, and sends on what they give.

    `on_group_done` is called when all backwards of a group have run here; its gradient is `whole` then, or later.
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
        self.groups = MicroBatchTracker(links.place.stage, in_flight, gpipe=gpipe, flush=flush)
        self.resting = RestingActivations(links, engine.offload, engine.bring_back)
        self._place = links.place
        self._links = links
        self._engine = engine
        self._updates = updates
        self._now = now
        self._sealed_behind: dict[int, m.Sealed] = {}
        self._tied: dict[int, Payload] = {}
        self._whole: set[int] = set()
        self._on_group_done = on_group_done

    def serve(self, arrived: Arrived[m.Serve]) -> Pass:
        """Forward of a serving batch, under the version that it met on the stages before, or that its scheduler counts on."""
        message = arrived.message
        if message.version >= 0 and message.version != self._updates.version:
            raise RuntimeError(
                f"batch {message.batch.id} ran under weights {message.version}, this stage has {self._updates.version}"
            )
        batch, version = message.batch, self._updates.version

        def done(result: Any) -> None:
            if not self._place.last:
                self._links.down(m.Serve(batch, version, message.key), result)
            elif result is not None:
                self._links.to_leader(m.Served(batch.id, result, version, self._now()))

        # A task may have several sequences in a batch: a client's prompts, or choices.
        tasks = list(dict.fromkeys(sequence.request for sequence in batch.sequences))
        shape = Shape.of([s.length for s in batch.sequences], [s.cached for s in batch.sequences]) if tasks else None
        work, partial = self._engine.serve(batch, arrived.payload), [s.request for s in batch.sequences if s.partial]
        return Pass("serve", work, done, tasks, batch.id, shape, partial, again=lambda: self.serve(arrived))

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

    def whole(self, group: int) -> None:
        """A group's gradient has everything that belongs to it on this stage."""
        self._whole.add(group)
        self._seal(group)

    @property
    def sealing(self) -> bool:
        """Whether a group has ended here, and the stages behind have not said yet that it has there."""
        return bool(self._whole)

    def sealed_behind(self, message: m.Sealed) -> None:
        """The stages behind this one have all gradients of a group."""
        self._sealed_behind[message.group] = message
        self._seal(message.group)

    def tied_arrived(self, group: int, gradient: Payload | None) -> None:
        """On the first stage: the last one's gradient of the weights that both have."""
        assert gradient is not None, "it is what the message is for"
        self._tied[group] = gradient
        self._seal(group)

    def _seal(self, group: int) -> None:
        """Set a group's gradient aside once it is whole here and behind; the first stage then decides to step."""
        behind = m.Sealed(group, 0.0) if self._place.last else self._sealed_behind.get(group)
        if group not in self._whole or behind is None:
            return
        if self._place.first and behind.tied and group not in self._tied:
            return
        self._whole.discard(group)
        self._sealed_behind.pop(group, None)
        gradient = self._engine.seal(group, self._tied.pop(group, None))
        square_norm = behind.square_norm + gradient.square_norm
        if self._place.first:
            self._updates.step(group, math.sqrt(square_norm), gradient.tied)
            return
        if gradient.tied is not None:
            self._links.to_first(m.TiedGradient(group), gradient.tied)
        self._links.up(m.Sealed(group, square_norm, behind.tied or gradient.tied is not None))

    def forget(self, message: m.Forget) -> None:
        """Requests are over on all stages."""
        self._engine.forget(message.requests)
        self._links.down(message)


def _shape(micro_batch: MicroBatch) -> Shape:
    return Shape.of([micro_batch.length] * micro_batch.rows)
