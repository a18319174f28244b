"""What the journal costs the scheduler: the real loop at 1,000 requests per second, with a journal and without, in turn.

    python benchmarks/journal_cost.py [--rate 1000] [--rounds 10] [--seconds 2] [--directory DIR] [--json]

Two schedulers with the same requests take turns of some seconds each. One keeps a journal in the directory, the other does not.
Nodes do what the forecast says, and report every pass. A request is let in, placed, worked on by two stages, and ends, so it
has three records. Counted is what the loop's turns take: the processor's time of the scheduler's thread, and by the clock, with
its waits for the journal's thread. Ratios are of neighbouring turns, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler, compile_policy
from lemix_hpc.records import journal_writer
from lemix_hpc.records.journal import journal_part
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.writer import Recorder
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.scheduler.arrivals import Arrivals
from lemix_hpc.runtime.scheduler.loop import LoopSettings, SchedulerLoop
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.tasks import Request

NODES, STAGES = 16, 2
PASS_S = 0.01


class Nodes:
    """All leaders and stages behind the scheduler's mailbox: first come, first served, each pass as long as forecast."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._free = [[0.0] * STAGES for _ in range(NODES)]
        self._due: list[tuple[float, int, m.AnyMessage]] = []
        self._count = itertools.count()

    @property
    def next(self) -> float:
        return self._due[0][0] if self._due else math.inf

    def send(self, rank: int, _inbox: Inbox, message: m.AnyMessage) -> None:
        assert isinstance(message, m.PlaceRequest), "nothing is trained"
        task, node, end = message.task, rank // (STAGES + 1), self._now()
        free, shape, starts = self._free[node], Shape.of([message.prompt]), []
        for stage in range(STAGES):
            starts.append(max(end, free[stage]))
            end = free[stage] = starts[-1] + PASS_S
            self._report(end, m.NodeReport(node, [m.Passed(stage, task, starts[-1], end)]))
        ran = m.BatchRan(task, [task], [], 0, shape, starts, [s + PASS_S for s in starts], [PASS_S] * STAGES)
        self._report(end, m.NodeReport(node, [ran]))
        self._report(end, m.RequestDone(task, node, end, end, 1.0, message.prompt, [], (0, 0)))

    def poll(self) -> list[Mail]:
        mails, now = [], self._now()
        while self._due and self._due[0][0] <= now:
            mails.append(Mail(0, heapq.heappop(self._due)[2], None))
        return mails

    def _report(self, when: float, message: m.AnyMessage) -> None:
        heapq.heappush(self._due, (when, next(self._count), message))


class Rank:
    """A scheduler rank whose clock stands still between its windows. `groups` of records were written and synced."""

    def __init__(self, directory: Path, requests: list[Request], *, journal: bool) -> None:
        directory.mkdir()
        self._time = self._since = 0.0
        self._path = journal_part(directory, 1)
        self.groups = 0
        self._recorder = Recorder(directory)
        # All of it stays, to be counted.
        journal_writer.PART = 1 << 40
        self._journal = self._recorder.journal = Journal(directory, first=self._group) if journal else None
        self._nodes = Nodes(self._now)
        mailbox: Any = self._nodes
        layout, number = Layout(NODES, STAGES), itertools.count().__next__
        passes = (Affine(PASS_S, 0.0, 0.0),) * STAGES
        self._loop = SchedulerLoop(
            layout,
            Scheduler(SchedulerConfig(NODES, t0=STAGES * PASS_S), LatencyModel(passes, passes)),
            mailbox,
            self._recorder,
            self._now,
            Arrivals(requests, len(requests)),
            None,
            CallRouter(layout, mailbox, number, math.inf),
            LoopSettings(None, live_interval=1.0),
            number,
        )

    def window(self, seconds: float) -> tuple[float, float]:
        """Turn for so long. Returns what the turns took: seconds of the processor, and by the clock."""
        processor = clock = 0.0
        self._since = time.perf_counter()
        end = self._time + seconds
        while self._now() < end:
            began, before = time.perf_counter(), time.thread_time()
            self._loop.turn()
            processor += time.thread_time() - before
            clock += time.perf_counter() - began
            pause = min(self._loop.until_due(), self._nodes.next - self._now(), end - self._now())
            if pause > 0:
                time.sleep(pause)
        self._time = self._now()
        return processor, clock

    def close(self) -> int:
        """Bytes of the journal."""
        self._recorder.close()
        if self._journal is not None:
            self._journal.close()
        return self._path.stat().st_size if self._journal is not None else 0

    def _now(self) -> float:
        return self._time + time.perf_counter() - self._since

    def _group(self) -> None:
        self.groups += 1


@dataclass(frozen=True)
class Cost:
    """Microseconds of the scheduler for each request, medians of all windows, and ratios with / without a journal with their
    95 % intervals. Bytes of the journal for each request, and syncs in each second."""

    requests: int
    processor_us: float
    processor_us_without: float
    processor_ratio: tuple[float, float, float]
    clock_us: float
    clock_us_without: float
    clock_ratio: tuple[float, float, float]
    nbytes: float
    syncs: float


def measure(directory: Path, rate: float, rounds: int, seconds: float, seed: int = 0) -> Cost:
    rng = np.random.default_rng(seed)
    count = round(rate * seconds * (rounds + 1))
    times = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    requests = [Request(f"request-{i}", when, 64, 0) for i, when in enumerate(times)]
    ranks = [Rank(directory / name, requests, journal=name == "with") for name in ("with", "without")]
    for rank in ranks:
        rank.window(seconds)  # warm
    groups = ranks[0].groups
    windows = []
    for number in range(rounds):
        order = ranks if number % 2 else ranks[::-1]
        taken = {rank: rank.window(seconds) for rank in order}
        windows.append([taken[rank] for rank in ranks])
    syncs = (ranks[0].groups - groups) / (rounds * seconds)
    nbytes = sum(rank.close() for rank in ranks) / count
    # rounds x (with, without) x (processor, clock)
    us = 1e6 * np.array(windows) / (rate * seconds)
    medians, ratios = np.median(us, axis=0), us[:, 0] / us[:, 1]
    processor, clock = (_interval(ratios[:, kind], rng) for kind in range(2))
    (on_processor, on_processor_without), (by_clock, by_clock_without) = medians.T.tolist()
    return Cost(count, on_processor, on_processor_without, processor, by_clock, by_clock_without, clock, nbytes, syncs)


def _interval(ratios: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """The median, and its 95 % bootstrap interval."""
    samples = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    return float(np.median(ratios)), *np.percentile(samples, [2.5, 97.5]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests per second")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each scheduler in each round")
    parser.add_argument("--directory", type=Path, help="where the journal goes; by default a temporary one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    compile_policy()
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        cost = measure(Path(name), args.rate, args.rounds, args.seconds)
    if args.json:
        print(json.dumps(asdict(cost)))
        return
    print(f"{cost.requests} requests for each scheduler, {args.rate:g} per second")
    for name, us, without, (ratio, low, high) in (
        ("processor", cost.processor_us, cost.processor_us_without, cost.processor_ratio),
        ("clock", cost.clock_us, cost.clock_us_without, cost.clock_ratio),
    ):
        print(
            f"{name:<10} {us:7.1f} us per request, {without:7.1f} us without: {us - without:5.1f} us,"
            f" x {ratio:.3f} ({low:.3f} to {high:.3f})"
        )
    print(f"{cost.nbytes:.0f} bytes per request, {cost.syncs:.0f} syncs per second")


if __name__ == "__main__":
    main()
