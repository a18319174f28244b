"""What training could get beside requests that generate, by arithmetic, and what it gets in simulation.

    python benchmarks/generation_bound.py
    python benchmarks/generation_bound.py --rates 8 40 --set slo.tpot_ms=25

The bound: all stages train, but for the least time that serving needs. That is one decode pass in each TPOT limit, on as few
nodes as can make theirs in that time (or all), and the prompts. Attainment is of all limits. Training tokens/s are counted in
the last three quarters of the arrivals, so that neither the start nor the end of a run is in them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.latency import Shape
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.studies.recipe_variants import with_rate, with_seed
from lemix_hpc.studies.simulated_run import Simulated, simulate
from lemix_hpc.workload.load import load_workload

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "generation-study.yaml"


def serving_share(recipe: Recipe) -> float:
    """The least part of all stages' time that its requests need; above 1 if they need more than there is."""
    assert recipe.slo.tpot_ms is not None
    rate, tpot, nodes = recipe.serving.source.rate, recipe.slo.tpot_ms / 1e3, recipe.nodes.count  # type: ignore[union-attr]
    latency, requests = load_hardware(recipe).reference.latency(recipe.nodes.stages), load_workload(recipe).requests
    idle = sum(latency.forward_times(Shape(0, 0)))
    prompts = rate * float(np.mean([sum(latency.forward_times(Shape.of((r.prompt_tokens,)))) - idle for r in requests]))
    waits = [tpot * (r.output_tokens - 1) for r in requests]
    decoding = rate * float(np.mean(waits))
    cached = rate * float(
        np.mean([w * (r.prompt_tokens + r.output_tokens / 2) for w, r in zip(waits, requests, strict=True)])
    )
    # Forms are nearly straight in the number of requests: the time of a pass of k nodes' share follows from that of all.
    each = sum(latency.forward_times(Shape(round(decoding), round(decoding), cached))) - idle
    fits = (k for k in range(1, nodes) if idle + each / k + prompts * tpot / k <= tpot)
    serving = next(fits, nodes)
    return float(((serving * idle + each) / tpot + prompts) / (nodes * recipe.nodes.stages))


def steady_tokens(run: Simulated) -> float:
    """Training tokens/s in the last three quarters of the arrivals."""
    last = max(task.arrival for task in run.records.served)
    trained = [task for task in run.records.trained if task.finished is not None]
    return sum(task.tokens for task in trained if 0.25 * last <= task.finished < last) / (0.75 * last)  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[4, 8, 16, 24, 40], help="requests/s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alone", type=float, default=36148.0, help="training tokens/s without requests")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    print(
        f"{'requests/s':>10} {'limits met':>11} {'tokens/s':>9} {'bound':>7} {'share':>7} {'TPOT':>5} {'TTFT':>5}  ms, median"
    )
    for rate in args.rates:
        rows = []
        for seed in args.seeds:
            recipe = with_seed(with_rate(load_recipe(RECIPE, args.overrides), rate), seed)
            run, bound = simulate(recipe), args.alone * (1.0 - serving_share(recipe))
            serving = run.summary["serving"]
            tokens = steady_tokens(run)
            met = serving["slo_ms"].get("all", min(serving["slo_ms"].values()))
            rows.append((met, tokens, bound, serving["tpot_ms"]["p50"], serving["ttft_ms"]["p50"]))
        met, tokens, bound, tpot, ttft = np.mean(rows, axis=0)
        print(
            f"{rate:>10g} {100 * met:>9.2f} % {tokens:>9,.0f} {bound:>7,.0f} {100 * tokens / bound:>5.1f} %"
            f" {tpot:>5.1f} {ttft:>5.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
