"""Compiling the simulator ahead of its first use."""

from __future__ import annotations

import numpy as np

from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.latency_tables import make_times
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.simulator.cluster_state import SimulationConfig, make_requests
from lemix_hpc.simulator.simulator import run_simulation


def compile_simulator() -> None:
    """Compile all that a simulation calls, or take it from the cache: simulate one request and one micro-batch.

    Whatever a recipe turns on is a number to compiled code: there is one event loop for all.
    """
    moment = LatencyModel((Affine(1.0, 0.0, 0.0),), (Affine(1.0, 0.0, 0.0),))
    config = SimulationConfig(
        nodes=1,
        stages=1,
        pieces=1,
        max_requests=1,
        max_tokens=1,
        rows=1,
        serving_first=True,
        yield_training=True,
        minimum_share=0.0,
        sync=False,
        gpipe=False,
        servers=0,
        copy_every=1,
        endless=False,
        latency_error=0.0,
        seed=0,
        logs=False,
        measures=False,
        limited=False,
        max_wait=0.0,
        offload_rate=0.0,
    )
    requests = make_requests([0.0], [1], np.zeros(1, dtype=np.int64))
    scheduler = Scheduler(SchedulerConfig(nodes=1), moment)
    run_simulation(scheduler, config, make_times([moment], np.zeros(1, dtype=np.int64)), requests, iter([[1]]))
