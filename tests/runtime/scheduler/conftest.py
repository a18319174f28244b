"""The scheduler rank's loop on a clock that stands still, and what it sends, tells the policy and records."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from lemix_hpc.config.training_section import Training
from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.policy.events import (
    Event,
)
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.records.event_log import read_events
from lemix_hpc.records.inheritance import NOTHING, Inheritance
from lemix_hpc.records.sampling import Sampling
from lemix_hpc.records.schema import Progress, Span, SpanKind, TaskRecord
from lemix_hpc.records.stretches import spans_of, stretches_decoder
from lemix_hpc.records.writer import Recorder
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.run_setup.training_feed import TrainingFeed
from lemix_hpc.runtime.http.call import ResponsePart
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.scheduler.drain import Drain
from lemix_hpc.runtime.scheduler.loop import LoopSettings, SchedulerLoop
from lemix_hpc.runtime.scheduler.resume import arrivals_of
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.request_stream import RequestStream
from lemix_hpc.workload.tasks import ApiCall, Request
from lemix_hpc.workload.training import stream

# Two stages. A request, and each forward, takes 1 s on each of them, a backward 2 s.
LAYOUT = Layout(2, 2)
LATENCY = LatencyModel((Affine(1.0, 0, 0),) * 2, (Affine(2.0, 0, 0),) * 2)
LEADERS = [LAYOUT.leader(node) for node in range(LAYOUT.nodes)]
SHAPE = Shape.of((8,))
API = ApiCall("POST", "/v1/completions", (), b"{}")


@dataclass
class Post:
    """Rank 0's mailbox and clock: what is to arrive, and what was sent since somebody looked."""

    time: float = 0.0
    arriving: list[m.AnyMessage] = field(default_factory=list)
    sent: list[tuple[int, Inbox, m.AnyMessage]] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def poll(self) -> list[Mail]:
        mails = [Mail(0, message, None) for message in self.arriving]
        self.arriving.clear()
        return mails

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage) -> None:
        self.sent.append((rank, inbox, message))

    def taken(self) -> list[tuple[int, Inbox, m.AnyMessage]]:
        sent, self.sent = self.sent, []
        return sent


@dataclass
class Caller:
    """A client's call that has come in at the server, and what its client was given."""

    id: str
    arrived: float
    lengths: tuple[int, int] | None
    api: ApiCall = API
    node: int = 0
    number: int | None = None
    unhurried: bool = False
    patient: bool = False
    service: ServiceClass = "interactive"
    gone: bool = False
    got: list[ResponsePart | ApiError] = field(default_factory=list)

    def part(self, part: ResponsePart) -> None:
        self.got.append(part)

    def fail(self, error: ApiError) -> None:
        self.got.append(error)


@dataclass
class Server:
    """The server: calls that have come, until it is told to take no more."""

    calls: list[Caller] = field(default_factory=list)
    accepting: bool = True

    def poll(self) -> list[Caller]:
        calls, self.calls = self.calls, []
        return calls

    def stop_accepting(self) -> None:
        self.accepting = False


class Rank:
    """The loop and all around it. `turn` moves the clock, hands messages over and gives one turn."""

    def __init__(
        self,
        run_dir: Path,
        requests: Sequence[Request],
        feed: Callable[[Callable[[], int]], TrainingFeed] | None,
        server: Server | None,
        closes: float,
        settings: LoopSettings,
        config: SchedulerConfig,
        inherited: Inheritance = NOTHING,
    ) -> None:
        self._dir = run_dir
        self.post = Post()
        self.recorder = Recorder(run_dir)
        number = itertools.count(inherited.next_number).__next__
        post: Any = self.post
        opened: Any = server
        self.policy = Scheduler(config, LATENCY)
        in_places = [msgspec.structs.replace(request, place=place) for place, request in enumerate(requests)]
        self.loop = SchedulerLoop(
            LAYOUT,
            self.policy,
            post,
            self.recorder,
            self.post.now,
            arrivals_of(RequestStream.of(in_places), inherited),
            feed(number) if feed is not None else None,
            CallRouter(LAYOUT, post, number, 60.0, server=opened, end=closes),
            settings,
            number,
            inherited=inherited,
            drain=Drain(run_dir / "stop", "auto", None, self.post.now),
        )

    def stop(self) -> None:
        """As `lemix stop` does."""
        (self._dir / "stop").touch()

    def turn(self, at: float, *messages: m.AnyMessage) -> bool:
        self.post.time = at
        self.post.arriving += messages
        return self.loop.turn()

    def sent(self) -> list[tuple[int, m.AnyMessage]]:
        """What went to leaders since the last look; nothing else did."""
        taken = self.post.taken()
        assert all(inbox is Inbox.LEADER for _, inbox, _ in taken)
        return [(rank, message) for rank, _, message in taken]

    def events(self) -> list[Event]:
        """All that the policy was told."""
        self.recorder.progress(Progress("running"))  # writes down what is kept back
        return list(read_events(self._dir))

    def tasks(self) -> list[TaskRecord]:
        decoder = msgspec.json.Decoder(TaskRecord)
        return [decoder.decode(line) for line in self._lines("tasks.jsonl")]

    def spans(self) -> list[Span]:
        decode = stretches_decoder()
        return [span for line in self._lines("spans.jsonl") for stretch in decode(line) for span in spans_of(stretch)]

    def _lines(self, name: str) -> list[bytes]:
        self.recorder.progress(Progress("running"))
        return (self._dir / name).read_bytes().splitlines()

    def progress(self) -> Progress:
        return msgspec.json.decode((self._dir / "progress.json").read_bytes(), type=Progress)


Start = Callable[..., Rank]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Sets the loop up with these requests; other arguments change the policy's configuration."""
    ranks: list[Rank] = []

    def make(
        *requests: Request,
        feed: Callable[[Callable[[], int]], TrainingFeed] | None = None,
        server: Server | None = None,
        closes: float = math.inf,
        context: int | None = None,
        interval: float = math.inf,
        partners: Partners | None = None,
        inherited: Inheritance = NOTHING,
        on_nan: Literal["stop_training", "stop", "skip"] = "skip",
        spans: Sampling = "all",
        **changes: Any,
    ) -> Rank:
        settings = LoopSettings(context, interval, partners=partners, on_nan=on_nan, spans=spans)
        config: dict[str, Any] = {"nodes": 2, "order": "fcfs", "admission": "none", "recalibrate": False} | changes
        ranks.append(Rank(tmp_path, requests, feed, server, closes, settings, SchedulerConfig(**config), inherited))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.recorder.close()


def training(
    total: int | None, per_group: int = 1, *, text: bool = True
) -> Callable[[Callable[[], int]], TrainingFeed]:
    """Groups of micro-batches t0, t1, ... of 2 x 4 tokens."""
    of_text = Training(micro_batch_size=2, sequence_length=4)
    return lambda number: TrainingFeed(
        stream(of_text, None, 0) if text else None, per_group=per_group, total=total, number=number
    )


def work(
    kind: SpanKind, tasks: list[int], stage: int, start: float, end: float, *, node: int = 0, complete: bool = True
) -> m.SpanReport:
    return m.SpanReport([m.WorkSpan(node, stage, kind, tasks, start, end, 3, 7, complete, SHAPE, end - start)])


def ran(tasks: list[int], start: float, end: float, *, node: int = 0) -> m.NodeReport:
    """A batch is through both stages, one after the other; `end`: on the first one."""
    took = end - start
    return m.NodeReport(node, [m.BatchRan(7, tasks, [], 3, SHAPE, [start, end], [end, end + took], [took, took])])


def done(task: int, finished: float, output: Sequence[int] = (), *, node: int = 0) -> m.RequestDone:
    return m.RequestDone(task, node, finished - 1.0, finished, 6.0, 7, list(output), (3, 4))


def trained(rank: Rank) -> list[tuple[int, int, int]]:
    """Micro-batches that went to leaders since the last look: rank, task and group."""
    return [
        (to, message.micro_batch.id, message.micro_batch.group)
        for to, message in rank.sent()
        if isinstance(message, m.Train)
    ]


# Requests
