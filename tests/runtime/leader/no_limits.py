"""The memory of nodes that have no end of it."""

from lemix_hpc.runtime.leader.memory_gate import NodeMemoryLimits


def _nobody_asks(stage: int, takes: object) -> object:
    raise AssertionError(f"stage {stage} takes {takes}")


NO_LIMITS = NodeMemoryLimits(1, (), _nobody_asks, 1.0, offloads=False, max_hold=10.0, gpipe=False, useful_in_flight=1)  # type: ignore[arg-type]
