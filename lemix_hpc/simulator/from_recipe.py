"""What a simulated run is made of, from its recipe."""

from __future__ import annotations

import numpy as np

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.latency_tables import Times, make_times
from lemix_hpc.policy.pacing import AS_SOON_AS_POSSIBLE, Pace
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.run_setup.in_flight import planned_in_flight, useful_in_flight
from lemix_hpc.run_setup.memory_limits import is_limited, offloads
from lemix_hpc.run_setup.scheduler_setup import split
from lemix_hpc.simulator.cluster_state import SimulationConfig


def make_times_of(recipe: Recipe, hardware: Hardware) -> Times:
    """What passes take."""
    return make_times(hardware.latencies(recipe.nodes.stages), np.array(hardware.kinds, dtype=np.int64))


def make_believed_times(recipe: Recipe, hardware: Hardware) -> Times | None:
    """What leaders take passes for, None where they are right."""
    if hardware.as_believed:
        return None
    return make_times(hardware.forecasts(recipe.nodes.stages), np.array(hardware.kinds, dtype=np.int64))


def make_config(
    recipe: Recipe, hardware: Hardware, *, endless: bool, logs: bool, pace: Pace | None = None
) -> SimulationConfig:
    """What stages and leaders go by; `endless`: training goes on while serving lasts; `pace`: of decode, if it has any."""
    training, apart = recipe.training, split(recipe)
    return SimulationConfig(
        nodes=recipe.nodes.count,
        stages=recipe.nodes.stages,
        pieces=hardware.pieces(recipe.nodes.stages),
        max_requests=recipe.engine.max_batch_requests,
        max_tokens=recipe.engine.max_batch_tokens,
        rows=training.micro_batch_size if training else 1,
        serving_first=recipe.policy.serving_first,
        yield_training=recipe.policy.yield_training,
        minimum_share=recipe.policy.minimum_training_share,
        sync=training is not None and training.release == "sync",
        gpipe=training is not None and training.release == "sync" and training.schedule == "gpipe",
        servers=len(apart.serving) if apart is not None else 0,
        copy_every=recipe.policy.copy_every_steps,
        endless=endless,
        latency_error=recipe.simulate.latency_error,
        seed=recipe.seed,
        logs=logs,
        # Passes that take what forecasts say teach nothing.
        measures=not hardware.as_believed or recipe.simulate.latency_error > 0.0,
        limited=is_limited(recipe),
        max_wait=recipe.policy.memory.max_wait_s,
        offload_rate=1e9 * (recipe.policy.memory.offload_gb_per_s or 0.0) if offloads(recipe) else 0.0,
        paced=pace is not None,
        pace=pace or AS_SOON_AS_POSSIBLE,
        between=recipe.simulate.between_passes_ms / 1e3,
        batch_share=recipe.policy.batch_share,
        in_flight=planned_in_flight(recipe),
        max_hold=recipe.policy.max_hold_s if recipe.policy.serving_first else 0.0,
        useful_in_flight=useful_in_flight(recipe),
        recomputing=recipe.recomputing,
    )
