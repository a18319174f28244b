"""Training on one pipeline stage, whatever serves beside it: forwards, backwards, and the steps of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from lemix_hpc.checkpoints.stage_state import SavedState, StageState
from lemix_hpc.config.training_section import Recompute
from lemix_hpc.engines.protocol import GroupGradient, MicroBatch, Payload, StageTakes, Transfer, Vector, Work
from lemix_hpc.engines.torch import flat_vectors, saved_state
from lemix_hpc.engines.torch import micro_batch as passes
from lemix_hpc.engines.torch.captured_blocks import CapturedBlocks
from lemix_hpc.engines.torch.chunked_loss import HeadGradients
from lemix_hpc.engines.torch.collective_sums import CollectiveSums
from lemix_hpc.engines.torch.gradients import GroupGradients
from lemix_hpc.engines.torch.hand_over import HandOver
from lemix_hpc.engines.torch.labels import Labels
from lemix_hpc.engines.torch.memory_errors import may_be_repeated
from lemix_hpc.engines.torch.micro_batch import Backward, Segment
from lemix_hpc.engines.torch.module import StageModule
from lemix_hpc.engines.torch.offloading import KeptMemory, Mover, mover_for
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.saved_state import HostCopies
from lemix_hpc.engines.torch.training_queue import training_queue

T = TypeVar("T")


@dataclass(slots=True)
class _Pass:
    """A micro-batch between the start of its forward and the end of its backward."""

    micro_batch: MicroBatch
    entry: torch.Tensor
    labels: Labels | None
    segments: list[Segment | HeadGradients] = field(default_factory=list)
    recompute: bool = False
    kept: KeptMemory = field(default_factory=KeptMemory)
    backward: Backward | None = None


class StageTraining:
    """What of `lemix_hpc.engines.protocol.StageEngine` is training; an engine adds serving with the same parameters.

    With `keep_graphs`, a micro-batch's graph lives from forward to backward on every stage, or what of it `recompute` leaves:
    the inputs of layers, or that of the stage, from which the rest is made again. Weights must not change in between. Without
    it only the last stage, whose backward follows at once, keeps the graph; the others remember their input and run the
    forward again, under the weights of that moment, when the backward comes.
    """

    def __init__(
        self,
        module: StageModule,
        wire: Wire,
        optimizer: StageOptimizer | None,
        *,
        keep_graphs: bool,
        max_positions: int | None,
        recompute: Recompute = "none",
        takes: StageTakes | None = None,
        offloads: bool = False,
        captured: CapturedBlocks | None = None,
    ) -> None:
        """`takes`: what it takes of memory; `offloads`: whether micro-batches may be told to leave that to others. `captured`:
        graphs of the module's blocks, where there are any."""
        self._module = module
        self._wire = wire
        self._optimizer = optimizer
        self._same_weights = keep_graphs
        self._recompute: Recompute = recompute
        if not keep_graphs:
            self._recompute = "none" if module.last else "all"
        self._max_positions = max_positions
        self._parameters = list(module.parameters())
        self._device = module.device
        self._queue = training_queue(module.device)
        self._gradients = GroupGradients(self._parameters, borrowed=captured is not None)
        self._copies = HostCopies(module)
        self._passes: dict[int, _Pass] = {}
        self._averaged: Vector | None = None
        self._sums: CollectiveSums | None = None
        self._mover = mover_for(module.device, self._queue) if offloads else None
        self._captured = captured
        self.takes = takes

    def forward(self, micro_batch: MicroBatch, hidden: Payload | None) -> Work[Payload | float]:
        return may_be_repeated(self._queue.work(self._forward(micro_batch, hidden), self._passed_on))

    def backward(self, micro_batch: int, grad: Payload | None) -> Work[Payload | None]:
        work = self._backward(micro_batch, grad)
        return may_be_repeated(
            self._queue.work(work, lambda result: None if result is None else self._wire.payload(result))
        )

    def offload(self, micro_batch: int) -> Transfer:
        return self._moves.to_host(self._passes[micro_batch].kept)

    def bring_back(self, micro_batch: int) -> Transfer:
        return self._moves.to_device(self._passes[micro_batch].kept)

    @property
    def _moves(self) -> Mover:
        if self._mover is None:
            raise ValueError("this stage was built from a recipe that offloads nothing")
        return self._mover

    @property
    def holds_graph(self) -> bool:
        return any(current.segments or (current.recompute and self._same_weights) for current in self._passes.values())

    def _forward(self, micro_batch: MicroBatch, hidden: Payload | None) -> Work[torch.Tensor]:
        self._check_length(micro_batch.length)
        current = _Pass(micro_batch, self._entry(micro_batch, hidden), self._labels(micro_batch))
        current.recompute = self._recompute == "all"
        self._passes[micro_batch.id] = current
        done = False
        try:
            work = self._run(current, keep=not current.recompute, inputs_only=self._recompute == "layers")
            output = yield from (work if self._mover is None else current.kept.noting(work))
            self._note_kept(current, output)
            done = True
        finally:
            if not done:  # dropped half-way, or failed
                self._drop(micro_batch.id)
        return output

    def _note_kept(self, current: _Pass, output: torch.Tensor) -> None:
        """What is behind the pieces of a forward, less what the next stage gets, and weights."""
        if self._mover is None:
            return
        if current.recompute:
            current.kept.add(current.entry)
        in_graphs = self._captured is not None and self._captured.holds(current.micro_batch.id)
        for segment in current.segments:
            if isinstance(segment, Segment) and not in_graphs:
                for tensor in (segment.input, segment.output):
                    if tensor is not None:
                        current.kept.add(tensor)
        current.kept.leave_out([output, *self._parameters, *self._module.buffers()])

    def _passed_on(self, output: torch.Tensor) -> Payload | float:
        return float(output) if self._module.last else self._wire.payload(output)

    def _backward(self, micro_batch: int, grad: Payload | None) -> Work[torch.Tensor | None]:
        current = self._passes[micro_batch]
        group, done, goes_on = current.micro_batch.group, False, False
        try:
            if current.backward is None:
                if current.recompute:
                    current.segments.clear()  # of a try that had no memory for all of them
                    yield from self._run(current, keep=True)
                    yield
                current.backward = Backward(self._output_grad(current.micro_batch, grad))
            result = yield from passes.backward(
                current.segments,
                current.backward,
                lambda parameter, value: self._gradients.add(group, parameter, value),
            )
            done = True
        except torch.OutOfMemoryError:
            goes_on = True  # in the next call
            raise
        finally:
            if not goes_on:
                self._drop(micro_batch)
                if not done:  # a part of a gradient is of no use
                    self._gradients.drop(group)
        return result if self._captured is None or result is None else result.clone()

    def _drop(self, micro_batch: int) -> None:
        """Nothing more comes of it."""
        del self._passes[micro_batch]
        if self._captured is not None:
            self._captured.release(micro_batch)

    def seal(self, group: int, tied: Payload | None) -> Work[GroupGradient]:
        return self._queue.work(self._seal(group, tied), self._sealed)

    def _seal(self, group: int, tied: Payload | None) -> Work[tuple[torch.Tensor, torch.Tensor | None]]:
        """The norm, still on the device, and the gradient of tied weights."""
        shared = self._module.shared_embedding
        if shared is None:
            return (yield from self._gradients.norm(group)), None
        own = self._gradients.of(group, shared)
        if self._module.last:
            return (yield from self._gradients.norm(group, without=shared)), own
        if tied is None:
            raise ValueError(f"group {group}: the first stage needs the last one's gradient of the tied embedding")
        yield from self._gradients.add_to(group, shared, self._wire.tensor(tied))
        return (yield from self._gradients.norm(group)), own

    def _sealed(self, result: tuple[torch.Tensor, torch.Tensor | None]) -> GroupGradient:
        norm, tied = result
        return GroupGradient(float(norm) ** 2, None if tied is None else self._wire.payload(tied))

    def prepare(self, group: int, grad_norm: float, tied: Payload | None) -> Work[None]:
        return self._in_queue(self._prepare(group, grad_norm, tied))

    def _prepare(self, group: int, grad_norm: float, tied: Payload | None) -> Work[None]:
        optimizer = self._stepped_by()
        shared = self._module.shared_embedding
        grads = self._gradients.take(group)
        if shared is not None:
            if tied is None:
                raise ValueError(f"group {group}: the step needs the summed gradient of the tied embedding")
            # Both copies step by the very same bits. Copied, since the first stage's payload may still be on its way.
            index = next(i for i, parameter in enumerate(self._parameters) if parameter is shared)
            grads[index] = self._wire.tensor(tied).clone()
        yield from optimizer.prepare(grads, grad_norm)

    def publish(self, group: int) -> Work[None]:  # noqa: ARG002
        """The weights change without a stop in between."""
        self._queue.join()
        self._stepped_by().publish()
        self._settle()
        return
        yield

    def read_weights(self) -> list[Payload]:
        return [self._wire.host_payload(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def write_weights(self, weights: list[Payload]) -> None:
        self._queue.join()
        for parameter, payload in zip(self._parameters, weights, strict=True):
            parameter.copy_(self._wire.tensor(payload))
        if self._optimizer is not None:
            self._optimizer.weights_replaced()

    @property
    def parameters(self) -> int:
        return flat_vectors.length(self._parameters)

    def sum_gradients(self, shares: Sequence[tuple[int, float]], into: Vector) -> Work[None]:
        return self._in_queue(flat_vectors.sum_gradients(self._gradients, shares, into))

    def set_gradient(self, group: int, vector: Vector) -> Work[None]:
        return self._in_queue(flat_vectors.set_gradient(self._gradients, self._parameters, group, vector))

    def join(self, sums: CollectiveSums) -> None:
        self._sums = sums

    def sum_over_nodes(self, shares: Sequence[tuple[int, float]], group: int) -> Work[int]:
        return self._in_queue(self._sum_over_nodes(shares, group))

    def _sum_over_nodes(self, shares: Sequence[tuple[int, float]], group: int) -> Work[int]:
        assert self._sums is not None, "joined at the start where the recipe wants it"
        yield from self._gradients.combine(shares, group)
        grads = self._gradients.all_of(group)
        yield from self._sums.sum(grads)
        return sum(grad.nbytes for grad in grads)

    def read_master(self, into: Vector) -> Work[None]:
        return self._in_queue(flat_vectors.read(self._stepped_by().master(), into))

    def prepare_average(self, snapshot: Vector, total: Vector, nodes: int) -> Work[None] | None:
        optimizer = self._stepped_by()
        self._averaged = total
        in_place = optimizer.keeps_master
        return self._in_queue(flat_vectors.average(optimizer.master(), snapshot, total, nodes, in_place=in_place))

    def publish_average(self) -> Work[None]:
        """The weights change without a stop in between."""
        assert self._averaged is not None, "only what was prepared is published"
        self._queue.join()
        optimizer = self._stepped_by()
        if optimizer.keeps_master:
            optimizer.publish_master()
        else:
            flat_vectors.write(self._averaged, self._parameters)
        self._averaged = None
        self._settle()
        return
        yield

    def snapshot(self) -> Work[StageState]:
        return self._in_queue(self._copies.take(self._stepped_by()))

    def restore(self, saved: SavedState) -> None:
        """The weights change without a stop in between."""
        self._queue.join()
        saved_state.restore(self._module, self._stepped_by(), saved)
        self._settle()

    def sample(self, rows: int, length: int) -> Payload:
        shape, dtype = (rows, length, self._module.width), self._parameters[0].dtype
        return self._wire.payload(torch.randn(shape, dtype=dtype, device=self._device))

    def sample_tied(self) -> Payload | None:
        shared = self._module.shared_embedding
        return None if shared is None else self._wire.payload(torch.zeros_like(shared, dtype=torch.float32))

    def buffer(self, nbytes: int) -> Any:
        return self._wire.buffer(nbytes)

    def connect(self, hand_over: HandOver) -> None:
        self._wire.connect(hand_over)

    def close(self) -> None:
        self._wire.close()
        self._passes.clear()
        if self._sums is not None:
            self._sums.close()
        if self._optimizer is not None:
            self._optimizer.close()

    def _stepped_by(self) -> StageOptimizer:
        if self._optimizer is None:
            raise ValueError("this stage was built from a recipe without training")
        return self._optimizer

    def _entry(self, micro_batch: MicroBatch, hidden: Payload | None) -> torch.Tensor:
        if hidden is not None:
            return self._wire.tensor(hidden)
        return _int_matrix(micro_batch.tokens, micro_batch).to(self._device)

    def _labels(self, micro_batch: MicroBatch) -> Labels | None:
        return Labels.of(_int_matrix(micro_batch.labels, micro_batch), self._device) if self._module.last else None

    def _run(self, current: _Pass, *, keep: bool, inputs_only: bool = False) -> Work[torch.Tensor]:
        segments, share = current.segments if keep else None, 1.0 / current.micro_batch.group_size
        run_block = None
        if self._captured is not None:
            run_block = self._captured.runner(current.micro_batch.id, current.entry)
        return passes.forward(
            self._module, current.entry, current.labels, segments, share, inputs_only=inputs_only, run_block=run_block
        )

    def _output_grad(self, micro_batch: MicroBatch, grad: Payload | None) -> torch.Tensor:
        if grad is not None:
            return self._wire.tensor(grad)
        # The group's loss is the mean of its micro-batches' losses.
        return torch.tensor(1.0 / micro_batch.group_size, device=self._device)

    def _in_queue(self, work: Work[T]) -> Work[T]:
        return self._queue.work(work, lambda result: result)

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _check_length(self, length: int) -> None:
        if self._max_positions is not None and length > self._max_positions:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the model's {self._max_positions} positions"
            )


def _int_matrix(data: bytes, micro_batch: MicroBatch) -> torch.Tensor:
    matrix = np.frombuffer(data, dtype=np.int32).reshape(micro_batch.rows, micro_batch.length)
    return torch.from_numpy(matrix.astype(np.int64))
