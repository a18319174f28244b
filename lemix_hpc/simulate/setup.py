"""What a simulated run is made of, from its recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.latency import LatencyModel
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.times import Times, make_times
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients
from lemix_hpc.profiling.learned import drift_limit
from lemix_hpc.runtime.session import scheduler_config
from lemix_hpc.simulate.world import Setting


@dataclass(frozen=True)
class Hardware:
    """The coefficient files of the cluster's kinds of nodes and those that forecasts go by, and the kind of every node."""

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
    real = recipe.engine.coefficients or recipe.policy.coefficients
    if real is None:
        raise UserError(
            "engine.coefficients: simulated stages take their times from a coefficient file. Name one; `lemix profile` "
            "measures it, and a run that has measured itself has left it as coefficients.yaml in its directory."
        )
    believed = recipe.policy.coefficients or real
    return Hardware((load_coefficients(real),), (load_coefficients(believed),), (0,) * recipe.nodes.count)


def make_scheduler(recipe: Recipe, hardware: Hardware, t0: float) -> Scheduler:
    """The scheduler that a run of this recipe has; `t0`: mean unloaded response [s]."""
    believed = hardware.believed
    config: SchedulerConfig = replace(
        scheduler_config(recipe),
        t0=t0,
        pieces=pieces(recipe, hardware),
        drift_limit=max(drift_limit(file) for file in believed),
    )
    return Scheduler(config, [file.latency(recipe.nodes.stages) for file in believed], hardware.kinds)


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
        serving_first=True,
        yield_training=True,
        minimum_share=0.0,
        gpipe=training is not None and training.release == "sync" and training.schedule == "gpipe",
        endless=endless,
        latency_error=0.0,
        seed=recipe.seed,
        logs=logs,
        # Passes that take what forecasts say teach nothing.
        measures=not hardware.as_believed,
    )


def pieces(recipe: Recipe, hardware: Hardware) -> int:
    """In how many pieces a training pass is cut: the layers of a stage."""
    return max(1, min(file.layers for file in hardware.real) // recipe.nodes.stages)
