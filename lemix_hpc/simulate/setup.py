"""What a simulated run is made of, from its recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import NodeKind, Recipe
from lemix_hpc.config.walltime import parse_walltime
from lemix_hpc.policy.latency import LatencyModel
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.times import Times, make_times
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients
from lemix_hpc.profiling.learned import drift_limit
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
    policy, slo = recipe.policy, recipe.slo
    config = SchedulerConfig(
        nodes=recipe.nodes.count,
        placement=policy.placement,
        release=recipe.training.release if recipe.training else "async",
        training_nodes=_training_nodes(recipe),
        lanes=policy.lanes,
        order=policy.order,
        serving_first=policy.serving_first,
        yield_training=policy.yield_training,
        pieces=pieces(recipe, hardware),
        admission=policy.admission,
        max_hold=policy.max_hold_s,
        lambda1=policy.lambda1,
        lambda2=policy.lambda2,
        tau=policy.tau,
        keep=policy.keep,
        t0=t0,
        slo_factor=sorted(slo.factors)[len(slo.factors) // 2]
        if slo.response_ms is None
        else slo.response_ms / 1e3 / t0,
        end=parse_walltime(recipe.cluster.time) - policy.drain_reserve_s if policy.drain_reserve_s > 0 else math.inf,
        batch_requests=recipe.engine.max_batch_requests,
        oracle=policy.output_lengths == "oracle",
        seed=recipe.seed,
        recalibrate=policy.recalibrate,
        drift_limit=max(drift_limit(file) for file in hardware.believed),
    )
    return Scheduler(config, [file.latency(recipe.nodes.stages) for file in hardware.believed], hardware.kinds)


def aim(recipe: Recipe) -> float:
    """The limit on responses that the policy aims at, in T0: the middle one of the recipe's."""
    factors = sorted(recipe.slo.factors)
    return factors[len(factors) // 2]


def _training_nodes(recipe: Recipe) -> int | None:
    """How many nodes of a separated cluster train: given, or the share of training, at least one of each."""
    policy, training, nodes = recipe.policy, recipe.training, recipe.nodes.count
    if isinstance(policy.training_nodes, int) or training is None or training.share is None:
        return policy.training_nodes if isinstance(policy.training_nodes, int) else None
    return min(max(1, round(nodes * training.share)), nodes - 1)


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
