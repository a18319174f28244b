"""The simulator against the runtime: the same recipes through `lemix simulate` and, with emulated stages, `lemix run`.

    python benchmarks/simulator_fidelity.py
    python benchmarks/simulator_fidelity.py --policies least-completion pack --rates 16 48 --seconds 30

4 nodes x 2 stages of Llama-2-7B on A100s, chat prompts, half of all tasks training. The run has 12 MPI ranks in real time:
give them a quiet machine. Prints SLO(5) attainment and tasks per second of both, and how far the run is from the simulation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from lemix_hpc.config.load import load_recipe
from lemix_hpc.studies.simulated_run import simulate

A100 = Path(__file__).resolve().parents[1] / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"


def recipe_of(policy: str, rate: float, seconds: float, share: float) -> dict[str, Any]:
    return {
        "name": f"{policy}-{rate:g}",
        "nodes": {"count": 4, "stages": 2},
        "engine": {"kind": "emulated", "coefficients": str(A100), "max_batch_requests": 1},
        "serving": {"source": {"kind": "poisson", "rate": rate, "duration_s": seconds, "lengths": "lmsys-chat"}},
        "training": {"share": share, "lengths": "lmsys-chat"},
        "policy": {"placement": policy},
    }


def run(recipe: Path, out: Path) -> dict[str, Any]:
    """The report of a real run."""
    lemix = str(Path(sys.executable).with_name("lemix"))
    command = [lemix, "run", str(recipe), "--cluster", "local", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def figures(report: dict[str, Any]) -> tuple[float, float, float]:
    """SLO(5) attainment in %, tasks per second, and the median response in ms."""
    serving = report["serving"]
    return 100 * serving["slo"]["5"], report["throughput"]["per_makespan"], serving["response_ms"]["p50"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", default=["least-completion", "round-robin", "separate"])
    parser.add_argument("--rates", type=float, nargs="+", default=[16.0, 48.0])
    parser.add_argument("--seconds", type=float, default=40.0, help="how long requests arrive")
    parser.add_argument("--share", type=float, default=0.5)
    args = parser.parse_args()
    print(f"{'policy':<18} {'rate':>5}  {'SLO(5) %':>15}  {'diff':>5}  {'tasks/s':>15}  {'ratio':>6}  {'p50 ms':>13}")
    print(f"{'':<18} {'':>5}  {'simulated':>9} {'run':>5}  {'':>5}  {'simulated':>9} {'run':>5}  {'':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for policy in args.policies:
            for rate in args.rates:
                path = Path(folder) / f"{policy}-{rate:g}.yaml"
                path.write_text(yaml.safe_dump(recipe_of(policy, rate, args.seconds, args.share)))
                slo, tasks, median = figures(simulate(load_recipe(path)).summary)
                real_slo, real_tasks, real_median = figures(run(path, path.with_suffix("")))
                print(
                    f"{policy:<18} {rate:>5g}  {slo:>9.1f} {real_slo:>5.1f}  {real_slo - slo:>+5.1f}"
                    f"  {tasks:>9.2f} {real_tasks:>5.2f}  {real_tasks / tasks:>6.3f}  {median:>6.1f} {real_median:>6.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
