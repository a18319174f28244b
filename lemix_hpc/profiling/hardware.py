"""The kinds of nodes of a cluster: what passes really take on them, and what forecasts go by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import NodeKind, Recipe
from lemix_hpc.policy.latency import LatencyModel
from lemix_hpc.policy.latency_forms import Together
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients
from lemix_hpc.profiling.learned import drift_limit


@dataclass(frozen=True)
class Hardware:
    """The coefficient files of the cluster's kinds of nodes and those that forecasts go by, and the kind of every node.

    `reference`: what T0 is taken from. `recomputing`: so many stages, from the first on, run their forward again in the
    backward. Files have backwards that do not.
    """

    reference: CoefficientFile
    real: tuple[CoefficientFile, ...]
    believed: tuple[CoefficientFile, ...]
    kinds: tuple[int, ...]
    recomputing: int = 0

    @property
    def as_believed(self) -> bool:
        """Whether forecasts go by the real stage times."""
        return self.real == self.believed

    @property
    def drift_limit(self) -> float:
        """The relative error of stage times that raises an alarm, on any kind of node."""
        return max(drift_limit(file) for file in self.believed)

    def latencies(self, stages: int) -> list[LatencyModel]:
        """What passes really take, by kind of node."""
        return [self._times(file, stages) for file in self.real]

    def forecasts(self, stages: int) -> list[LatencyModel]:
        """What forecasts take them for, by kind of node."""
        return [self._times(file, stages) for file in self.believed]

    def pieces(self, stages: int) -> int:
        """In how many pieces a training pass is cut: the layers of a stage."""
        return max(1, min(file.layers for file in self.real) // stages)

    def _times(self, file: CoefficientFile, stages: int) -> LatencyModel:
        latency = file.latency(stages)
        passes = zip(latency.backward, latency.forward, strict=True)
        backward = [
            Together(backward, forward) if stage < self.recomputing else backward
            for stage, (backward, forward) in enumerate(passes)
        ]
        return replace(latency, backward=tuple(backward))


def load_hardware(recipe: Recipe) -> Hardware:
    """Read the recipe's coefficient files; UserError without one, as nothing can be measured."""
    real, believed = [], []
    kinds = recipe.nodes.kinds or [NodeKind(count=recipe.nodes.count)]
    for kind in kinds:
        path = kind.coefficients or recipe.engine.coefficients or recipe.policy.coefficients
        if path is None:
            raise UserError(
                "engine.coefficients: stages that do not compute take their times from a coefficient file. Give one: "
                "`lemix profile` makes one, and a run without a file writes what it measured to coefficients.yaml in "
                "its directory."
            )
        real.append(load_coefficients(path))
        believed.append(load_coefficients(kind.coefficients or recipe.policy.coefficients or path))
    numbers = (number for number, kind in enumerate(kinds) for _ in range(kind.count))
    own = recipe.engine.coefficients
    reference = real[0] if own is None else load_coefficients(own)
    return Hardware(reference, tuple(real), tuple(believed), tuple(numbers), recipe.recomputing)
