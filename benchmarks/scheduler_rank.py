"""How many generated tokens per second the scheduler rank sustains on one core, by the number of nodes and the size of batches.

    python benchmarks/scheduler_rank.py
    python benchmarks/scheduler_rank.py --nodes 256 --batch 64 --profile

The real scheduler loop, with its policy, journal, records and live figures, takes what the real leaders of nodes of 8 stages
tell it of passes that end every 50 ms: 20 tokens per second and request. A request generates 128 tokens, and then the next one
comes. Messages go through MPI, from this process to itself. Time is that of the loop's thread; what leaders take is not in it.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import math
import pstats
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import msgspec
from mpi4py import MPI

from lemix_hpc.engines.protocol import SequenceResult, ServeBatch
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.rules import OrderName, SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler, compile_policy
from lemix_hpc.records.event_log import EVENTS
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.schema import SPANS
from lemix_hpc.records.writer import Recorder
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.leader.batching_leader import Leader
from lemix_hpc.runtime.leader.memory_gate import NodeMemoryLimits
from lemix_hpc.runtime.scheduler.arrivals import Arrivals
from lemix_hpc.runtime.scheduler.loop import LoopSettings, SchedulerLoop
from lemix_hpc.runtime.scheduler.watch import Watch
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.doorbell import Doorbell
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.workload.tasks import Request

STAGES = 8
PROMPT, OUTPUT = 256, 128
PERIOD_S = 0.05
"""Between two tokens of a request."""
TURN_S = 1e-3
"""Between two turns of the loop, at least."""
SIGN_S = 5.0
"""Between two signs of life of a rank."""


@dataclass
class Clock:
    """Of the run; no time passes but what is said."""

    time: float = 0.0

    def now(self) -> float:
        return self.time


@dataclass
class LeaderBox:
    """A leader's mailbox: what it sends to the scheduler and to its first stage is kept."""

    in_transit = False
    sent_all = True
    arriving: list[m.AnyMessage] = field(default_factory=list)
    told: list[m.AnyMessage] = field(default_factory=list)
    batches: list[ServeBatch] = field(default_factory=list)

    def poll(self) -> list[Mail]:
        arrived, self.arriving = self.arriving, []
        return [Mail(0, message, None) for message in arrived]

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage) -> None:  # noqa: ARG002
        if inbox is Inbox.SCHEDULER:
            self.told.append(message)
        elif isinstance(message, m.Serve):
            self.batches.append(message.batch)


class Node:
    """A leader, and stages that take as long as they should."""

    def __init__(self, layout: Layout, node: int, clock: Clock, batch: int, latency: LatencyModel) -> None:
        self.box, self._node, self._clock, self._latency = LeaderBox(), node, clock, latency
        nobody_asks: Any = None
        nothing_waits: Any = {"max_hold": 0.0, "gpipe": False, "useful_in_flight": STAGES}
        unlimited = NodeMemoryLimits(layout.stages, (), nobody_asks, 1.0, offloads=False, **nothing_waits)
        limits: Any = {
            "max_requests": 4 * batch,
            "max_tokens": 4 * batch * PROMPT,
            "temperature": 0.0,
            "memory": unlimited,
        }
        mailbox: Any = self.box
        on_virtual_time: Any = clock
        self._leader = Leader(layout, node, mailbox, on_virtual_time, **limits)

    def take(self, *messages: m.AnyMessage) -> None:
        self.box.arriving += messages
        self._leader.turn()

    def pass_all(self) -> tuple[int, int]:
        """The batches that the leader has formed run through all stages. How many, and tokens that they give."""
        batches, self.box.batches = self.box.batches, []
        results = []
        for batch in batches:
            for report in self._reports(batch):
                self.take(report)
            answers = [SequenceResult(s.request, 0.0, 0, -1) for s in batch.sequences]
            results.append(m.Served(batch.id, answers, 0, self._clock.now()))
        self.take(*results)
        return len(batches), sum(len(batch.sequences) for batch in batches)

    def _reports(self, batch: ServeBatch) -> Iterator[m.SpanReport]:
        """What stages report, the last one just now."""
        shape = Shape.of([s.length for s in batch.sequences], [s.cached for s in batch.sequences])
        tasks = [sequence.request for sequence in batch.sequences]
        seconds = [stage.seconds(shape) for stage in self._latency.forward]
        start = self._clock.now() - sum(seconds)
        for stage, took in enumerate(seconds):
            span = m.WorkSpan(self._node, stage, "serve", tasks, start, start + took, 0, batch.id, True, shape, took)
            start += took
            yield m.SpanReport([span])


@dataclass
class Sent:
    """A message that has left."""

    data: bytes
    rank: int
    inbox: int

    def Test(self) -> bool:  # noqa: N802  as MPI has it
        return True


class Comm:
    """What the loop gets comes through MPI; what it sends is kept."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.Improbe = MPI.COMM_SELF.Improbe

    def Isend(self, data: bytes, rank: int, inbox: int) -> Sent:  # noqa: N802
        self.sent.append(Sent(data, rank, inbox))
        return self.sent[-1]


@dataclass
class Took:
    """Since the start of the measurement."""

    seconds: float = 0.0
    tokens: int = 0
    passes: int = 0
    messages: int = 0
    nbytes: int = 0


class Cluster:
    """The scheduler rank, and all that tells it something."""

    def __init__(self, layout: Layout, arrivals: Arrivals, batch: int, order: OrderName, directory: Path) -> None:
        self._layout, self._clock, self._comm = layout, Clock(), Comm()
        nodes, stages = layout.nodes, layout.stages
        forward = Affine(0.765e-3, 6.70e-6, 0.947e-9, 2.5e-9)
        latency = LatencyModel((forward,) * stages, (forward.scaled(2.0),) * stages)
        self._nodes = [Node(self._layout, node, self._clock, batch, latency) for node in range(nodes)]
        config = SchedulerConfig(nodes, t0=stages * 0.01, batch_requests=batch, order=order)
        scheduler = Scheduler(config, latency)
        bell = Doorbell(f"benchmark-{directory.name}", SCHEDULER_RANK, frozenset(), remote=True)
        comm: Any = self._comm
        mailbox = Mailbox(comm, Inbox.SCHEDULER, bell)
        number = itertools.count().__next__
        now = self._clock.now
        self._recorder = Recorder(directory)
        self._journal = self._recorder.journal = Journal(directory)
        self._loop = SchedulerLoop(
            self._layout,
            scheduler,
            mailbox,
            self._recorder,
            now,
            arrivals,
            None,
            CallRouter(self._layout, mailbox, number, 60.0),
            LoopSettings(None, 1.0),
            number,
            watch=Watch(60.0, now, self._layout, mailbox),
        )
        self._arriving: list[tuple[MPI.Request, bytes]] = []
        self.profile: cProfile.Profile | None = None
        self.took = Took()
        self._directory = directory

    def run(self, seconds: float, period: float = PERIOD_S) -> None:
        """So long of virtual time, in which a pass ends on each node every `period` seconds."""
        nodes, begin = len(self._nodes), self._clock.time
        turn_at = begin
        for step in range(round(seconds / period) * nodes):
            self._clock.time = begin + (step + 1) * period / nodes
            node = self._nodes[step % nodes]
            passes, tokens = node.pass_all()
            self.took.passes += passes
            self.took.tokens += tokens
            self._signs(self._clock.time - period / nodes, self._clock.time)
            self._tell(node.box)
            if self._clock.time >= turn_at:
                turn_at = self._clock.time + TURN_S
                self._turn()

    def written(self) -> int:
        """Bytes of spans and events so far."""
        self._recorder.flush()
        return sum((self._directory / name).stat().st_size for name in (SPANS, EVENTS))

    def close(self) -> None:
        self._turn()  # nothing may be left on its way
        self._recorder.close()
        self._journal.close(60.0)

    def _signs(self, since: float, until: float) -> None:
        ranks = self._layout.size
        for sign in range(math.floor(since / SIGN_S * ranks), math.floor(until / SIGN_S * ranks)):
            self._send(m.Alive(sign % ranks, until))

    def _tell(self, box: LeaderBox) -> None:
        told, box.told = box.told, []
        for message in told:
            self._send(message)
            self.took.messages += 1

    def _send(self, message: m.AnyMessage) -> None:
        data = msgspec.msgpack.encode([message, None])
        self._arriving.append((MPI.COMM_SELF.Isend(data, 0, Inbox.SCHEDULER), data))

    def _turn(self) -> None:
        if self.profile is not None:
            self.profile.enable()
        start = time.thread_time()
        self._loop.turn()
        self.took.seconds += time.thread_time() - start
        if self.profile is not None:
            self.profile.disable()
        self._arriving = [(request, data) for request, data in self._arriving if not request.Test()]
        sent, self._comm.sent = self._comm.sent, []
        for each in sent:
            if each.inbox == Inbox.LEADER:
                (_, *fields), *_ = msgspec.msgpack.decode(each.data)
                self._nodes[self._layout.node_of(each.rank)].take(m.PlaceRequest(*fields))


def _requests(count: int, turns: int) -> Iterator[Request]:
    """`turns` behind one another in `count` chains, which end at different times."""
    for turn in range(turns):
        for chain in range(count):
            id = f"request-{turn * count + chain}"
            after = None if turn == 0 else f"request-{(turn - 1) * count + chain}"
            output = OUTPUT if turn else 8 + chain % OUTPUT
            yield Request(id, 0.0, PROMPT, output, after=after)


def measure(nodes: int, batch: int, passes: int, order: OrderName, *, profile: bool) -> Took:
    """Once all requests have come and some have been answered."""
    of_each = max(passes // nodes, 8)
    with tempfile.TemporaryDirectory() as directory:
        turns = of_each // OUTPUT + 3
        arrivals = Arrivals(_requests(nodes * batch, turns), nodes * batch * turns)
        cluster = Cluster(Layout(nodes, STAGES), arrivals, batch, order, Path(directory))
        cluster.run(8 * PERIOD_S)
        cluster.took = Took(nbytes=-cluster.written())
        cluster.profile = cProfile.Profile(time.thread_time) if profile else None
        cluster.run(of_each * PERIOD_S)
        cluster.took.nbytes += cluster.written()
        cluster.close()
    if cluster.profile is not None:
        pstats.Stats(cluster.profile).sort_stats("tottime").print_stats(30)
    return cluster.took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 64, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64], help="requests on a node, in the mean")
    parser.add_argument("--passes", type=int, default=2000, help="at least, and at least 8 of every node")
    parser.add_argument("--order", default="deadline", choices=get_args(OrderName), help="of requests that wait")
    parser.add_argument("--profile", action="store_true", help="show where the time goes, which then is longer")
    args = parser.parse_args()
    compile_policy()
    columns = (
        ("tokens/s", 9),
        ("us/token", 9),
        ("us/pass", 8),
        ("messages/pass", 14),
        ("bytes/pass", 11),
        ("needed/s", 9),
    )
    print(f"{'nodes':>6} {'batch':>6}", *(f"{name:>{width}}" for name, width in columns))
    for nodes in args.nodes:
        for batch in args.batch:
            took = measure(nodes, batch, args.passes, args.order, profile=args.profile)
            print(
                f"{nodes:>6} {took.tokens / took.passes:>6.1f} {took.tokens / took.seconds:>9.0f}"
                f" {1e6 * took.seconds / took.tokens:>9.2f} {1e6 * took.seconds / took.passes:>8.1f}"
                f" {took.messages / took.passes:>14.2f} {took.nbytes / took.passes:>11.0f} {nodes * batch / PERIOD_S:>9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
