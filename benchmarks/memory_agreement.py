"""The simulator against the runtime where memory is short: runs of emulated MPI ranks, each replayed by the simulator.

    python benchmarks/memory_agreement.py
    python benchmarks/memory_agreement.py --modes offload --parts 0.5 --seconds 60 --keep runs

2 nodes x 2 stages (6 ranks) of Llama-2-7B on A100s, scoring, 70 % of all tasks training, chat lengths, up to 16 micro-batches
in flight. A first run ignores memory and tells how much its tasks take at their peak; in the others tasks get a part of that.
Stage times, and what passes wait for messages, are taken from each run, as `lemix replay RUN --policy same` does. Give the
ranks a quiet machine.

Who waits hangs on moments: counts of a simulation move by a tenth when messages take 0.1 ms more. So each run is replayed with
messages of half to one and a half times the length, and the means over these and over the seeds are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lemix_hpc.studies.recorded_run import recorded_recipe
from lemix_hpc.studies.replay import replay

A100 = Path(__file__).resolve().parents[1] / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
MESSAGES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""How many times as long passes wait for messages in the replays of a run."""
AMPLE_GB = 1000.0
"""More than any stage takes: for the run that tells how much that is."""


def recipe_of(mode: str, capacity_gb: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    source = {"kind": "poisson", "rate": arguments.rate, "duration_s": arguments.seconds, "lengths": "lmsys-chat"}
    memory = {"mode": mode, "capacity_gb": capacity_gb, "kappa": 1.0}
    if mode == "offload":
        memory["offload_gb_per_s"] = 20.0
    return {
        "name": "memory-agreement",
        "seed": seed,
        "nodes": {"count": 2, "stages": 2},
        "engine": {"kind": "emulated", "coefficients": str(A100), "max_batch_requests": 1},
        "serving": {"source": source},
        "training": {"share": 0.7, "lengths": "lmsys-chat", "in_flight": 16},
        "policy": {"memory": memory | {"max_wait_s": arguments.patience}},
    }


def run(name: str, recipe: dict[str, Any], folder: Path) -> Path:
    """The directory of a real run."""
    path, out = folder / f"{name}.yaml", folder / name
    path.write_text(yaml.safe_dump(recipe))
    lemix = str(Path(sys.executable).with_name("lemix"))
    command = [lemix, "run", str(path), "--cluster", "local", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


@dataclass(frozen=True)
class Peak:
    """GB of the fullest stage: weights and optimizer state, and tasks at their peak."""

    resting: float
    tasks: float

    @classmethod
    def of(cls, report: dict[str, Any]) -> Peak:
        stages = report["memory"]["stages"]
        resting = max(stage["resting"] for stage in stages)
        return cls(AMPLE_GB * resting, AMPLE_GB * (max(stage["peak"] for stage in stages) - resting))


def figures(report: dict[str, Any]) -> list[float]:
    """SLO(5) attainment in %, tasks per second, waits, offloads, seconds of a wait."""
    memory = report["memory"]
    waits = memory["training_waits"]
    met, tasks = report["serving"]["slo"]["5"], report["throughput"]["per_makespan"]
    return [100 * met, tasks, waits["count"], memory["offloads"], waits["mean_s"] or 0.0]


def simulated(out: Path) -> list[float]:
    """The same figures of replays of a run, in the mean."""
    recipe = recorded_recipe(out / "recipe.yaml")
    return means([figures(replay(out, recipe, messages=times)[1].summary) for times in MESSAGES])


def means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def row(name: str, real: Sequence[float], replayed: Sequence[float]) -> str:
    """Run, simulation and the difference of each figure."""
    cells = [f"{real[0]:.1f} {replayed[0]:.1f} {replayed[0] - real[0]:+.1f}"]
    for mine, its in zip(real[1:], replayed[1:], strict=True):
        apart = f"{its / mine - 1:+.1%}" if mine else f"{its:+g}"
        cells.append(f"{mine:.4g} {its:.4g} {apart}")
    return f"{name:<22}" + "".join(f"{cell:>22}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=["offload", "wait"], default=["offload", "wait"])
    parser.add_argument("--parts", type=float, nargs="+", default=[0.6], help="of the peak of tasks without a limit")
    parser.add_argument("--rate", type=float, default=10.0, help="requests/s")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long requests arrive")
    parser.add_argument("--patience", type=float, default=0.05, help="seconds a task waits before others make room")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        peak = Peak.of(report_of(run("ignore", recipe_of("ignore", AMPLE_GB, 0, arguments), folder)))
        print(f"without a limit: {peak.tasks:.1f} GB for tasks at the peak, beside {peak.resting:.1f} GB at rest")
        heads = ("SLO(5), %", "tasks/s", "waits", "offloads", "s/wait")
        print(f"{'run, simulation':<22}" + "".join(f"{head:>22}" for head in heads), flush=True)
        for mode, part in itertools.product(arguments.modes, arguments.parts):
            pairs, capacity = [], peak.resting + part * peak.tasks
            for seed in range(arguments.seeds):
                out = run(f"{mode}-{part:g}-{seed}", recipe_of(mode, capacity, seed, arguments), folder)
                pairs.append((figures(report_of(out)), simulated(out)))
                print(row(f"{mode}, {100 * part:g} %, seed {seed}", *pairs[-1]), flush=True)
            if len(pairs) > 1:
                real, replayed = (means(rows) for rows in zip(*pairs, strict=True))
                print(row(f"{mode}, {100 * part:g} %, mean", real, replayed), flush=True)


if __name__ == "__main__":
    main()
