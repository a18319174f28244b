"""The simulator against the runtime where requests generate: runs of emulated MPI ranks, each replayed by the simulator.

    python benchmarks/generate_agreement.py
    python benchmarks/generate_agreement.py --placements fill --rates 24 --paces slo --stretch 1 --keep runs

2 nodes x 2 stages (6 ranks) of recipes/generation-study.yaml, training without end. All times are `--stretch` times as long,
limits too, and the rate as much lower: so that what one machine needs for all ranks is small against a pass. What it was, and
how long passes took, is taken from the run, as `lemix replay RUN --policy same` does. Give the ranks a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from lemix_hpc.studies.recorded_run import recorded_recipe
from lemix_hpc.studies.replay import replay

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "generation-study.yaml"
TTFT_MS, TPOT_MS = 1000.0, 50.0


def stretched(path: Path, factor: float) -> dict[str, Any]:
    """A coefficient file of times `factor` times as long."""
    file: dict[str, Any] = yaml.safe_load(path.read_text())
    forward = file["per_layer"]["forward"]
    file["per_layer"]["forward"] = {name: factor * seconds for name, seconds in forward.items()}
    return file


def run(placement: str, rate: float, pace: str, arguments: argparse.Namespace, folder: Path) -> Path:
    """The directory of a real run."""
    stretch, coefficients = arguments.stretch, folder / "coefficients.yaml"
    given = yaml.safe_load(RECIPE.read_text())["engine"]["coefficients"]
    coefficients.write_text(yaml.safe_dump(stretched(RECIPE.parent / given, stretch)))
    changes = {
        "nodes.count": 2,
        "engine.coefficients": coefficients,
        "policy.placement": placement,
        "policy.pace": pace,
        "serving.source.rate": rate / stretch,
        "serving.source.requests": "null",
        "serving.source.duration_s": arguments.seconds,
        "serving.max_new_tokens": arguments.outputs,
        "slo.ttft_ms": TTFT_MS * stretch,
        "slo.tpot_ms": TPOT_MS * stretch,
    }
    out = folder / f"{placement}-{rate:g}-{pace}"
    lemix = str(Path(sys.executable).with_name("lemix"))
    options = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    command = [lemix, "run", str(RECIPE), "--cluster", "local", *options, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def figures(report: dict[str, Any]) -> list[float]:
    """Requests within all limits in %, tasks and training tokens per second, ms per token."""
    serving = report["serving"]
    return [
        100 * serving["slo_ms"]["all"],
        report["throughput"]["per_makespan"],
        report["training"]["tokens_per_s"],
        serving["tpot_ms"]["mean"],
    ]


def row(name: str, real: dict[str, Any], simulated: dict[str, Any], load: float) -> str:
    """Run, simulation and the difference of each figure."""
    (met, *others), (met_simulated, *others_simulated) = figures(real), figures(simulated)
    cells = [f"{met:.1f} {met_simulated:.1f} {met_simulated - met:+.1f}"]
    for ours, theirs in zip(others, others_simulated, strict=True):
        digits = 0 if ours > 1000 else 2
        cells.append(f"{ours:,.{digits}f} {theirs:,.{digits}f} {theirs / ours - 1:+.1%}")
    between = real["between_passes_ms"]["mean"]
    return f"{name:<28}" + "".join(f"{cell:>24}" for cell in cells) + f"{between:>12.3f}{load:>7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--placements", nargs="+", default=["least-completion", "fill", "round-robin"])
    parser.add_argument("--rates", type=float, nargs="+", default=[8.0, 24.0], help="requests/s, of unstretched times")
    parser.add_argument("--paces", nargs="+", choices=["slo", "none"], default=["slo", "none"])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long requests arrive")
    parser.add_argument("--outputs", type=int, default=200, help="longer answers are cut to so many tokens")
    parser.add_argument("--stretch", type=float, default=2.0)
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory")
    arguments = parser.parse_args()
    heads = ("in limits, %", "tasks/s", "training tokens/s", "ms/token")
    print(f"{'run, simulation, difference':<28}" + "".join(f"{head:>24}" for head in heads) + "  between, ms   load")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for placement, rate, pace in itertools.product(arguments.placements, arguments.rates, arguments.paces):
            out = run(placement, rate, pace, arguments, folder)
            load = os.getloadavg()[0]
            _, simulated = replay(out, recorded_recipe(out / "recipe.yaml"))
            real = json.loads((out / "report.json").read_text())
            print(row(f"{placement}, {rate:g}/s, pace {pace}", real, simulated.summary, load), flush=True)


if __name__ == "__main__":
    main()
