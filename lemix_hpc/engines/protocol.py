"""What a pipeline stage computes, as seen by the stage worker's loop.

Compute is handed out as *work*: a generator that yields wherever it can stop (at decoder-layer boundaries) and returns
its result. The loop advances it one piece at a time and may do other work, serving above all, between two pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from lemix_hpc.checkpoints.stage_state import SavedState, StageState

T = TypeVar("T")
Work = Generator[None, None, T]
Vector = NDArray[np.float32]
"""One-dimensional, in host memory."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A tensor between two stages.

    `data` is any contiguous buffer that mpi4py can send, in host or device memory: the elements in C order. `dtype` is the
    engine's own name of their type, such as "float32"; `nbytes` their size in bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    data: Any

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)


class ServeSequence(msgspec.Struct, frozen=True, array_like=True):
    """One request's part in a batch: `length` new tokens on top of `cached` ones, of which keys and values were kept.

    `request` is the task's number in the run. `tokens` holds the `length` new token ids (the whole prompt in prefill, one
    token in decode), or nothing for stages that do not compute. `generate` asks for a next token; otherwise the tokens are
    scored, and none may be cached. `partial`: more of the prompt follows, so there is no next token yet.
    """

    request: int
    length: int
    cached: int
    generate: bool
    tokens: list[int]
    partial: bool = False

    @property
    def ends(self) -> bool:
        """Whether a next token follows."""
        return self.generate and not self.partial


class ServeBatch(msgspec.Struct, frozen=True, array_like=True):
    """The sequences that one iteration runs together. `id` counts the node's batches; `temperature` 0 is greedy.

    An engine with a scheduler of its own says in `plan` what to run, and in `version` under which weights it planned that.
    """

    id: int
    sequences: list[ServeSequence]
    temperature: float = 0.0
    plan: bytes = b""
    version: int = -1


class SequenceResult(msgspec.Struct, frozen=True, array_like=True):
    """What the last stage knows of one sequence after a batch.

    `nll` is the summed negative log-likelihood (nats) of the `scored` tokens, 0 for generating ones; `next_token` is None
    unless one was asked for (and -1 where nothing is computed).
    """

    request: int
    nll: float
    scored: int
    next_token: int | None


class MicroBatch(msgspec.Struct, frozen=True, array_like=True):
    """One training micro-batch, and its place in the gradient-accumulation group that makes one optimizer step.

    It is number `index` of the `group_size` micro-batches of `group`. `tokens` and `labels` are int32 in C order,
    (rows, length), as bytes; empty for stages that do not compute. See `lemix_hpc.workload.tasks.TrainingBatch`.
    """

    id: int
    group: int
    index: int
    group_size: int
    rows: int
    length: int
    tokens: bytes
    labels: bytes


@dataclass(frozen=True, slots=True)
class GroupGradient:
    """A group's gradient on one stage, set aside until its step: the squared L2 norm, and what tied weights exchange.

    `tied` is the float32 gradient, (vocabulary, hidden), of the embedding that the first and last stage share; None where
    nothing is shared.
    """

    square_norm: float
    tied: Payload | None = None


@dataclass(frozen=True, slots=True)
class PermissionToCommit:
    """From an engine that forms its own batches: those that came before run under the old weights, later ones under the new."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Something on its way between device and host, beside all computing. `remaining`: seconds until it is likely to be over, 0
    once it is."""

    remaining: Callable[[], float]


class StageTakes(msgspec.Struct, frozen=True, array_like=True):
    """Bytes that a stage takes: always (`resting`), while a pass runs (`working`), and for each token in the cache of a request
    and in training between its passes. `capacity`: of its device, None if only the recipe limits it."""

    resting: int
    working: int
    cache_bytes: int
    activation_bytes: int
    capacity: int | None = None


EngineOrder = ServeBatch | PermissionToCommit


@runtime_checkable
class TakesCacheWhole(Protocol):
    """An engine whose KV cache has its size from the start, so that its memory does not show what a token takes of it."""

    @property
    def cache_bytes_per_token(self) -> float: ...


@runtime_checkable
class HandsOn(Protocol):
    """An engine whose stages may read from memory of each other's devices."""

    def connect(self, hand_over: Any) -> None:
        """Hand payloads on by a `lemix_hpc.engines.torch.hand_over.HandOver`, before any work."""
        ...


@runtime_checkable
class SumsByItself(Protocol):
    """An engine whose stages may sum gradients with the same stage of other nodes without the run's messages."""

    def join(self, sums: Any) -> None:
        """Sum by a `lemix_hpc.engines.torch.collective_sums.CollectiveSums`, before any work."""
        ...

    def sum_over_nodes(self, shares: Sequence[tuple[int, float]], group: int) -> Work[int]:
        """Make the gradient of `group` the sum of all nodes' shares: here of these groups, which all ran their backwards and
        are over then, each times its share; zeros without any. `group` may be sealed then. Returns the bytes summed here.

        All nodes must have come to this before one begins, and none may leave it: they wait for each other on their devices.
        """
        ...


class StageEngine(Protocol):
    """One stage of one node. Not thread-safe; calls come from the stage worker's loop alone.

    The first stage gets no `hidden`, the last returns results instead of activations. With one stage both hold. `hidden` and
    its gradient have the shape that the engine's own stages agree on, such as (1, tokens, hidden) for a serving batch and
    (rows, length, hidden) for a micro-batch. Whatever a method raises ends the run, with the words of the exception; but for
    `lemix_hpc.engines.meter.DeviceMemoryError` from `serve`, `forward` and `backward`, which are called again once
    there is more memory.
    """

    def serve(self, batch: ServeBatch, hidden: Payload | None) -> Work[Payload | list[SequenceResult] | None]:
        """Forward of a serving batch: activations for the next stage, or the results on the last, in the batch's order.

        None on the last stage: the engine hands the results on itself. Raises ValueError for a sequence that is longer than
        the model's positions.
        """
        ...

    def expect(self, batch: ServeBatch) -> Work[None]:
        """Prepare a batch of the engine's own scheduler whose activations are still to come: what needs neither those nor the
        weights, which may change before `serve` is called for it. That is the next batch served here, and the one before it has
        been."""
        ...

    def forget(self, requests: Sequence[int]) -> None:
        """Free what was kept for requests (their KV cache). Unknown ones are ignored."""
        ...

    def forward(self, micro_batch: MicroBatch, hidden: Payload | None) -> Work[Payload | float]:
        """Training forward: activations for the next stage, or on the last the mean cross-entropy, in nats, over the labels
        (NaN where none). Raises ValueError for sequences that are longer than the model's positions."""
        ...

    def backward(self, micro_batch: int, grad: Payload | None) -> Work[Payload | None]:
        """Backward of the forward of the micro-batch with this id; returns the gradient for the previous stage, None on the
        first. `grad` comes from the next stage, None on the last: there the loss counts with 1 / `group_size`. Called again
        after a DeviceMemoryError it goes on where that was; no weights change in between.

        Raises KeyError for a micro-batch whose forward did not run here.
        """
        ...

    @property
    def takes(self) -> StageTakes | None:
        """What the stage takes of memory; None where a coefficient file says it."""
        ...

    def offload(self, micro_batch: int) -> Transfer:
        """Begin to move to the host what a micro-batch keeps for its backward, whose forward has ended. While it is away its
        backward must not begin."""
        ...

    def bring_back(self, micro_batch: int) -> Transfer:
        """Begin to move back what was offloaded."""
        ...

    @property
    def holds_graph(self) -> bool:
        """Whether a micro-batch is between forward and backward in a way that a weight update would break."""
        ...

    def seal(self, group: int, tied: Payload | None) -> GroupGradient | Work[GroupGradient]:
        """End a group: all its backwards ran here. Its gradient is set aside; the next group may start its backwards, serving
        and forwards go on. At once where there is nothing to sum.

        The last stage returns its part of the gradient of tied weights, which is not in its norm. The first one is given that
        as `tied`, adds its own, counts the sum in its norm and returns it.
        Raises ValueError if weights are tied and the first stage gets no `tied`.
        """
        ...

    def prepare(self, group: int, grad_norm: float, tied: Payload | None) -> Work[None] | None:
        """Work out the optimizer step of a sealed group; serving, forwards and backwards go on under the old weights.

        The gradient is clipped by `grad_norm`, its L2 norm over all stages; `tied` as returned by the first stage. One group
        at a time is between `prepare` and `publish`. None: there is nothing to work out. Raises ValueError if the recipe
        trains nothing, or if weights are tied and there is no `tied`.
        """
        ...

    def publish(self, group: int) -> Work[None]:
        """Put the prepared step of `group` in force: short, and not while a graph is held. What comes after sees it."""
        ...

    def read_weights(self) -> list[Payload]:
        """This stage's weights, to be copied to another node: one payload per parameter, in an order that is the same on every
        node. They are views, or snapshots on the host."""
        ...

    def write_weights(self, weights: list[Payload]) -> None:
        """Replace this stage's weights by those read from the same stage of another node. Raises ValueError if they are not
        as many."""
        ...

    @property
    def parameters(self) -> int:
        """The length of the vectors below: one element for every scalar weight of this stage."""
        ...

    def sum_gradients(self, shares: Sequence[tuple[int, float]], into: Vector) -> Work[None]:
        """Sum the gradients of groups that all ran their backwards here, each times its share, into a vector of `parameters`
        elements; zeros without any. `shares` are pairs of group and factor.

        The groups are over; none of them is sealed.
        """
        ...

    def set_gradient(self, group: int, vector: Vector) -> Work[None]:
        """Make a vector of `parameters` elements the gradient of `group`, which may be sealed then. The vector must not be used
        any more."""
        ...

    def read_master(self, into: Vector) -> Work[None]:
        """The weights in float32, as the optimizer keeps them, into a vector of `parameters` elements.

        No update may be prepared or published before this has ended.
        """
        ...

    def prepare_average(self, snapshot: Vector, total: Vector, nodes: int) -> Work[None] | None:
        """Work out weights that are moved by total / nodes - snapshot, vectors of `parameters` elements: this node's
        `snapshot` as `read_master` gave it, and the `total` of all `nodes` nodes' snapshots, which may be overwritten.

        As with `prepare`, what is served does not change, and one update at a time is between this and `publish_average`.
        """
        ...

    def publish_average(self) -> Work[None]:
        """Put the weights of `prepare_average` in force, as `publish` does."""
        ...

    def snapshot(self) -> Work[StageState]:
        """Copy the training state into host memory, by Hugging Face's parameter names. The memory is that of the snapshot
        before, which must not be in use any more.

        No update may be prepared or published before this has ended. Raises ValueError if the recipe trains nothing.
        """
        ...

    def restore(self, saved: SavedState) -> None:
        """Go on from a training state, before any work: what is served and trained from here on. Whatever the number of
        stages or the engine that it was saved from.

        Raises UserError for a state of another model, or one that cannot be read.
        """
        ...

    def sample(self, rows: int, length: int) -> Payload:
        """Made-up activations (rows, length, hidden), or gradients of such: what a neighbour would send. For measuring."""
        ...

    def sample_tied(self) -> Payload | None:
        """A made-up gradient of the tied weights, as the last stage would send it; None where nothing is shared."""
        ...

    def buffer(self, nbytes: int) -> Any:
        """Memory to receive a payload of `nbytes` bytes in, where this engine's compute can use it without a needless copy."""
        ...

    def orders(self) -> Sequence[EngineOrder]:
        """What the engine's own scheduler has sent to this stage since the last call, in order. Nothing where there is no such
        scheduler: then batches come from the leader. Raises RuntimeError if that scheduler's process has ended."""
        ...

    def ask_to_commit(self) -> bool:
        """On the first stage: ask the engine's scheduler for a `PermissionToCommit`. False where nobody has to be asked."""
        ...

    @property
    def watched(self) -> Sequence[int]:
        """File descriptors that become readable when there may be `orders`."""
        ...

    def close(self) -> None:
        """Free what the stage holds outside of its own memory; the last call."""
        ...


class LedByLeader:
    """The part of `StageEngine` that concerns a scheduler of the engine's own, for engines without one."""

    def expect(self, batch: ServeBatch) -> Work[None]:  # noqa: ARG002
        """Nothing: the leader tells of no batch before its activations come."""
        return
        yield

    def orders(self) -> Sequence[EngineOrder]:
        return ()

    def ask_to_commit(self) -> bool:
        return False

    @property
    def watched(self) -> Sequence[int]:
        return ()
