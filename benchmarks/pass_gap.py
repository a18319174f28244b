"""What a pass costs beside its work: runs recipes/generation-study.yaml (6 emulated MPI ranks) and looks between its spans.

    python benchmarks/pass_gap.py [--rate 4] [--requests 60] [--only unpaced paced ...]
    python benchmarks/pass_gap.py --of RUN_DIRECTORY ...

Four runs: decode paced and unpaced, with training without end, and with little or none (there is no pace without any). Of
each, in microseconds, 50th and 95th percentile:

* handed on: from a batch's end on one stage to its start on the next one, or from when that one was free, if that was later;
* next token: from a batch's end on the last stage to the start of the next one with its requests on the first stage, or from
  when that one was free. Not of paced runs, where it waits until it is due;
* pass: how much longer a decode pass took on a stage than the coefficient file says.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.config.load import load_recipe
from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.profiling.coefficients import load_coefficients
from lemix_hpc.records.reader import RunRecords, read_run
from lemix_hpc.records.schema import Stretch
from lemix_hpc.report.between_passes import HandedOn, NextToken
from lemix_hpc.report.recent import AtHand, in_order

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "generation-study.yaml"
RUNS = {
    "unpaced": ["policy.pace=none"],
    "paced": [],
    "unpaced, no training": ["policy.pace=none", "training=null"],
    "paced, 1 micro-batch in 10": ["training.share=0.1"],
}


@dataclass(frozen=True)
class Gaps:
    """Seconds, one number for each pass."""

    handed_on: list[float]
    next_token: list[float]
    over: list[float]


def gaps_of(run_dir: Path) -> Gaps:
    """Of a finished run."""
    recipe, run = load_recipe(run_dir / "recipe.yaml"), read_run(run_dir)
    work = list(in_order(run.stretches()))
    handed_on, next_token = HandedOn(), NextToken(AtHand(run.served), run.facts.stages - 1)
    latency = load_coefficients(run_dir / "coefficients.yaml").latency(recipe.nodes.stages)
    return Gaps(
        [gap for stretch in work if (gap := handed_on.add(stretch)) is not None],
        [] if run.facts.pace_s else [gap for stretch in work if (gap := next_token.add(stretch)) is not None],
        list(_over(run, work, latency)),
    )


def _over(run: RunRecords, work: list[Stretch], latency: LatencyModel) -> Iterator[float]:
    """How much longer decode passes took than predicted."""
    requests = {task.id: task for task in run.served}
    # Prompts may be cut, so that tokens are counted from the last one.
    left = {(task.id, stage): len(task.output) for task in run.served for stage in range(run.facts.stages)}
    for span in reversed([stretch for stretch in work if stretch.kind == "serve"]):
        names = span.members
        for name in names:
            left[name, span.stage] -= 1
        produced = [left[name, span.stage] for name in names]
        if min(produced) > 0:
            cached = [requests[name].prompt_tokens + had - 1 for name, had in zip(names, produced, strict=True)]
            yield span.end - span.start - latency.forward[span.stage].seconds(Shape.of([1] * len(cached), cached))


def run(name: str, rate: float, requests: int, out: Path) -> None:
    """A run of the recipe with 2 nodes."""
    changes = [
        "nodes.count=2",
        f"serving.source.rate={rate}",
        f"serving.source.requests={requests}",
        *RUNS[name],
    ]
    lemix = str(Path(sys.executable).with_name("lemix"))
    options = [word for change in changes for word in ("--set", change)]
    command = [lemix, "run", str(RECIPE), "--cluster", "local", *options, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _row(name: str, gaps: Gaps) -> str:
    cells = [_percentiles(values) for values in (gaps.handed_on, gaps.next_token, gaps.over)]
    return f"{name:<24}" + "".join(f"{cell:>18}" for cell in cells) + f"{len(gaps.handed_on):>10}"


def _percentiles(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    cuts = statistics.quantiles(seconds, n=20)
    return f"{1e6 * cuts[9]:.0f} / {1e6 * cuts[18]:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=4)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--of", nargs="+", type=Path, help="look at finished runs instead")
    arguments = parser.parse_args()
    print(f"{'us, p50 / p95':<24}{'handed on':>18}{'next token':>18}{'pass':>18}{'batches':>10}")
    for path in arguments.of or []:
        print(_row(path.name, gaps_of(path)))
    for name in [] if arguments.of else arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            run(name, arguments.rate, arguments.requests, out)
            print(_row(name, gaps_of(out)), flush=True)


if __name__ == "__main__":
    main()
