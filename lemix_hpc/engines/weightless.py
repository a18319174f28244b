"""What engines have in common that only take time: there are no weights, and payloads are empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lemix_hpc.checkpoints.stage_state import SavedState, StageState
from lemix_hpc.engines.protocol import (
    GroupGradient,
    LedByLeader,
    Payload,
    StageEngine,
    StageTakes,
    Transfer,
    Vector,
    Work,
)

NOTHING = Payload((), "uint8", memoryview(b""))


class WeightlessStage(LedByLeader, StageEngine):
    """The part of `StageEngine` that concerns weights and their updates. `serve`, `forward` and `backward` are left to do."""

    def forget(self, requests: Sequence[int]) -> None:
        """Nothing is kept for requests."""

    @property
    def takes(self) -> StageTakes | None:
        return None

    def offload(self, micro_batch: int) -> Transfer:  # noqa: ARG002
        """Takes no time."""
        return Transfer(lambda: 0.0)

    def bring_back(self, micro_batch: int) -> Transfer:
        return self.offload(micro_batch)

    @property
    def holds_graph(self) -> bool:
        return False

    def seal(self, group: int, tied: Payload | None) -> GroupGradient | Work[GroupGradient]:  # noqa: ARG002
        return GroupGradient(0.0)

    def prepare(self, group: int, grad_norm: float, tied: Payload | None) -> Work[None] | None:  # noqa: ARG002
        """Nothing to work out: stage times have none for the optimizer, neither here nor in the simulator."""
        return None

    def publish(self, group: int) -> Work[None]:  # noqa: ARG002
        """Takes no time."""
        yield from ()

    def read_weights(self) -> list[Payload]:
        return []

    def write_weights(self, weights: list[Payload]) -> None:
        """There are no weights to replace."""

    @property
    def parameters(self) -> int:
        return 0

    def sum_gradients(self, shares: Sequence[tuple[int, float]], into: Vector) -> Work[None]:  # noqa: ARG002
        yield from ()

    def set_gradient(self, group: int, vector: Vector) -> Work[None]:  # noqa: ARG002
        yield from ()

    def read_master(self, into: Vector) -> Work[None]:  # noqa: ARG002
        yield from ()

    def prepare_average(self, snapshot: Vector, total: Vector, nodes: int) -> Work[None] | None:  # noqa: ARG002
        return None

    def publish_average(self) -> Work[None]:
        yield from ()

    def snapshot(self) -> Work[StageState]:
        """A state without tensors."""
        return StageState({}, 0, 0, "none")
        yield

    def restore(self, saved: SavedState) -> None:
        """There is nothing to go on from."""

    def sample(self, rows: int, length: int) -> Payload:  # noqa: ARG002
        return NOTHING

    def sample_tied(self) -> Payload | None:
        return None

    def buffer(self, nbytes: int) -> Any:
        return memoryview(bytearray(nbytes))

    def close(self) -> None:
        """Nothing is held."""
