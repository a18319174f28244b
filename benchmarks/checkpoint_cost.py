"""What saving the training state costs those who are served meanwhile: one run that saves again and again, and its ratios.

    python benchmarks/checkpoint_cost.py [--seconds 120] [--every 10] [--rate 2] [--engine torch] [--json]

A model of 30 million parameters on two stages serves and trains all the time. A save lasts from the first piece of its snapshot
on any stage until the last file is on disk. Responses to requests that come within the median of these times after a save began
are compared with those to all others that come after the first one began. (Overlap with a save would not do, since long
responses have more of it; nor would each save's own time, since saves are long when the machine has much else to do.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
SUMS = {"path": str(ROOT / "recipes" / "data" / "sums.jsonl")}
MODEL = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 6144,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Cost:
    """Responses in ms, to requests that came during saves and outside. Of each save the medians: stage time in the snapshot (of
    the longest stage), and from its start to the last file on disk, in ms; and the bytes of a checkpoint."""

    saves: int
    during: int
    outside: int
    p50_during: float
    p50_outside: float
    p99_during: float
    p99_outside: float
    p99_ratio: float
    snapshot_ms: float
    whole_ms: float
    nbytes: int


def recipe(seconds: float, every: float, rate: float, engine: str) -> dict[str, Any]:
    source = {"kind": "poisson", "rate": rate, "duration_s": seconds, "lengths": "lmsys-chat"}
    return {
        "name": "checkpoint-cost",
        "nodes": {"stages": 2},
        "model": {"config": MODEL},
        "engine": {"kind": engine, "dtype": "float32"},
        "serving": {
            "source": source,
            "mode": "generate",
            "max_prompt_tokens": 64,
            "max_new_tokens": 4,
            "prompts": SUMS,
        },
        "training": {"data": SUMS, "sequence_length": 64, "checkpoint": {"every_s": every, "keep": 1000}},
    }


def measure(run: Path) -> Cost:
    """The cost in a finished run."""
    tasks = [task for task in _lines(run / "tasks.jsonl") if task["kind"] == "serving"]
    spans = [span for span in _lines(run / "spans.jsonl") if span["kind"] == "save"]
    last_response = max(task["finished"] for task in tasks)
    manifests = [json.loads(path.read_text()) for path in sorted((run / "checkpoints").glob("*/manifest.json"))]
    windows, snapshots = [], []
    for [node] in (manifest["saved"] for manifest in manifests):
        mine = [span for span in spans if span["version"] == node["version"]]
        by_stage = {file["stage"]: [s for s in mine if s["stage"] == file["stage"]] for file in node["files"]}
        start = min(span["start"] for span in mine)
        if start > last_response:
            continue  # the last one, when nobody is served any more
        ends = [max(s["end"] for s in by_stage[file["stage"]]) + file["write_s"] for file in node["files"]]
        windows.append((start, max(ends)))
        snapshots.append(max(sum(s["end"] - s["start"] for s in stage) for stage in by_stage.values()))
    whole = _percentile([end - start for start, end in windows], 50)
    during, outside = [], []
    for task in tasks:
        if not windows or task["arrival"] < windows[0][0]:
            continue
        saving = any(start <= task["arrival"] <= start + whole for start, _ in windows)
        (during if saving else outside).append(1e3 * (task["finished"] - task["arrival"]))
    p99 = _percentile(during, 99), _percentile(outside, 99)
    return Cost(
        saves=len(windows),
        during=len(during),
        outside=len(outside),
        p50_during=_percentile(during, 50),
        p50_outside=_percentile(outside, 50),
        p99_during=p99[0],
        p99_outside=p99[1],
        p99_ratio=p99[0] / p99[1],
        snapshot_ms=1e3 * _percentile(snapshots, 50),
        whole_ms=1e3 * whole,
        nbytes=sum(file["nbytes"] for file in manifests[0]["saved"][0]["files"]),
    )


def _percentile(values: list[float], q: float) -> float:
    """NaN of nothing."""
    return float(np.percentile(values, q)) if values else float("nan")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long requests come")
    parser.add_argument("--every", type=float, default=10.0, help="seconds from the start of one save to the next")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--engine", choices=["torch", "vllm"], default="torch")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path, out = Path(directory, "recipe.yaml"), Path(directory, "run")
        path.write_text(yaml.safe_dump(recipe(arguments.seconds, arguments.every, arguments.rate, arguments.engine)))
        command = [str(Path(sys.executable).with_name("lemix")), "run", str(path), "--cluster", "local"]
        subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        cost = measure(out)
    if arguments.json:
        print(json.dumps(asdict(cost)))
        return
    print(
        f"{cost.saves} saves of {cost.nbytes / 1e6:.0f} MB; {cost.during} responses during one, {cost.outside} outside"
    )
    print(f"response, p50: {cost.p50_during:.0f} ms during, {cost.p50_outside:.0f} ms outside")
    print(f"response, p99: {cost.p99_during:.0f} ms during, {cost.p99_outside:.0f} ms outside: x {cost.p99_ratio:.2f}")
    print(f"snapshot {cost.snapshot_ms:.0f} ms of stage time; on disk after {cost.whole_ms:.0f} ms")


if __name__ == "__main__":
    main()
