"""The tables of docs/generation-study.md that `lemix compare` does not print in one line.

    python benchmarks/generation_study.py limits
    python benchmarks/generation_study.py bursts
    python benchmarks/generation_study.py kinds --rates 16
    python benchmarks/generation_study.py batch
    python benchmarks/generation_study.py errors --rates 24
    python benchmarks/generation_study.py outputs --rates 24
    python benchmarks/generation_study.py azure --rates 8 16 24 --file conv.csv
    python benchmarks/generation_study.py mooncake --rates 0.5 1 --requests 300 --file conversation_trace.jsonl

Each figure is the mean over the seeds of simulations of recipes/generation-study.yaml with requests for `--seconds`, and with
what the table says changed. Training tokens/s are those in the last three quarters of the arrivals.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import yaml

from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.report import metrics
from lemix_hpc.report.classes import of_class
from lemix_hpc.run_setup.scheduler_setup import pace_of
from lemix_hpc.studies.recipe_variants import with_rate
from lemix_hpc.studies.simulated_run import Simulated, simulate
from lemix_hpc.studies.sweep import spread
from lemix_hpc.workload.load import load_workload

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "generation-study.yaml"
A100 = ROOT / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
COLUMNS = (
    "within limits",
    "training tokens/s",
    "served tokens per stage-second",
    "TTFT, TPOT, response, medians",
    "TPOT p99",
    "forecast errors of TTFT, TPOT",
)
KEPT = 0.97
"""The best split is the one that trains most while it keeps this share of requests within the limits, if any does."""

Changes = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What a row or a column is called, and what it changes in the recipe."""

    name: str
    changes: Changes = ()


PACED = Case("paced, `fill` (default)")
IN_TURN = Case("paced, `round-robin`", ("policy.placement=round-robin",))
UNPACED = Case("not paced, default", ("policy.pace=none",))
SPLITS = tuple(
    Case(f"{nodes} of 4 train", ("policy.placement=separate", f"policy.training_nodes={nodes}")) for nodes in (1, 2, 3)
)
LIMITS = (
    Case("1 s, 50 ms"),
    Case("1 s, 25 ms", ("slo.tpot_ms=25",)),
    Case("252 ms, 31 ms: 5 x unloaded", ("slo.ttft_ms=252", "slo.tpot_ms=31")),
)


@dataclass(frozen=True)
class Work:
    """A simulation: changes of the recipe, requests/s if they are not the recipe's, and whose limits are looked at."""

    changes: Changes
    rate: float | None
    limits: tuple[Changes, ...] = ((),)


@dataclass(frozen=True)
class Figures:
    """`met`: within both limits, for each pair of them; training tokens/s; tokens served per stage-second of serving; medians
    of TTFT, TPOT and response, and the 99th percentile of TPOT [ms]; mean errors of the forecasts of the first two [ms];
    tokens/s of batch requests."""

    met: tuple[float, ...]
    trained: float
    per_stage: float
    ttft: float
    tpot: float
    response: float
    slowest: float
    first_error: float
    each_error: float
    batch: float


def measure(work: Work) -> Figures:
    """Simulate."""
    recipe = _recipe(work.changes, work.rate)
    run = simulate(recipe)
    report = run.summary
    serving = report["serving"]
    times = serving["classes"]["interactive"]
    return Figures(
        tuple(_met(run, work, limits) for limits in work.limits),
        steady_tokens(run),
        serving["tokens_per_stage_s"],
        times["ttft_ms"]["p50"],
        times["tpot_ms"]["p50"],
        times["response_ms"]["p50"],
        times["tpot_ms"]["p99"],
        report["forecast_error_ttft_ms"]["mean"],
        report["forecast_error_tpot_ms"]["mean"],
        serving["classes"].get("batch", {}).get("tokens_per_s") or 0.0,
    )


def _recipe(changes: Changes, rate: float | None) -> Recipe:
    recipe = load_recipe(RECIPE, changes)
    return recipe if rate is None else with_rate(recipe, rate)


def _pace(changes: Changes, rate: float | None) -> tuple[Recipe, Pace]:
    """The recipe, and what its requests are paced to."""
    recipe = _recipe(changes, rate)
    latency = load_hardware(recipe).reference.latency(recipe.nodes.stages)
    pace = pace_of(recipe, latency, load_workload(recipe).requests.demand)
    assert pace is not None, "the recipe has a limit on the time per token, or says that it is paced"
    return recipe, pace


def _met(run: Simulated, work: Work, limits: Changes) -> float:
    """The share of interactive requests within both limits."""
    same = tuple(change for change in work.changes if not change.startswith("policy."))
    _, pace = _pace((*same, *limits), work.rate)
    interactive = of_class(run.records.served, "interactive")
    return metrics.attainments(interactive, {"ttft": 1e3 * pace.ttft, "tpot": 1e3 * pace.tpot})["all"] or 0.0


def steady_tokens(run: Simulated) -> float:
    """Training tokens/s in the last three quarters of the arrivals: neither the start nor the end of a run is in them."""
    last = max(task.arrival for task in run.records.served)
    ended = ((task.finished, task.tokens) for task in run.records.trained)
    return sum(tokens for end, tokens in ended if end is not None and 0.25 * last <= end < last) / (0.75 * last)


def serving_share(changes: Changes, rate: float) -> float:
    """The least part of all stages' time that requests need; above 1 if they need more than there is.

    That is one decode pass in each TPOT limit, in as few batches as can make theirs in that time if no prompt is in them, and
    the prompts. No policy can do quite that: prompts have to be in some pass, and make it longer.
    """
    recipe, pace = _pace(changes, rate)
    tpot, batches = pace.tpot, recipe.nodes.count * recipe.nodes.stages
    latency, requests = load_hardware(recipe).reference.latency(recipe.nodes.stages), load_workload(recipe).requests
    idle = sum(latency.forward_times(Shape(0, 0)))
    prompts = rate * float(np.mean([sum(latency.forward_times(Shape.of((r.prompt_tokens,)))) - idle for r in requests]))
    waits = [tpot * (r.output_tokens - 1) for r in requests]
    decoding = rate * float(np.mean(waits))
    cached = rate * float(
        np.mean([w * (r.prompt_tokens + r.output_tokens / 2) for w, r in zip(waits, requests, strict=True)])
    )
    # Forms are nearly straight in the number of requests: the time of a batch of a part of them follows from that of all.
    each = sum(latency.forward_times(Shape(round(decoding), round(decoding), cached))) - idle
    least = next((count for count in range(1, batches) if idle + each / count <= tpot), batches)
    return float(((least * idle + each) / tpot + prompts) / batches)


def alone() -> float:
    """Training tokens/s of the cluster without requests."""
    recipe = load_recipe(RECIPE, ("serving=null", "training.micro_batches=1600"))
    return float(simulate(recipe).summary["training"]["tokens_per_s"])


def means(works: Sequence[Work], seeds: int, jobs: int) -> list[Figures]:
    """Each simulation with all seeds."""
    each = [Work((*w.changes, f"seed={seed}"), w.rate, w.limits) for w in works for seed in range(seeds)]
    done = list(spread(measure, each, jobs=jobs))
    return [_mean(done[number : number + seeds]) for number in range(0, len(done), seeds)]


def _mean(of: Sequence[Figures]) -> Figures:
    def mean(name: str) -> float:
        return float(np.mean([getattr(figures, name) for figures in of]))

    names = [name for name in Figures.__dataclass_fields__ if name != "met"]
    return Figures(tuple(np.mean([figures.met for figures in of], axis=0).tolist()), **{n: mean(n) for n in names})


def limits(rates: Sequence[float], common: Changes, seeds: int, jobs: int) -> None:
    """Placements and paces under three pairs of limits, and what pacing costs under the first."""
    unpaced, paced = (UNPACED, *SPLITS), (PACED, IN_TURN)
    everything = tuple(case.changes for case in LIMITS)
    works = [Work((*common, *case.changes), rate, everything) for rate in rates for case in unpaced]
    works += [
        Work((*common, *limit.changes, *case.changes), rate, (limit.changes,))
        for rate in rates
        for limit in LIMITS
        for case in paced
    ]
    done = iter(means(works, seeds, jobs))
    free = {rate: [next(done) for _ in unpaced] for rate in rates}
    held = {(rate, limit): [next(done) for _ in paced] for rate in rates for limit in LIMITS}
    most = alone()
    print(f"without requests: {most:,.0f} training tokens/s")
    for number, limit in enumerate(LIMITS):
        _head(limit.name, "requests/s", *(case.name for case in (*paced, UNPACED)), "best split", "bound", "part of it")
        for rate in rates:
            cells = [_cell(figures) for figures in held[rate, limit]]
            name, best = best_split(free[rate][1:], number)
            shares = [serving_share((*common, *limit.changes, f"seed={seed}"), rate) for seed in range(seeds)]
            bound = most * (1.0 - float(np.mean(shares)))
            part = f"{100 * held[rate, limit][0].trained / bound:.1f} %"
            split = f"{_cell(best, number)} ({name})"
            _row(f"{rate:g}", *cells, _cell(free[rate][0], number), split, f"{bound:,.0f}", part)
    _head("what pacing costs, 1 s and 50 ms", "requests/s", "paced: TTFT, TPOT, response ms", "not paced")
    for rate in rates:
        _row(f"{rate:g}", *(_waits(figures) for figures in (held[rate, LIMITS[0]][0], free[rate][0])))


def best_split(splits: Sequence[Figures], number: int) -> tuple[str, Figures]:
    """Of those that keep enough requests within the limits, the one that trains most; else the one that keeps most."""
    named = [(case.name, figures) for case, figures in zip(SPLITS, splits, strict=True)]
    good = [pair for pair in named if pair[1].met[number] >= KEPT]
    if good:
        return max(good, key=lambda pair: pair[1].trained)
    return max(named, key=lambda pair: pair[1].met[number])


def table(
    title: str, cases: Sequence[Case], rates: Sequence[float | None], common: Changes, seeds: int, jobs: int
) -> None:
    """Every case at every rate, a row each."""
    rows = [(case, rate) for rate in rates for case in cases]
    done = means([Work((*common, *case.changes), rate) for case, rate in rows], seeds, jobs)
    batch = any(figures.batch for figures in done)
    _head(title, "", *COLUMNS, *(["batch tokens/s"] if batch else []))
    for (case, rate), of in zip(rows, done, strict=True):
        name = case.name if rate is None else f"{rate:g}/s, {case.name}"
        cells = [
            f"{100 * of.met[0]:.2f} %",
            f"{of.trained:,.0f}",
            f"{of.per_stage:,.0f}",
            f"{_waits(of)} ms",
            f"{of.slowest:.1f} ms",
        ]
        _row(name, *cells, f"{of.first_error:.0f}, {of.each_error:.1f} ms", *([f"{of.batch:,.0f}"] if batch else []))


def _cell(of: Figures, number: int = 0) -> str:
    return f"{100 * of.met[number]:.2f} %, {of.trained:,.0f}, {of.per_stage:,.0f}"


def _waits(of: Figures) -> str:
    return f"{of.ttft:.0f}, {of.tpot:.1f}, {of.response:,.0f}"


def _head(title: str, *columns: str) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def scaled(folder: Path, factor: float) -> Path:
    """A coefficient file with all forward times, and so the backward ones, times a factor."""
    path = folder / f"times-{factor:g}.yaml"
    content = yaml.safe_load(A100.read_text())
    forward = content["per_layer"]["forward"]
    content["per_layer"]["forward"] = {name: factor * value for name, value in forward.items()}
    path.write_text(yaml.safe_dump(content))
    return path


def errors(folder: Path) -> list[Case]:
    """Passes that differ from what is known of them, at random and all alike."""
    cases = [Case("exact")]
    cases += [Case(f"each pass {100 * e:g} % off", (f"simulate.latency_error={e}",)) for e in (0.1, 0.3)]
    for factor in (1.1, 1.3, 1 / 1.1, 1 / 1.3):
        wrong = f"policy.coefficients={scaled(folder, factor)}"
        cases.append(Case(f"file x {factor:.2f}", (wrong,)))
        cases.append(Case(f"file x {factor:.2f}, not corrected", (wrong, "policy.recalibrate=false")))
    return cases


def bursts() -> list[Case]:
    """Four times the rate for 1 s in 4."""
    bursty = "serving.source.kind=bursty"
    return [
        Case(f"{rate}/s for 1 s in 4, {case.name}", (bursty, f"serving.source.rate={rate}", *case.changes))
        for rate in (48, 96, 160)
        for case in (PACED, IN_TURN, UNPACED)
    ]


def kinds(folder: Path) -> list[Case]:
    """Two of four nodes half as fast."""
    mixed = f"nodes.kinds=[{{count: 2}}, {{count: 2, coefficients: {scaled(folder, 2.0)}}}]"
    return [Case(case.name, (mixed, *case.changes)) for case in (PACED, IN_TURN, UNPACED, *SPLITS)]


def batch() -> list[Case]:
    """24 interactive requests/s, alone and with three times as many batch requests beside them."""
    cases = [Case("no batch requests", ("serving.source.rate=24",))]
    for share in (0.2, 0.5, 0.8):
        mixed = ("serving.source.rate=96", "serving.batch_requests=0.75", f"policy.batch_share={share}")
        cases.append(Case(f"`batch_share` {share:g}", mixed))
    return cases


def outputs(folder: Path, rate: float) -> list[Case]:
    """Answers whose lengths are not known, known, and such that what was learned of them is wrong: in the middle third of the
    arrivals they are an eighth as long."""
    requests = load_workload(_recipe((), rate)).requests
    third = len(requests) // 3
    path = folder / "answers.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
        for number, request in enumerate(requests):
            divisor = 8 if third <= number < 2 * third else 1
            at = datetime(2023, 11, 16, tzinfo=UTC) + timedelta(seconds=request.arrival)
            rows.writerow((at.isoformat(), request.prompt_tokens, max(1, request.output_tokens // divisor)))
    changing = f"serving.source={{kind: azure, path: {path}}}"
    return [
        Case(f"{name}, {known}, {case.name}", (*trace, *changes, *case.changes))
        for name, trace in (("steady", ()), ("shorter in the middle", (changing,)))
        for known, changes in (("median", ()), ("known", ("policy.output_lengths=oracle",)))
        for case in (PACED, UNPACED)
    ]


def traced(kind: str, path: Path, limit: int, changes: Changes = ()) -> list[Case]:
    """The first requests of a trace, as fast as the rate says."""
    source = (
        f"serving.source={{kind: {kind}, path: {path.resolve()}}}",
        f"serving.window={{limit: {limit}}}",
        *changes,
    )
    return [Case(case.name, (*source, *case.changes)) for case in (PACED, IN_TURN, UNPACED, *SPLITS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("limits", "bursts", "kinds", "batch", "errors", "outputs", "azure", "mooncake")
    parser.add_argument("table", choices=names)
    parser.add_argument("--rates", type=float, nargs="+", default=[4, 8, 16, 24, 40, 60, 80], help="requests/s")
    parser.add_argument("--seconds", type=float, default=100.0, help="of arrivals, where they are generated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--file", type=Path, help="of `azure` and `mooncake`: the trace")
    parser.add_argument("--requests", type=int, default=2000, help="at most so many of it")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    if args.table in ("azure", "mooncake") and args.file is None:
        parser.error(f"{args.table} needs --file PATH")
    lasting = ("serving.source.requests=null", f"serving.source.duration_s={args.seconds}")
    how = {"common": lasting, "seeds": args.seeds, "jobs": args.jobs}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        match args.table:
            case "limits":
                limits(args.rates, **how)
            case "bursts":
                table("bursts", bursts(), [None], **how)
            case "kinds":
                table("two of four nodes half as fast", kinds(folder), args.rates, **how)
            case "batch":
                table("batch requests beside interactive ones", batch(), [None], **how)
            case "errors":
                table("stage times that are not as expected", errors(folder), args.rates, **how)
            case "outputs":
                for rate in args.rates:
                    table("lengths of answers", outputs(folder, rate), [rate], **how)
            case "azure":
                table("the Azure conversation trace", traced("azure", args.file, args.requests), args.rates, **how)
            case "mooncake":
                slow = ("slo.ttft_ms=10000",)
                table("Mooncake", traced("mooncake", args.file, args.requests, slow), args.rates, **how)


if __name__ == "__main__":
    main()
