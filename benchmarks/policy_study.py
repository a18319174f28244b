"""The tables of docs/policy-study.md that `lemix compare` and `lemix capacity` do not print.

    python benchmarks/policy_study.py ablations
    python benchmarks/policy_study.py scores
    python benchmarks/policy_study.py bursts
    python benchmarks/policy_study.py kinds
    python benchmarks/policy_study.py conversations
    python benchmarks/policy_study.py bounds
    python benchmarks/policy_study.py in-flight
    python benchmarks/policy_study.py memory
    python benchmarks/policy_study.py day
    python benchmarks/policy_study.py trace --azure conv.csv

Each row is the mean over the seeds of simulations of recipes/policy-study.yaml with one thing changed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from lemix_hpc.config.load import load_recipe
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.placements import PLACEMENTS
from lemix_hpc.profiling.coefficients import load_coefficients
from lemix_hpc.studies.simulated_run import simulate

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "policy-study.yaml"
A100 = ROOT / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"


@dataclass(frozen=True)
class Case:
    """A row: what it is called, and what it changes in the recipe."""

    name: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """Attainment at 5 T0, tasks/s, tasks per active node and second, responses in ms, training's share of stage time,
    finished micro-batches, longest hold in s, and the mean forecast error in T0."""

    slo: float
    tasks: float
    per_node: float
    median: float
    p99: float
    training: float
    trained: float
    hold: float
    error: float


def run(changes: tuple[str, ...]) -> Figures:
    """Simulate the recipe with these changes."""
    report = simulate(load_recipe(RECIPE, changes)).summary
    serving, training, throughput = report["serving"], report["training"], report["throughput"]
    return Figures(
        slo=serving["slo"]["5"],
        tasks=throughput["per_makespan"],
        per_node=throughput["per_active_node"],
        median=serving["response_ms"]["p50"],
        p99=serving["response_ms"]["p99"],
        training=training["stage_share"] or 0.0,
        trained=training["finished"],
        hold=training["hold_s"]["max"] or 0.0,
        error=report["forecast_error_t0"]["mean"],
    )


def table(cases: Sequence[Case], under: Sequence[Case], seeds: int) -> None:
    """Print every case under every load."""
    runs = [(*load.changes, *case.changes, f"seed={seed}") for load in under for case in cases for seed in range(seeds)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        done = iter(list(pool.map(run, runs)))
    for load in under:
        print(f"\n{load.name}\n| | SLO(5) % | tasks/s | p50 ms | p99 ms | training % | held at most s | error T0 |")
        print("|---|---|---|---|---|---|---|---|")
        for case in cases:
            all_seeds = [next(done) for _ in range(seeds)]

            def mean(name: str, of: list[Figures] = all_seeds) -> float:
                return statistics.mean(float(getattr(figures, name)) for figures in of)

            print(
                f"| {case.name} | {100 * mean('slo'):.1f} | {mean('tasks'):.1f} | {mean('median'):.0f} | {mean('p99'):.0f}"
                f" | {100 * mean('training'):.1f} | {mean('hold'):.2f} | {mean('error'):.2f} |"
            )


def loads(rates: Sequence[float], requests: int) -> list[Case]:
    amount = f"serving.source.requests={requests}"
    return [Case(f"{rate:g} requests/s", (amount, f"serving.source.rate={rate}")) for rate in rates]


def ablations(folder: Path) -> list[Case]:
    """Each mechanism of the default off, other latency models, wrong forecasts."""
    quadratic = folder / "quadratic.yaml"
    quadratic.write_text(yaml.safe_dump(paper_form()))
    return [
        Case("default"),
        Case("serving first off", ("policy.serving_first=false",)),
        Case("yield off", ("policy.yield_training=false",)),
        Case("both off", ("policy.serving_first=false", "policy.yield_training=false")),
        Case("admission none", ("policy.admission=none",)),
        Case("admission paper", ("policy.admission=paper",)),
        Case("minimum share 0", ("policy.minimum_training_share=0",)),
        Case("minimum share 20 %", ("policy.minimum_training_share=0.2",)),
        Case("order fcfs", ("policy.order=fcfs",)),
        Case("order shortest", ("policy.order=shortest",)),
        Case("one lane", ("policy.lanes=1",)),
        Case("sync 1F1B, M = 4", ("training.release=sync", "training.micro_batches_per_step=4")),
        Case("sync GPipe, M = 4", sync_gpipe()),
        Case("quadratic latency model", (f"policy.coefficients={quadratic}", "policy.recalibrate=false")),
        Case("the same, recalibrated", (f"policy.coefficients={quadratic}",)),
        Case("passes 10 % off", ("simulate.latency_error=0.1",)),
        Case("passes 30 % off", ("simulate.latency_error=0.3",)),
    ]


def sync_gpipe() -> tuple[str, ...]:
    group = ("training.micro_batches_per_step=4", "training.in_flight=null")
    return ("training.release=sync", "training.schedule=gpipe", *group)


def paper_form() -> dict[str, Any]:
    """A coefficient file of the paper's form, t = eta C l^2, with eta the mean of t / (C l^2) over 64 to 4096 tokens."""
    latency = load_coefficients(A100).latency(1)
    lengths = [64, 128, 256, 512, 1024, 2048, 4096]
    content: dict[str, Any] = yaml.safe_load(A100.read_text())
    layers = content["layers"]
    eta = statistics.mean(latency.forward_times(Shape.of((length,)))[0] / length**2 for length in lengths) / layers
    content["form"] = "quadratic"
    content["per_layer"] = {"forward": {"eta": eta}, "backward": 2.0}
    return content


def scores() -> list[Case]:
    """The weights of `lemix`, one after the other."""
    base = "policy.placement=lemix"
    defaults = PLACEMENTS["lemix"].knob_values()
    cases = [Case("least-completion"), Case("lemix", (base,))]
    for name, values in {
        "lambda1": (0.0, 0.05, 0.5, 2.0),
        "lambda2": (0.0, 0.5),
        "tau": (0.0, 1.0, 5.0),
        "keep": (0.5, 2.0, 20.0),
    }.items():
        for value in values:
            keys = defaults | {name: value}
            cases.append(Case(f"{name} = {value:g}", (base, *(f"policy.{key}={at}" for key, at in keys.items()))))
    return cases


def placements() -> list[Case]:
    return [Case(name, (f"policy.placement={name}",)) for name in PLACEMENTS]


def bursts(requests: int) -> list[Case]:
    """Four times the rate for 1 s, nothing for 3 s."""
    shared = ("serving.source.kind=bursty", f"serving.source.requests={requests}")
    return [
        Case(f"bursts of {4 * rate:g} requests/s, {rate:g} in the mean", (*shared, f"serving.source.rate={4 * rate}"))
        for rate in (16, 32, 64)
    ]


def kinds(folder: Path) -> list[Case]:
    """Two of four nodes half as fast; for the last row forecasts take all for fast."""
    slow = folder / "half-as-fast.yaml"
    content = yaml.safe_load(A100.read_text())
    forward = content["per_layer"]["forward"]
    content["per_layer"]["forward"] = {name: 2.0 * value for name, value in forward.items()}
    slow.write_text(yaml.safe_dump(content))
    mixed = f"nodes.kinds=[{{count: 2}}, {{count: 2, coefficients: {slow}}}]"
    return [Case(case.name, (*case.changes, mixed)) for case in placements()]


def conversations() -> list[Case]:
    """Turns that come after the answer to the one before, and carry the history along."""
    turns = "serving.conversations={turns: 4, think_s: 2.0}"
    capped = "serving.max_prompt_tokens=4096"
    return [Case(case.name, (*case.changes, turns, capped)) for case in placements()]


def bounds(seeds: int, tasks: int) -> None:
    """How much of `separate`'s makespan any policy can save where training is nearly all: training alone on every node."""
    print("| rate | share | separate tasks/s | default | ratio | training alone on all nodes | its ratio |")
    print("|---|---|---|---|---|---|---|")
    for share in (0.5, 0.9):
        micro_batches = round(share * tasks)
        requests = tasks - micro_batches
        common = (f"training.share={share}", f"serving.source.requests={requests}", "serving.source.rate=100")
        alone = ("serving=null", "training.share=null", f"training.micro_batches={micro_batches}")
        runs = {
            "separate": (*common, "policy.placement=separate"),
            "default": common,
            "alone": (*alone, "slo.factors=[5]"),
        }
        rates = {
            name: statistics.mean(throughput((*changes, f"seed={seed}")) for seed in range(seeds))
            for name, changes in runs.items()
        }
        # With all requests for nothing, so many tasks would be done in the time of the training alone.
        bound = rates["alone"] * tasks / micro_batches
        print(
            f"| 100 | {share} | {rates['separate']:.1f} | {rates['default']:.1f}"
            f" | {rates['default'] / rates['separate']:.2f} | {bound:.1f} | {bound / rates['separate']:.2f} |"
        )


def in_flight(seeds: int, tasks: int, stages: int) -> None:
    """Tasks/makespan by micro-batches in flight; of chat lengths, and all equal."""
    numbers = [times * stages for times in (1, 2, 4, 8)]
    nodes = (f"nodes.stages={stages}", f"nodes.count={8 // stages}")
    lengths = {"chat lengths": (), "770 tokens each": ("training.lengths=null", "training.sequence_length=770")}
    print("| micro-batches | training | placement |" + "".join(f" {number} |" for number in numbers))
    print("|---|---|---|" + "---|" * len(numbers))
    for (name, changes), share, placement in itertools.product(
        lengths.items(), (0.5, 0.9), ("least-completion", "separate")
    ):
        common = (*nodes, *changes, f"training.share={share}", f"serving.source.requests={round((1 - share) * tasks)}")
        cells = []
        for number in numbers:
            case = (*common, "serving.source.rate=100", f"policy.placement={placement}", f"training.in_flight={number}")
            cells.append(statistics.mean(throughput((*case, f"seed={seed}")) for seed in range(seeds)))
        print(f"| {name} | {100 * share:g} % | `{placement}` |" + "".join(f" {cell:.1f} |" for cell in cells))


def memory(seeds: int, requests: int) -> None:
    """Memory awareness off, in part, and on, on stages of 80 GB, and without an end for comparison."""
    generates = (
        "serving.mode=generate",
        "engine.max_batch_requests=64",
        "policy.pace=none",
        "serving.max_new_tokens=400",
    )
    long = ("training.lengths=null", "training.sequence_length=4096", "training.in_flight=4")
    loads = {
        "scored, 100/s": ("serving.source.rate=100", "training.in_flight=8"),
        "generated, 24/s": (*generates, "serving.source.rate=24", "training.in_flight=8"),
        "long, generated, 8/s": (*generates, *long, "serving.source.rate=8", "serving.source.lengths=azure-conv"),
    }
    print("| | `mode` | SLO(5) % | tasks/s | waits | mean s | offloads | caches lost | fullest stage % | unfinished |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (name, load), mode in itertools.product(loads.items(), ("ignore", "wait", "offload")):
        limit = f"policy.memory={{mode: {mode}, capacity_gb: 80, offload_gb_per_s: 20}}"
        changes = (*load, limit, f"serving.source.requests={requests}")
        rows = [memory_figures((*changes, f"seed={seed}")) for seed in range(seeds)]
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        cells = (f"{value:,.{digits}f}" for value, digits in zip(means, (1, 1, 0, 2, 0, 0, 0, 0), strict=True))
        print(f"| {name} | `{mode}` | " + " | ".join(cells) + " |", flush=True)


def memory_figures(changes: tuple[str, ...]) -> list[float]:
    """SLO(5) %, tasks/s, waits for memory, seconds of one in the mean, offloads, caches lost, the most that a stage would have
    held in % of its memory, and tasks that did not end."""
    report = simulate(load_recipe(RECIPE, changes)).summary
    serving, training, used = report["serving"], report["training"], report["memory"]
    waits = [used["serving_waits"], used["training_waits"]]
    count = sum(each["count"] for each in waits)
    return [
        100 * serving["slo"]["5"],
        report["throughput"]["per_makespan"],
        count,
        sum(each["count"] * (each["mean_s"] or 0.0) for each in waits) / max(count, 1),
        used["offloads"],
        used["preemptions"],
        100 * max(stage["peak"] for stage in used["stages"]),
        serving["received"] - serving["finished"] + training["released"] - training["finished"],
    ]


def throughput(changes: tuple[str, ...]) -> float:
    """Tasks per second of makespan."""
    return float(simulate(load_recipe(RECIPE, changes)).summary["throughput"]["per_makespan"])


def day(hours: float) -> None:
    """A day of a load curve, taking `hours`, on one node: what drifts, what starves, what is held."""
    seconds = 3600 * hours
    source = f"{{kind: daily, rate: 12, swing: 0.8, period_s: {seconds}, duration_s: {seconds}, lengths: lmsys-chat}}"
    changes = (
        "nodes.count=1",
        f"serving.source={source}",
        f"training={{micro_batches: {max(1, round(19000 * hours))}, lengths: lmsys-chat}}",
    )
    done = simulate(load_recipe(RECIPE, changes))
    served, trained, t0 = done.records.served, done.records.trained, done.records.facts.t0_s
    print("| hours | requests/s | SLO(5) % | p99 ms | error T0 | micro-batches/s | mean hold ms | longest hold s |")
    print("|---|---|---|---|---|---|---|---|")
    eighth = seconds / 8
    for part in range(8):
        start, end = part * eighth, (part + 1) * eighth
        window = [task for task in served if start <= task.arrival < end]
        responses = sorted(task.finished - task.arrival for task in window if task.finished is not None)
        errors = [
            abs(task.predicted_response_s - task.finished + task.arrival) / t0
            for task in window
            if task.finished is not None and task.predicted_response_s is not None
        ]
        batches = [task for task in trained if task.placed is not None and start <= task.placed < end]
        holds = [task.placed - task.eligible for task in batches if task.placed is not None]
        print(
            f"| {start / 3600:g}-{end / 3600:g} | {len(window) / eighth:.1f}"
            f" | {100 * sum(seconds <= 5 * t0 for seconds in responses) / len(window):.1f}"
            f" | {1e3 * responses[int(0.99 * len(responses))]:.0f} | {statistics.mean(errors):.3f}"
            f" | {len(batches) / eighth:.1f} | {1e3 * statistics.mean(holds or [0.0]):.2f} | {max(holds, default=0.0):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("ablations", "scores", "bursts", "kinds", "conversations", "bounds", "in-flight", "memory", "day", "trace")
    parser.add_argument("table", choices=names)
    parser.add_argument("--rates", type=float, nargs="+", default=[50.0, 100.0, 140.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000, help="and as many micro-batches")
    parser.add_argument("--stages", type=int, default=2, help="of `in-flight`: 8 / stages nodes")
    parser.add_argument("--hours", type=float, default=24.0, help="of `day`")
    parser.add_argument("--azure", type=Path, help="conv.csv of the Azure LLM inference trace 2023, for `trace`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        match args.table:
            case "ablations":
                table(ablations(folder), loads(args.rates, args.requests), args.seeds)
            case "scores":
                table(scores(), loads(args.rates, args.requests), args.seeds)
            case "bursts":
                table(placements(), bursts(args.requests), args.seeds)
            case "kinds":
                table(kinds(folder), loads(args.rates, args.requests), args.seeds)
            case "conversations":
                table(conversations(), loads(args.rates, args.requests), args.seeds)
            case "bounds":
                bounds(args.seeds, 2 * args.requests)
            case "in-flight":
                in_flight(args.seeds, 2 * args.requests, args.stages)
            case "memory":
                memory(args.seeds, args.requests)
            case "day":
                day(args.hours)
            case "trace":
                if args.azure is None:
                    parser.error("trace needs --azure PATH")
                source = f"serving.source={{kind: azure, path: {args.azure.resolve()}}}"
                window = "serving.window={limit: 2000}"
                scaled = [
                    Case(
                        f"Azure conversations, {scale:g} times as fast", (source, window, f"serving.rate_scale={scale}")
                    )
                    for scale in (4, 8, 12)
                ]
                table(placements(), scaled, args.seeds)


if __name__ == "__main__":
    main()
