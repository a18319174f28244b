"""What saving the training state costs those who are served meanwhile: one run that saves again and again, and its ratios.

    python benchmarks/checkpoint_cost.py [--seconds 300] [--every 10] [--rate 3] [--stages 2] [--engine torch] [--json]

A model of 30 million parameters serves and trains all the time. A save lasts from the first piece of its snapshot on any stage
until the last file is on disk. Responses to requests that come within the median of these times after a save began are compared
with those to all others that come after the first one began. (Overlap with a save would not do, since long responses have more
of it; nor would each save's own time, since saves are long when the machine has much else to do.) Intervals are of 95 %, by a
bootstrap over the stretches from one save to the next.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lemix_hpc.records.reader import stream_run

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


QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class Ratio:
    """A quantile of the responses in ms, to requests that came within a save and outside, their ratio, and its interval."""

    within: float
    outside: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """Responses within saves and outside, and what their quantiles are. Of each save the medians: stage time in the snapshot
    (of the longest stage), and from its start to the last file on disk, in ms; and the bytes of a checkpoint."""

    saves: int
    within: int
    outside: int
    quantiles: dict[int, Ratio]
    snapshot_ms: float
    whole_ms: float
    nbytes: int


def recipe(seconds: float, every: float, rate: float, engine: str, stages: int = 2) -> dict[str, Any]:
    source = {"kind": "poisson", "rate": rate, "duration_s": seconds, "lengths": "lmsys-chat"}
    return {
        "name": "checkpoint-cost",
        "nodes": {"stages": stages},
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
    spans = [work for work in stream_run(run).stretches() if work.kind == "save"]
    last_response = max(task["finished"] for task in tasks)
    manifests = [json.loads(path.read_text()) for path in sorted((run / "checkpoints").glob("*/manifest.json"))]
    windows, snapshots = [], []
    for [node] in (manifest["saved"] for manifest in manifests):
        mine = [span for span in spans if span.version == node["version"]]
        by_stage = {file["stage"]: [s for s in mine if s.stage == file["stage"]] for file in node["files"]}
        start = min(span.start for span in mine)
        if start > last_response:
            continue  # the last one, when nobody is served any more
        ends = [max(s.end for s in by_stage[file["stage"]]) + file["write_s"] for file in node["files"]]
        windows.append((start, max(ends)))
        snapshots.append(max(sum(s.end - s.start for s in stage) for stage in by_stage.values()))
    if not windows:
        raise SystemExit("nothing was saved while requests came; give more --seconds")
    whole = float(np.median([end - start for start, end in windows]))
    starts = [start for start, _ in windows]
    # Of each stretch from one save to the next: responses within and outside.
    stretches: list[tuple[list[float], list[float]]] = [([], []) for _ in windows]
    for task in tasks:
        number = bisect.bisect(starts, task["arrival"]) - 1
        if number >= 0:
            outside = task["arrival"] > starts[number] + whole
            stretches[number][outside].append(1e3 * (task["finished"] - task["arrival"]))
    return Cost(
        saves=len(windows),
        within=sum(len(within) for within, _ in stretches),
        outside=sum(len(outside) for _, outside in stretches),
        quantiles={q: _ratio(stretches, q) for q in QUANTILES},
        snapshot_ms=1e3 * float(np.median(snapshots)),
        whole_ms=1e3 * whole,
        nbytes=sum(file["nbytes"] for file in manifests[0]["saved"][0]["files"]),
    )


def _ratio(stretches: list[tuple[list[float], list[float]]], q: int) -> Ratio:
    rng = np.random.default_rng(0)
    drawn = [
        _percentiles([stretches[i] for i in rng.integers(len(stretches), size=len(stretches))], q) for _ in range(1000)
    ]
    low, high = np.nanpercentile([within / outside for within, outside in drawn], [2.5, 97.5])
    within, outside = _percentiles(stretches, q)
    return Ratio(within, outside, within / outside, float(low), float(high))


def _percentiles(stretches: list[tuple[list[float], list[float]]], q: int) -> tuple[float, float]:
    """Within and outside; NaN of nothing."""
    within, outside = ([each for stretch in stretches for each in stretch[kind]] for kind in range(2))
    return (
        float(np.percentile(within, q)) if within else math.nan,
        float(np.percentile(outside, q)) if outside else math.nan,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long requests come")
    parser.add_argument("--every", type=float, default=10.0, help="seconds from the start of one save to the next")
    parser.add_argument("--rate", type=float, default=3.0, help="requests per second")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--engine", choices=["torch", "vllm"], default="torch")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path, out = Path(directory, "recipe.yaml"), Path(directory, "run")
        options = arguments.seconds, arguments.every, arguments.rate, arguments.engine, arguments.stages
        path.write_text(yaml.safe_dump(recipe(*options)))
        command = [str(Path(sys.executable).with_name("lemix")), "run", str(path), "--cluster", "local"]
        subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        cost = measure(out)
    if arguments.json:
        print(json.dumps(asdict(cost)))
        return
    print(
        f"{cost.saves} saves of {cost.nbytes / 1e6:.0f} MB; {cost.within} responses within one, {cost.outside} outside"
    )
    for q, ratio in cost.quantiles.items():
        print(
            f"response, p{q}: {ratio.within:.0f} ms within, {ratio.outside:.0f} ms outside:"
            f" x {ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        )
    print(f"snapshot {cost.snapshot_ms:.0f} ms of stage time; on disk after {cost.whole_ms:.0f} ms")


if __name__ == "__main__":
    main()
