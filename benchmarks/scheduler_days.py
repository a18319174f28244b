"""Whether the scheduler rank grows with the days that a run lasts.

    python benchmarks/scheduler_days.py [--hours 24] [--rate 100] [--json]

The real scheduler loop, with its policy, journal, records and live figures, and the real leaders of 4 nodes of 2 stages, in
virtual time: requests of 256 tokens that ask for 16 come at an even rate, and passes end every 400 ms on each node. After each
hour: resident memory of the process, in which the leaders are, too, and bytes on disk. There is no training here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scheduler_rank import Cluster  # type: ignore[import-not-found]  # beside this script

from lemix_hpc.policy.scheduler import compile_policy
from lemix_hpc.runtime.scheduler.arrivals import Arrivals
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.tasks import Request

PROMPT, OUTPUT = 256, 16
HOUR_S = 3600.0
PERIOD_S = 0.4


def requests(count: int, rate: float) -> Iterator[Request]:
    for number in range(count):
        yield Request(f"request-{number}", number / rate, PROMPT, OUTPUT)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def on_disk_mb(directory: Path, name: str) -> float:
    """Of the files whose names begin so."""
    return sum(file.stat().st_blocks * 512 for file in directory.glob(f"{name}*")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    compile_policy()
    rows = []
    if not args.json:
        print("hours  served    resident MB  journal MB  all files MB  MB in this hour  processor s of the loop")
    with tempfile.TemporaryDirectory() as name:
        directory, count, before = Path(name), round(args.hours * HOUR_S * args.rate), 0.0
        arrivals = Arrivals(requests(count, args.rate), count)
        cluster = Cluster(Layout(4, 2), arrivals, 256, "deadline", directory)
        began = time.process_time()
        hours = 0.0
        while hours < args.hours:
            step = min(1.0, args.hours - hours)
            cluster.run(step * HOUR_S, PERIOD_S)
            hours += step
            cluster.written()  # all that has been told is in the files
            files = on_disk_mb(directory, "")
            row = {
                "hours": hours,
                "served": cluster.took.tokens // OUTPUT,
                "resident_mb": resident_mb(),
                "journal_mb": on_disk_mb(directory, "journal"),
                "files_mb": files,
                "files_mb_per_hour": (files - before) / step,
                "loop_s": cluster.took.seconds,
                "process_s": time.process_time() - began,
            }
            before = files
            rows.append(row)
            if not args.json:
                print(
                    f"{hours:5.2f}  {row['served']:8,}  {row['resident_mb']:11.1f}  {row['journal_mb']:10.1f}"
                    f"  {files:12.1f}  {row['files_mb_per_hour']:15.1f}  {row['loop_s']:8.1f}",
                    flush=True,
                )
        cluster.close()
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
