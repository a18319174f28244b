"""A scheduler that is told things, and beside it, for every node, the forecast from scratch that it must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field

from lemix_hpc.policy.events import (
    Decision,
    Event,
    GroupOffered,
    Place,
    RequestArrived,
    StageFinished,
    TaskFinished,
)
from lemix_hpc.policy.forecast import ALL, expect
from lemix_hpc.policy.latency import LatencyModel
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.state import NONE, Floats, State
from lemix_hpc.policy.task_slots import slot_of
from tests.policy.reference import Node, Path, Work

Pass = tuple[int, int, int, bool]
"""Node, task, stage and whether it is a backward."""


@dataclass(frozen=True)
class Arrive:
    """A request comes, `gap` seconds after what was before it."""

    gap: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Offer:
    """A group comes."""

    gap: float
    rows: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """A pass ended `lag` seconds ago and took `stretch` times as long as predicted. It is the `pick`-th of those not reported,
    counted from the one that is expected first."""

    gap: float
    pick: int
    lag: float
    stretch: float


@dataclass(frozen=True)
class Finish:
    """The `pick`-th unfinished task that was sent to a node has its outcome."""

    gap: float
    pick: int


Step = Arrive | Offer | Report | Finish


@dataclass
class Mirror:
    """What the two know after some steps."""

    config: SchedulerConfig
    latency: LatencyModel
    now: float = 0.0
    number: int = 0
    decided: list[Decision] = field(default_factory=list)
    unreported: list[Pass] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config, self.latency)
        stages, first = self.latency.stages, self.config.serving_first
        self.nodes = [Node(stages, serving_first=first) for _ in range(self.config.nodes)]

    def take(self, step: Step) -> None:
        """Turn a step into an event, if there is anything for it, and tell it to both."""
        self.now += step.gap
        match step:
            case Arrive(_, prompt, output):
                self.tell(RequestArrived(self.now, self._numbered(1)[0], prompt, output))
            case Offer(_, rows, lengths):
                self.tell(GroupOffered(self.now, self.number, self._numbered(len(lengths)), rows, lengths))
            case Report():
                self._report(step)
            case Finish(_, pick):
                running = [(node, work.task) for node, here in enumerate(self.nodes) for work in here.tasks]
                if running:
                    node, task = running[pick % len(running)]
                    self.tell(TaskFinished(self.now, node, task, output=1 + pick % 7))

    def tell(self, event: Event) -> None:
        decisions = self.scheduler.handle(event)
        match event:
            case StageFinished(_, node, stage, task, start, end, backward):
                self.nodes[node].observe(task, stage, start, end, backward=backward)
            case TaskFinished(_, node, task, _):
                self.nodes[node].forget(task)
        for decision in decisions:
            assert isinstance(decision, Place)
            self._assign(decision)
        self.decided += decisions

    def check(self) -> None:
        """What is kept is what would be forecast from scratch."""
        for number, node in enumerate(self.nodes):
            check_links(self.scheduler.state, number, node)
            kept = paths_of(self.scheduler.state, number)
            assert kept == [(task, *_without_idleness(path)) for task, path in node.paths().items()]

    def check_candidates(self, forward: Floats) -> None:
        """What would be forecast of one more task is what it would be from scratch."""
        for number, node in enumerate(self.nodes):
            here = self.scheduler.state.nodes[number]
            where = [(int(here["tail"]), ALL, len(node.tasks))]
            if self.config.serving_first:
                where.append((int(here["last_request"]), 0, node.requests))
            for behind, sequence, count in where:
                begin, end, idleness = expect(self.scheduler.state, number, behind, sequence, self.now, forward)
                path = node.expect(self.now, forward.tolist(), count)
                assert (begin, end) == (path.fb[0], path.fe[-1])
                assert abs(idleness - path.idleness) <= 1e-9 * (1 + path.idleness)

    def _numbered(self, count: int) -> tuple[int, ...]:
        self.number += count
        return tuple(range(self.number - count, self.number))

    def _assign(self, place: Place) -> None:
        """Times are not what is tested here: both have the same."""
        state = self.scheduler.state
        slot = slot_of(state, place.task)
        training = bool(state.slots[slot]["training"])
        forward, backward = tuple(state.forward[slot].tolist()), tuple(state.backward[slot].tolist())
        work = Work(place.task, self.now, forward, backward if training else (), place.key)
        self.nodes[place.node].assign(work, self.now)
        for kind in (False, True)[: 1 + training]:
            self.unreported += [(place.node, place.task, stage, kind) for stage in range(len(forward))]

    def _report(self, report: Report) -> None:
        if not self.unreported:
            return
        self.unreported.sort(key=lambda each: (self._expected_begin(each), each))
        node, task, stage, backward = self.unreported.pop(report.pick % len(self.unreported))
        known = {work.task: work for work in self.nodes[node].tasks}.get(task)
        times = (known.backward if backward else known.forward) if known else (1.0,) * self.latency.stages
        end = self.now - report.lag
        start = end - report.stretch * times[stage]
        self.tell(StageFinished(self.now, node, stage, task, start, end, backward))

    def _expected_begin(self, each: Pass) -> float:
        node, task, stage, backward = each
        path = self.nodes[node].paths().get(task)
        return 0.0 if path is None else (path.bb if backward else path.fb)[stage]


Kept = tuple[int, tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def paths_of(state: State, node: int) -> list[Kept]:
    """Task, fb, fe, bb, be and after of all tasks of a node, in running order."""
    kept: list[Kept] = []
    slot = state.nodes[node]["head"]
    while slot != NONE:
        path, training = state.paths[slot], state.slots[slot]["training"]
        fb, fe, bb, be, after = (tuple(path[name].tolist()) for name in ("fb", "fe", "bb", "be", "after"))
        kept.append((int(state.slots[slot]["task"]), fb, fe, bb if training else (), be if training else (), after))
        slot = state.slots[slot]["next"]
    return kept


def check_links(state: State, number: int, node: Node) -> None:
    """The chains through the slots of a node agree with one another and with the tasks there."""
    slots, here = state.slots, state.nodes[number]
    chain: list[int] = []
    slot = here["head"]
    while slot != NONE:
        assert slots[slot]["previous"] == (chain[-1] if chain else NONE)
        assert slot_of(state, slots[slot]["task"]) == slot
        chain.append(slot)
        slot = slots[slot]["next"]
    assert [slots[slot]["task"] for slot in chain] == [work.task for work in node.tasks]
    assert here["tail"] == (chain[-1] if chain else NONE)
    training = [slot for slot in chain if slots[slot]["training"]]
    serving = [slot for slot in chain if not slots[slot]["training"]]
    followed = []
    slot = here["first_training"]
    while slot != NONE:
        followed.append(slot)
        slot = slots[slot]["next_training"]
    assert followed == training
    if training:
        assert here["last_training"] == training[-1]
    if node.serving_first:
        assert here["last_request"] == (serving[-1] if serving else NONE)
    assert here["requests"] == len(serving)
    assert here["generating"] == sum(slots[slot]["output"] > 1 for slot in serving)


def _without_idleness(path: Path) -> tuple[tuple[float, ...], ...]:
    return path.fb, path.fe, path.bb, path.be, path.after
