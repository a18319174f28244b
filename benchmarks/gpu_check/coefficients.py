"""`lemix profile` on one stage of an 8B model with random weights, and a coefficient file per layer from its points."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import config, on_gpu
from benchmarks.gpu_check.small_run import LEMIX

LAYERS = 8
"""Of one stage of four. The vocabulary is small: a stage between the first and the last has none."""


def recipe(device: str) -> dict[str, Any]:
    gpu = on_gpu(device)
    layers = LAYERS if gpu else 2
    grid: dict[str, Any] = {
        "batches": [1, 4],
        "lengths": [64, 256, 1024, 2048, 4096],
        "contexts": [256, 1024],
        "repeats": 5,
    }
    small = {"batches": [1, 2], "lengths": [8, 16, 32], "contexts": [16], "repeats": 3}
    return {
        "name": "one-stage",
        "model": {"config": config(device) | {"num_hidden_layers": layers, "vocab_size": 256}},
        "engine": {"kind": "torch", "device": "cuda" if gpu else "cpu"},
        "serving": {
            "mode": "generate",
            "source": {"kind": "poisson", "rate": 1, "requests": 1, "lengths": "lmsys-chat"},
        },
        "training": {"data": {"path": "unused.jsonl"}, "release": "sync"},
        "profile": (grid if gpu else small) | {"time_budget_s": 60, "warm_up": 1},
    }


def check(device: str, report: Report) -> None:
    out = Path(os.environ["GPU_CHECK_OUT"]).absolute()
    path = out / "one-stage.yaml"
    path.write_text(yaml.safe_dump(recipe(device)), encoding="utf-8")
    results = out / "profiling"
    done = subprocess.run(
        [*LEMIX, "profile", str(path), "--cluster", "local", "--out", str(results), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_STATE_HOME": str(out / "state")},
    )
    print(done.stdout, done.stderr)
    for log in sorted(results.rglob("*.log")) if done.returncode else ():
        print(f"--- {log.name}", log.read_text(errors="replace")[-1500:])
    report.expect(done.returncode == 0, f"lemix profile ended with {done.returncode}: {done.stderr[-300:]}")
    if done.returncode:
        return
    summary = json.loads(done.stdout)
    report.figure("profile", summary)
    measured = Path(summary["coefficients"])
    layers = LAYERS if on_gpu(device) else 2
    name = f"llama-3.1-8b-{summary['dtype']}"
    table = per_layer(measured.with_suffix(".csv"), measured.with_name(f"{name}.csv"), layers)
    facts = ["--hardware", summary["hardware"], "--llm", "llama-3.1-8b", "--dtype", summary["dtype"], "--layers", "32"]
    facts += ["--source", f"{measured.name}: a stage of {layers} layers with random weights, divided by {layers}"]
    fitted = [*LEMIX, "fit", str(table), "--json", *facts, "--out", str(measured.with_name(f"{name}.yaml"))]
    fit = subprocess.run(fitted, capture_output=True, text=True, check=False)
    print(fit.stdout, fit.stderr)
    report.expect(fit.returncode == 0, f"lemix fit ended with {fit.returncode}: {fit.stderr[-300:]}")
    if fit.returncode == 0:
        report.figure("fit", json.loads(fit.stdout))


def per_layer(points: Path, out: Path, layers: int) -> Path:
    """The same table with milliseconds of one layer."""
    with points.open(newline="", encoding="utf-8") as file, out.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["kind", "batch", "length", "context", "ms_per_layer"])
        for row in csv.DictReader(file):
            if row["ms"] != "oom":
                spent = f"{float(row['ms']) / layers:.6g}"
                writer.writerow([row["kind"], row["batch"], row["length"], row["context"], spent])
    return out
