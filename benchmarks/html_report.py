"""What `lemix report --html` and `lemix trace` take for a long run: time, memory, and the size of their files.

The run is made up: nodes of two stages that serve batches of eight requests, each a prompt and some decode passes, and train in
between. Its records are written as runs write them.

    python benchmarks/html_report.py --spans 1000000
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.records.schema import (
    MemoryUse,
    MemoryWaits,
    RunFacts,
    ServedTask,
    StageMemoryShares,
    Stretch,
    TrainedTask,
)
from lemix_hpc.records.writer import Recorder
from lemix_hpc.report.build import build_report

STAGES, BATCH, PASSES, GROUP = 2, 8, 20, 8
PASS_S, TRAINING_S = 0.02, 0.06


class Node:
    """What a node does, round by round: all passes of a batch, and a micro-batch between every two of them."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self._number = number
        self._rng = rng
        self._clock = 0.0
        self._batches = self._micro_batches = self._requests = self.version = 0

    def round(self, recorder: Recorder) -> int:
        """Write down one of them; how many spans that were."""
        arrived, spans = self._clock - self._rng.uniform(0.0, 0.5), 0
        names = tuple(f"r{self._number}-{self._requests + place}" for place in range(BATCH))
        self._requests += BATCH
        first_token = 0.0
        for number in range(PASSES):
            seconds = PASS_S * self._rng.uniform(0.8, 1.2) * (4 if number == 0 else 1)
            for stage in range(STAGES):
                start = self._clock + stage * seconds
                recorder.work(self._work(stage, "serve", start, seconds, batch=self._batches, tasks=names))
                spans += 1
            self._batches += 1
            first_token = first_token or self._clock + STAGES * seconds
            self._clock += STAGES * seconds
            if number % 2:
                spans += self._train(recorder)
        for name in names:
            recorder.request(self._served(name, max(0.0, arrived), first_token))
        self._clock += self._rng.expovariate(4.0)
        return spans

    def _train(self, recorder: Recorder) -> int:
        name, begun = f"m{self._number}-{self._micro_batches}", self._clock
        for kind, places, seconds in (
            ("forward", range(STAGES), TRAINING_S / 3),
            ("backward", reversed(range(STAGES)), 2 * TRAINING_S / 3),
        ):
            for stage in places:
                recorder.work(self._work(stage, kind, self._clock, seconds, task=name))
                self._clock += seconds
        self._micro_batches += 1
        spans, loss = 2 * STAGES, 2.0 + 6.0 / (1.0 + self.version / 20) + self._rng.gauss(0.0, 0.05)
        step = self.version + 1
        recorder.micro_batch(TrainedTask(name, "finished", begun, 512, self._number, begun, self._clock, loss, step))
        if self._micro_batches % GROUP == 0:
            for stage in range(STAGES):
                recorder.work(self._work(stage, "step", self._clock, 0.01))
            self._clock += 0.01
            self.version += 1
            spans += STAGES
        return spans

    def _work(self, stage: int, kind: str, start: float, seconds: float, **of: object) -> Stretch:
        return Stretch(self._number, stage, kind, start, start + seconds, self.version, **of)  # type: ignore[arg-type]

    def _served(self, name: str, arrived: float, first_token: float) -> ServedTask:
        tokens = min(4000, 1 + int(self._rng.lognormvariate(5.0, 1.0)))
        response = self._clock - arrived
        return ServedTask(
            name,
            "finished",
            arrived,
            tokens,
            self._number,
            arrived,
            first_token,
            self._clock,
            output=[1] * PASSES,
            versions=(self.version, self.version),
            predicted_response_s=response * self._rng.lognormvariate(0.0, 0.2),
        )


def write_records(directory: Path, spans: int, *, nodes: int = 4, seed: int = 0, policy: str = "fill") -> None:
    """The directory of a run that has ended, with about so many spans, all but its report."""
    rng = random.Random(seed)
    recorder, written = Recorder(directory), 0
    all_nodes = [Node(number, rng) for number in range(nodes)]
    while written < spans:
        written += sum(node.round(recorder) for node in all_nodes)
    shares = [StageMemoryShares(0.93, 0.5, 0.2, 0.35, 4, 1, 0), StageMemoryShares(0.81, 0.5, 0.15, 0.25)]
    waits = MemoryWaits(4, 0.1, 0.3)
    recorder.facts(
        RunFacts(
            policy,
            "emulated",
            nodes,
            STAGES,
            [1.0, 5.0, 10.0],
            1.0,
            max(node._clock for node in all_nodes),
            sum(node.version for node in all_nodes),
            slo_ms={"ttft": 500.0, "tpot": 120.0},
            memory=MemoryUse(shares, waits, waits, 1, 1 << 20, 0, 0),
        )
    )
    recorder.close()
    record = RunRecord(directory.name, "simulated", time.time(), ["html_report.py"], "host", "user", "0", 0)
    RunDir(directory).write_record(record)


def measured(command: list[str], out: Path) -> str:
    """A row of the table: seconds, MB of memory at most, MB of what it writes."""
    began = time.monotonic()
    process = subprocess.Popen([Path(sys.executable).with_name("lemix"), *command], stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    seconds = time.monotonic() - began
    processor = used.ru_utime + used.ru_stime
    size = out.stat().st_size / 1e6
    return f"| `lemix {command[0]}` | {seconds:.0f} s | {processor:.0f} s | {used.ru_maxrss / 1024:.0f} MB | {size:.2f} MB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=1_000_000, help="about so many")
    parser.add_argument("--nodes", type=int, default=4, help="of two stages each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run = Path(made, "run")
        run.mkdir()
        write_records(run, options.spans, nodes=options.nodes)
        build_report(run)
        written = sum(path.stat().st_size for path in run.iterdir()) / 1e6
        page, trace = Path(made, "report.html"), Path(made, "trace.json.gz")
        print(f"{options.spans:,} spans, {options.nodes * STAGES} stages, {written:.0f} MB of records\n")
        print("| | time | processor time | memory | file |\n|---|---|---|---|---|")
        print(measured(["report", str(run), "--html", str(page)], page))
        print(measured(["trace", str(run), "--out", str(trace)], trace))


if __name__ == "__main__":
    main()
