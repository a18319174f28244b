"""What a simulated run is made of, from its recipe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import NodeKind, Recipe
from lemix_hpc.policy.latency import LatencyModel
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.times import Times, make_times
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients
from lemix_hpc.profiling.learned import drift_limit
from lemix_hpc.runtime.policy_setup import scheduler_config
from lemix_hpc.simulate.world import Setting


@dataclass(frozen=True)
class Hardware:
    """The coefficient files of the cluster's kinds of nodes and those that forecasts go by, and the kind of every node.

    `reference`: what T0 is taken from.
    """

    reference: CoefficientFile
    real: tuple[CoefficientFile, ...]
    believed: tuple[CoefficientFile, ...]
    kinds: tuple[int, ...]

    @property
    def as_believed(self) -> bool:
        """Whether forecasts go by the real stage times."""
        return self.real == self.believed

    def latencies(self, stages: int) -> list[LatencyModel]:
        """What passes really take, by kind of node."""
        return [file.latency(stages) for file in self.real]


def load_hardware(recipe: Recipe) -> Hardware:
    """Read the recipe's coefficient files; UserError without one, as there is nothing to measure here."""
    real, believed = [], []
    kinds = recipe.nodes.kinds or [NodeKind(count=recipe.nodes.count)]
    for kind in kinds:
        path = kind.coefficients or recipe.engine.coefficients or recipe.policy.coefficients
        if path is None:
            raise UserError(
                "engine.coefficients: simulated stages take their times from a coefficient file. Name one; `lemix profile` "
                "measures it, and a run that has measured itself has left it as coefficients.yaml in its directory."
            )
        real.append(load_coefficients(path))
        believed.append(load_coefficients(kind.coefficients or recipe.policy.coefficients or path))
    numbers = (number for number, kind in enumerate(kinds) for _ in range(kind.count))
    own = recipe.engine.coefficients
    reference = real[0] if own is None else load_coefficients(own)
    return Hardware(reference, tuple(real), tuple(believed), tuple(numbers))


def make_scheduler(recipe: Recipe, hardware: Hardware, t0: float) -> Scheduler:
    """The scheduler that a run of this recipe has; `t0`: mean unloaded response [s]."""
    limit = max(drift_limit(file) for file in hardware.believed)
    config = scheduler_config(recipe, t0=t0, pieces=pieces(recipe, hardware), drift_limit=limit)
    return Scheduler(config, [file.latency(recipe.nodes.stages) for file in hardware.believed], hardware.kinds)


def make_times_of(recipe: Recipe, hardware: Hardware) -> Times:
    """What passes take."""
    return make_times(hardware.latencies(recipe.nodes.stages), np.array(hardware.kinds, dtype=np.int64))


def make_setting(recipe: Recipe, hardware: Hardware, *, endless: bool, logs: bool) -> Setting:
    """What stages and leaders go by; `endless`: training goes on while serving lasts."""
    training = recipe.training
    return Setting(
        nodes=recipe.nodes.count,
        stages=recipe.nodes.stages,
        pieces=pieces(recipe, hardware),
        max_requests=recipe.engine.max_batch_requests,
        max_tokens=recipe.engine.max_batch_tokens,
        rows=training.micro_batch_size if training else 1,
        serving_first=recipe.policy.serving_first,
        yield_training=recipe.policy.yield_training,
        minimum_share=recipe.policy.minimum_training_share,
        gpipe=training is not None and training.release == "sync" and training.schedule == "gpipe",
        endless=endless,
        latency_error=recipe.simulate.latency_error,
        seed=recipe.seed,
        logs=logs,
        # Passes that take what forecasts say teach nothing.
        measures=not hardware.as_believed or recipe.simulate.latency_error > 0.0,
    )


def pieces(recipe: Recipe, hardware: Hardware) -> int:
    """In how many pieces a training pass is cut: the layers of a stage."""
    return max(1, min(file.layers for file in hardware.real) // recipe.nodes.stages)
