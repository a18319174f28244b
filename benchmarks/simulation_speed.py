"""How many tasks a second one process simulates, policy included.

    python benchmarks/simulation_speed.py
    python benchmarks/simulation_speed.py --nodes 4 64 1024 --tasks 200000

Half of the tasks are requests with chat prompts that come as fast as 60 % of the stages' time allows, half training
micro-batches of chat lengths. `loop` is the discrete-event loop alone, `all` also reads the recipe's workload and makes the
records of every task and pass.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.placements import DEFAULT, PLACEMENTS
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.run_setup.scheduler_setup import make_scheduler, mean_unloaded_response
from lemix_hpc.simulator.cluster_state import make_requests
from lemix_hpc.simulator.from_recipe import make_config, make_times_of
from lemix_hpc.simulator.simulator import run_simulation
from lemix_hpc.studies.simulated_run import simulate
from lemix_hpc.workload.load import load_workload

COEFFICIENTS = Path(__file__).parent.parent / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
T0 = 0.0504
"""Seconds that a mean chat prompt takes on one such node."""


def recipe_of(nodes: int, stages: int, tasks: int, placement: str) -> Recipe:
    return Recipe.model_validate(
        {
            "nodes": {"count": nodes, "stages": stages},
            "engine": {"kind": "emulated", "coefficients": COEFFICIENTS, "max_batch_requests": 1},
            "serving": {
                "source": {
                    "kind": "poisson",
                    "rate": 0.6 * nodes * stages / T0,
                    "requests": tasks // 2,
                    "lengths": "lmsys-chat",
                }
            },
            "training": {"share": 0.5, "lengths": "lmsys-chat"},
            "policy": {"placement": placement},
        }
    )


def loop_seconds(recipe: Recipe) -> float:
    """Seconds of the discrete-event loop alone."""
    hardware, work = load_hardware(recipe), load_workload(recipe)
    t0 = mean_unloaded_response(hardware.reference.latency(recipe.nodes.stages), work.requests.demand, recipe)
    assert work.batches is not None, "the recipe trains"
    lengths = [batch.length for batch in itertools.islice(work.batches, len(work.requests))]
    requests = make_requests(
        [request.arrival for request in work.requests],
        [request.prompt_tokens for request in work.requests],
        np.zeros(len(work.requests), dtype=np.int64),
    )
    scheduler, times = make_scheduler(recipe, hardware, t0), make_times_of(recipe, hardware)
    config = make_config(recipe, hardware, endless=False, logs=False)
    start = time.perf_counter()
    run_simulation(scheduler, config, times, requests, iter([length] for length in lengths))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 64, 1024])
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--placement", default=DEFAULT, choices=PLACEMENTS)
    args = parser.parse_args()
    loop_seconds(recipe_of(2, args.stages, 100, args.placement))  # compile first
    print(f"{args.placement}, {args.stages} stages a node, {args.tasks} tasks; simulated tasks per second")
    print(f"{'nodes':>6} {'loop':>10} {'all':>10}")
    for nodes in args.nodes:
        recipe = recipe_of(nodes, args.stages, args.tasks, args.placement)
        loop = loop_seconds(recipe)
        start = time.perf_counter()
        simulate(recipe)
        print(f"{nodes:>6} {args.tasks / loop:>10.0f} {args.tasks / (time.perf_counter() - start):>10.0f}")


if __name__ == "__main__":
    main()
