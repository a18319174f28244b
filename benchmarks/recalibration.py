"""How forecasts come right when the coefficient file is wrong: runs with a file in which every coefficient is off by a factor.

    python benchmarks/recalibration.py [--engine emulated|torch] [--mixed] [--tasks 400] [--rate 6] [--plot PNG]

`emulated`: two stages of Llama-2-7B on an A100, emulated with the right file. `torch`: the model of the quickstart recipe,
which is measured by a first run. Both serve alone on 1 node x 2 stages, one request at a time, at a low rate, so that what
forecasts miss are stage times. The wrong file is used with and without recalibration. Errors are |predicted - real response|
over the T0 of the right file, in the mean of every 50 requests by arrival. `--mixed` multiplies a and c by the factor and
divides b and d by it. `--plot` needs matplotlib (`pip install "lemix-hpc[plots]"`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
A100 = ROOT / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
WINDOW = 50
Recipe = dict[str, Any]
Curve = list[float]


def recipe(engine: str, requests: int, rate: float) -> Recipe:
    """Serving alone, with the right stage times."""
    source = {"kind": "poisson", "rate": rate, "requests": requests, "lengths": "lmsys-chat"}
    shared = {"seed": 3, "nodes": {"count": 1, "stages": 2}}
    if engine == "emulated":
        stages = {"kind": "emulated", "coefficients": str(A100), "max_batch_requests": 1}
        return shared | {"engine": stages, "serving": {"source": source}}
    quickstart = yaml.safe_load(QUICKSTART.read_text())
    prompts = {"path": str(QUICKSTART.parent / quickstart["serving"]["prompts"]["path"])}
    serving = {"source": source, "max_prompt_tokens": 1000, "prompts": prompts}
    return shared | {"model": quickstart["model"], "engine": {"max_batch_requests": 1}, "serving": serving}


def wrong(right: Path, gains: Sequence[float]) -> dict[str, Any]:
    """The content of a coefficient file with a, b, c and d times these gains, in every stage or layer, forward and backward."""
    content: dict[str, Any] = yaml.safe_load(right.read_text())
    for times in content.get("stages") or [content["per_layer"]]:
        for kind in ("forward", "backward"):
            if isinstance(times.get(kind), dict):
                times[kind] |= {
                    name: gain * times[kind].get(name, 0.0) for name, gain in zip("abcd", gains, strict=True)
                }
    return content


def run(name: str, content: Recipe, folder: Path) -> Path:
    """Run a recipe on this machine and return the run's directory."""
    path, out = folder / f"{name}.yaml", folder / name
    path.write_text(yaml.safe_dump(content | {"name": name}))
    lemix = str(Path(sys.executable).with_name("lemix"))
    command = [lemix, "run", str(path), "--cluster", "local", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def errors(directory: Path, t0_s: float) -> Curve:
    """Mean forecast error of each window of requests, by arrival, in T0."""
    tasks = [json.loads(line) for line in (directory / "tasks.jsonl").read_text().splitlines()]
    served = sorted((task for task in tasks if task["outcome"] == "finished"), key=lambda task: task["arrival"])
    each = [abs(task["predicted_response_s"] - task["finished"] + task["arrival"]) / t0_s for task in served]
    return [statistics.mean(each[first : first + WINDOW]) for first in range(0, len(each), WINDOW)]


def measure(content: Recipe, gains: Sequence[float], folder: Path) -> dict[str, Curve]:
    """The error curves with the right file, and with the wrong one without and with recalibration."""
    first = run("right", content | {"policy": {"recalibrate": False}}, folder)
    t0_s = json.loads((first / "report.json").read_text())["t0_ms"] / 1e3
    believed = folder / "wrong-coefficients.yaml"
    believed.write_text(yaml.safe_dump(wrong(first / "coefficients.yaml", gains)))
    curves = {"right file": errors(first, t0_s)}
    for name, recalibrate in (("wrong file", False), ("wrong file, recalibrated", True)):
        policy = {"coefficients": str(believed), "recalibrate": recalibrate}
        curves[name] = errors(
            run(name.replace(", ", "-").replace(" ", "-"), content | {"policy": policy}, folder), t0_s
        )
    return curves


def plot(curves: dict[str, Curve], title: str, path: Path) -> None:
    """Mean error over requests, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot([WINDOW * (index + 1) for index in range(len(curve))], curve, marker="o", label=name)
    axes.axhline(0.2, color="grey", linestyle=":", label="0.2 T0")
    axes.set(title=title, xlabel="requests", ylabel=f"mean forecast error of {WINDOW} requests, T0", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["emulated", "torch"], default="emulated")
    parser.add_argument("--factor", type=float, default=3.0, help="how wrong every coefficient is")
    parser.add_argument("--mixed", action="store_true", help="a and c times the factor, b and d divided by it")
    parser.add_argument("--tasks", type=int, default=400, help="requests of each run")
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second")
    parser.add_argument("--plot", type=Path, help="draw the errors into this PNG file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    factor = arguments.factor
    gains = (factor, 1 / factor, factor, 1 / factor) if arguments.mixed else (factor,) * 4
    with tempfile.TemporaryDirectory() as folder:
        curves = measure(recipe(arguments.engine, arguments.tasks, arguments.rate), gains, Path(folder))
    if arguments.plot is not None:
        wrongness = f"{factor:g}, in turn up and down" if arguments.mixed else f"{factor:g}"
        plot(curves, f"{arguments.engine}: every coefficient off by a factor of {wrongness}", arguments.plot)
    if arguments.json:
        print(json.dumps(curves))
        return
    print(f"mean forecast error in T0 of every {WINDOW} requests")
    for name, curve in curves.items():
        print(f"{name:26}" + " ".join(f"{error:6.3f}" for error in curve))


if __name__ == "__main__":
    main()
