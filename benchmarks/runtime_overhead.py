"""What the runtime itself costs: runs recipes/emulated-a100.yaml (12 ranks) and looks at the gaps between the spans.

    python benchmarks/runtime_overhead.py [--seconds 60] [--json]

Start delay: from a request's arrival to its start on stage 0, of requests that find that stage idle. Lost stage time: gaps
between two pieces of work on a stage while the second was already queued there, over those gaps and all work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from lemix_hpc.records.reader import stream_run
from lemix_hpc.records.stretches import spans_of

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "emulated-a100.yaml"
Span = dict[str, Any]


@dataclass(frozen=True)
class Overhead:
    """Milliseconds from arrival to start on an idle stage 0, and the share of stage time lost between queued tasks."""

    start_delay_ms_median: float
    start_delay_ms_p90: float
    idle_starts: int
    lost_share: float
    gap_us_median: float
    queued_gaps: int


def measure(run: Path) -> Overhead:
    """The overhead of a finished run."""
    tasks = {task["id"]: task for task in _lines(run / "tasks.jsonl")}
    spans = [structs.asdict(span) for stretch in stream_run(run).stretches() for span in spans_of(stretch)]
    done: dict[tuple[int, int, str, str], float] = defaultdict(float)
    stages: dict[tuple[int, int], list[Span]] = defaultdict(list)
    for span in spans:
        done[span["node"], span["stage"], span["kind"], span["task"]] = span["end"]
        stages[span["node"], span["stage"]].append(span)
    last_stage = max(stage for _, stage in stages)
    delays, gaps, work = [], [], 0.0
    for on_stage in stages.values():
        on_stage.sort(key=lambda span: span["start"])
        begun: set[tuple[str, str]] = set()
        free_since = 0.0
        for span in on_stage:
            queued = _queued_at(span, tasks, done, last_stage, begun)
            begun.add((span["kind"], span["task"]))
            work += span["end"] - span["start"]
            if queued is not None and queued < free_since:
                gaps.append(span["start"] - free_since)
            elif span["stage"] == 0 and span["kind"] == "serve":
                delays.append(span["start"] - tasks[span["task"]]["arrival"])
            free_since = span["end"]
    delays.sort()
    return Overhead(
        start_delay_ms_median=1e3 * statistics.median(delays),
        start_delay_ms_p90=1e3 * delays[int(0.9 * len(delays))],
        idle_starts=len(delays),
        lost_share=sum(gaps) / (sum(gaps) + work),
        gap_us_median=1e6 * statistics.median(gaps),
        queued_gaps=len(gaps),
    )


def _queued_at(
    span: Span, tasks: dict[str, Any], done: dict[tuple[int, int, str, str], float], last_stage: int, begun: set[Any]
) -> float | None:
    """When the work of a span was ready to run: its input was there. None for work that waits for nothing known."""
    node, stage, kind, task = span["node"], span["stage"], span["kind"], span["task"]
    if (kind, task) in begun:
        return 0.0  # the rest of a training pass that serving came in between of
    if kind == "serve":
        return tasks[task]["arrival"] if stage == 0 else done[node, stage - 1, kind, task]
    if kind == "forward":
        return tasks[task]["placed"] if stage == 0 else done[node, stage - 1, kind, task]
    if kind == "backward":
        return done[node, stage, "forward", task] if stage == last_stage else done[node, stage + 1, kind, task]
    return None


def _lines(path: Path) -> Any:
    with path.open() as file:
        yield from map(json.loads, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="length of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    lemix = str(Path(sys.executable).with_name("lemix"))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        duration = f"serving.source.duration_s={arguments.seconds}"
        command = [lemix, "run", str(RECIPE), "--cluster", "local", "--set", duration, "--out", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        overhead = measure(run)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(overhead)))
        return
    print(
        f"arrival to start on an idle stage 0: median {overhead.start_delay_ms_median:.2f} ms, "
        f"90th percentile {overhead.start_delay_ms_p90:.2f} ms ({overhead.idle_starts} requests)"
    )
    print(
        f"stage time lost between two queued tasks: {100 * overhead.lost_share:.2f} % "
        f"(median gap {overhead.gap_us_median:.0f} us, {overhead.queued_gaps} gaps)"
    )


if __name__ == "__main__":
    main()
