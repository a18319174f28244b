"""A whole run of emulated stages in one process, on a virtual clock: scheduler, leaders and stage workers are the real ones.

Messages take no time. At one instant all that has ended is told first, and scheduler and leaders act on it; then the
stages, one after the other, run what is to be run next. A stage that works sees nothing until its piece of work has ended.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lemix_hpc.checkpoints.resumption import NodeStart
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.emulated import make_stage
from lemix_hpc.engines.protocol import Payload
from lemix_hpc.policy.events import Event
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.records.inheritance import NOTHING, Inheritance
from lemix_hpc.records.journal import Ended, Record, Trained
from lemix_hpc.records.schema import BatchWork, NodeMemory, Progress, ServedTask, Span, Stretch, TrainedTask
from lemix_hpc.records.stretches import of_stages, spans_of
from lemix_hpc.records.writer import Recorder
from lemix_hpc.run_setup.memory_limits import is_limited
from lemix_hpc.run_setup.scheduler_setup import make_scheduler, mean_unloaded_response, pace_of, partners, split
from lemix_hpc.run_setup.training_feed import feed_of
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.leader.batching_leader import Leader
from lemix_hpc.runtime.leader.make_leader import make_leader
from lemix_hpc.runtime.main import stage_place, stage_rules
from lemix_hpc.runtime.scheduler.loop import LoopSettings, SchedulerLoop
from lemix_hpc.runtime.scheduler.pace_orders import send_pace
from lemix_hpc.runtime.scheduler.resume import arrivals_of
from lemix_hpc.runtime.stage.worker import StageWorker
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.workload.load import load_workload


@dataclass
class Clock:
    """The cluster's time, and for a stage when the work that it has begun ends."""

    time: list[float]
    busy_until: float = 0.0
    reading: float | None = None

    def now(self) -> float:
        """A mail is taken in when it was sent: in a run, too, mails are taken in one after the other as they came."""
        return self.device() if self.reading is None else self.reading

    def device(self) -> float:
        """What a stage takes in, it acts on when it looks: between two pieces of work."""
        return max(self.time[0], self.busy_until)

    def sleep(self, seconds: float) -> None:
        self.busy_until = self.now() + seconds

    def start(self, start_time: float) -> None:
        """The run starts at 0."""

    @property
    def busy(self) -> bool:
        return self.busy_until > self.time[0]


class Mails(list[Mail]):
    """Mails that set their reader's clock to when each was sent."""

    def __init__(self, due: list[tuple[float, Mail]], clock: Clock) -> None:
        super().__init__(mail for _, mail in due)
        self._sent = [sent for sent, _ in due]
        self._clock = clock

    def __iter__(self) -> Iterator[Mail]:
        for sent, mail in zip(self._sent, super().__iter__(), strict=True):
            self._clock.reading = sent
            yield mail
        self._clock.reading = None


Box = list[tuple[float, int, int, m.AnyMessage, Payload | None]]


@dataclass
class Post:
    """All that is on its way: by the inbox of a rank, in order of the time at which it was sent, then of the sender."""

    on_message: Callable[[m.AnyMessage], None]
    boxes: dict[tuple[int, Inbox], Box] = field(default_factory=dict)
    sent: int = 0

    def put(
        self, to: tuple[int, Inbox], time: float, source: int, message: m.AnyMessage, payload: Payload | None
    ) -> None:
        self.on_message(message)
        self.sent += 1
        heapq.heappush(self.boxes.setdefault(to, []), (time, source, self.sent, message, payload))

    def take(self, to: tuple[int, Inbox], now: float) -> list[tuple[float, Mail]]:
        box, due = self.boxes.get(to, []), []
        while box and box[0][0] <= now:
            time, source, _, message, payload = heapq.heappop(box)
            due.append((time, Mail(source, message, payload)))
        return due


class VirtualMailbox:
    """What `runtime.mailbox.Mailbox` is to a part of the run."""

    in_transit = False
    sent_all = True

    def __init__(self, post: Post, rank: int, inbox: Inbox, clock: Clock) -> None:
        self._post = post
        self._rank = rank
        self._inbox = inbox
        self._clock = clock

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Payload | None = None) -> None:
        self._post.put((rank, inbox), self._clock.now(), self._rank, message, payload)

    def poll(self) -> Mails:
        return Mails(self._post.take((self._rank, self._inbox), self._clock.now()), self._clock)


class MemoryRecorder(Recorder):
    """Keeps what a run writes about itself."""

    def __init__(self, on_promise: Callable[[Record], None] = lambda record: None) -> None:  # noqa: ARG005
        self.on_promise = on_promise
        self.spans: list[Span] = []
        self.served: list[ServedTask] = []
        self.trained: list[TrainedTask] = []
        self.events: list[Event] = []

    def work(self, stretch: Stretch) -> None:
        self.spans += spans_of(stretch)

    def batch(self, work: BatchWork) -> None:
        for stretch in of_stages(work):
            self.work(stretch)

    def micro_batch(self, task: TrainedTask) -> None:
        self.trained.append(task)
        self.promise(Trained(task))

    def request(self, task: ServedTask, place: int | None = None, *, followed: bool = False, results: int = 0) -> None:
        self.served.append(task)
        self.promise(Ended(task, place=place, followed=followed, results=results))

    def promise(self, record: Record) -> None:
        self.on_promise(record)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, progress: Progress) -> None:
        """Nobody looks."""


class OneProcess:
    """The run of a recipe whose engine is `emulated`. `records` has what it wrote.

    `inherited`: what an earlier attempt has left. `on_promise` and `on_message` are told of each record of the journal and each
    message, and may end it all by an exception.
    """

    def __init__(
        self,
        recipe: Recipe,
        inherited: Inheritance = NOTHING,
        on_promise: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
        on_message: Callable[[m.AnyMessage], None] = lambda message: None,  # noqa: ARG005
    ) -> None:
        self.records = MemoryRecorder(on_promise)
        self._inherited = inherited
        self._time = [inherited.clock]
        self._post = Post(on_message)
        self._layout = Layout(recipe.nodes.count, recipe.nodes.stages)
        self._loop = self._make_loop(recipe)
        leaders = range(recipe.nodes.count)
        self._leaders = [self._make_leader(recipe, node) for node in leaders]
        self._stages = [
            self._make_stage(recipe, node, stage) for node in leaders for stage in range(recipe.nodes.stages)
        ]

    def run(self) -> None:
        """Until everything is served and trained."""
        while True:
            self._settle()
            if self._loop.finished:
                return
            next_time = min(self._ends(), self._loop._arrivals.next, self._loop._tick_at, self._due(), self._moved())
            assert self._time[0] < next_time < math.inf, "nothing will ever happen again"
            self._time[0] = next_time

    def _ends(self) -> float:
        return min((clock.busy_until for _, clock in self._stages if clock.busy), default=math.inf)

    def _due(self) -> float:
        return min(map(self._leader_due, self._leaders))

    def _leader_due(self, leader: Leader) -> float:
        batch = leader._due if leader._may_form() and not leader._lacks_memory else math.inf
        return min(batch, leader._gate.until)

    def _moved(self) -> float:
        """When the next thing that is on its way to the host or back gets there."""
        idle = (worker for worker, clock in self._stages if not clock.busy)
        ways = min((worker._passes.resting.until_settled for worker in idle), default=math.inf)
        return max(self._time[0] + ways, math.nextafter(self._time[0], math.inf))

    @property
    def memory(self) -> list[NodeMemory]:
        """What each node has made of its memory."""
        return [leader._gate.used for leader in self._leaders if leader._gate.limited]

    def _settle(self) -> None:
        """Everything that happens at this instant."""
        idle = False
        while not idle:
            self._decide()
            idle, before = True, self._post.sent
            for worker, clock in self._stages:
                while not clock.busy and worker._turn():
                    idle = False
            # A stage may have nothing to do but to tell others that it has.
            idle = idle and self._post.sent == before

    def _decide(self) -> None:
        """Leaders pass on what the stages tell, the scheduler acts on it, and leaders form batches of what it sends."""
        before = -1
        while before != (before := self._post.sent + len(self.records.events)):
            for turn in (*(leader.turn for leader in self._leaders), self._loop.turn):
                turn()

    def _box(self, rank: int, inbox: Inbox, clock: Clock) -> Any:
        return VirtualMailbox(self._post, rank, inbox, clock)

    def _make_loop(self, recipe: Recipe) -> SchedulerLoop:
        hardware, work = load_hardware(recipe), load_workload(recipe)
        reference = hardware.reference.latency(recipe.nodes.stages)
        t0 = mean_unloaded_response(reference, work.requests.demand, recipe)
        clock = Clock(self._time)
        mailbox = self._box(SCHEDULER_RANK, Inbox.SCHEDULER, clock)
        pace = pace_of(recipe, reference, work.requests.demand)
        apart = split(recipe)
        nodes = apart.training if apart else range(self._layout.nodes)
        send_pace(mailbox, self._layout, hardware, pace, nodes, recipe.policy.batch_share)
        number: Callable[[], int] = functools.partial(next, itertools.count(self._inherited.next_number))
        feed = feed_of(recipe, work, number)
        if feed is not None:
            feed.go_on(self._inherited.cuts, self._inherited.done, behind=self._inherited.behind)
        return SchedulerLoop(
            self._layout,
            make_scheduler(recipe, hardware, t0, **pace._asdict() if pace else {}),
            mailbox,
            self.records,
            clock.now,
            arrivals_of(work.requests, self._inherited),
            feed,
            CallRouter(self._layout, mailbox, number, recipe.engine.timeout_s),
            LoopSettings(None, recipe.report.live_interval_s, partners=partners(recipe)),
            number,
            inherited=self._inherited,
        )

    def _make_leader(self, recipe: Recipe, node: int) -> Any:
        clock = Clock(self._time)
        box = self._box(self._layout.leader(node), Inbox.LEADER, clock)
        unused: Any = None
        run_clock: Any = clock
        return make_leader(recipe, self._layout, node, box, unused, run_clock, unused)

    def _make_stage(self, recipe: Recipe, node: int, stage: int) -> tuple[StageWorker, Clock]:
        clock = Clock(self._time)
        engine = make_stage(recipe, load_hardware(recipe), node, stage, clock=clock.device, sleep=clock.sleep)
        box = self._box(self._layout.worker(node, stage), Inbox.STAGE, clock)
        place = stage_place(recipe, self._layout, node, stage)
        run_clock: Any = clock
        nobody_waits: Any = SimpleNamespace(wake=lambda: None)
        rules = stage_rules(recipe, limited=is_limited(recipe))
        start = NodeStart(self._inherited.versions.get(node, 0))
        worker = StageWorker(place, engine, box, run_clock, nobody_waits, rules, partners(recipe), start)
        return worker, clock
