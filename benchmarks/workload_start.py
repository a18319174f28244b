"""What the requests of a run of days take before its first one comes.

    python benchmarks/workload_start.py [--requests 720000] [--trace] [--json]

A Poisson workload of so many requests, or with `--trace` a Mooncake trace of them, whose lines are not quite in order, is
loaded. What all requests ask for is counted, as limits and the forecast need it; then they are gone through as a run does,
which keeps none of them, and behind all but the last ten, as an attempt does that goes on. Seconds of processor time for each,
and the most memory that the process has had since its modules were imported.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from lemix_hpc.config.serving_section import GeneratedSource, Serving, TraceSource
from lemix_hpc.workload.requests import load_requests

RATE = 100.0


def trace(path: Path, requests: int) -> TraceSource:
    """A trace of so many requests, each up to a second late in the file."""
    late = random.Random(0)
    with path.open("w") as file:
        for number in range(requests):
            stamp = round(1000 * (number / RATE + late.random()))
            file.write(f'{{"timestamp": {stamp}, "input_length": {300 + number % 700}, "output_length": 20}}\n')
    return TraceSource(kind="mooncake", path=path)


def measure(serving: Serving, requests: int) -> dict[str, float]:
    """Seconds and MB."""
    before, began = _peak_mb(), time.process_time()
    stream = load_requests(serving, seed=0, tokenizer=None).requests
    assert len(stream) == requests
    loaded = time.process_time()
    assert sum(1 for _ in stream) == requests
    gone_through = time.process_time()
    assert sum(1 for _ in stream.behind(requests - 10)) == 10
    behind = time.process_time()
    return {
        "load": loaded - began,
        "go through": gone_through - loaded,
        "go on": behind - gone_through,
        "mb": _peak_mb() - before,
    }


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=720_000)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        drawn = GeneratedSource(kind="poisson", rate=RATE, requests=args.requests)
        source = trace(Path(name) / "trace.jsonl", args.requests) if args.trace else drawn
        found = measure(Serving(source=source, mode="generate"), args.requests)
    if args.json:
        print(json.dumps(found))
        return
    for what, value in found.items():
        print(f"{what:<12} {value:8.2f} {'MB' if what == 'mb' else 's'}")


if __name__ == "__main__":
    main()
