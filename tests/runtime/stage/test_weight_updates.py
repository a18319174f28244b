"""WeightUpdates over several stages, whose messages come in any order that the channels allow."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.protocol import Payload, Work
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.runtime.stage.links import StageLinks, StagePlace
from lemix_hpc.runtime.stage.weight_updates import WeightUpdates
from lemix_hpc.runtime.stage.work_items import Pass
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox
from lemix_hpc.runtime.transport.rank_layout import Layout


class Engine(EmulatedStage):
    """Tells what it does; `holding`: a micro-batch is between forward and backward."""

    def __init__(self, *, works: bool) -> None:
        super().__init__(LatencyModel((Affine(0, 0, 0),), (Affine(0, 0, 0),)), 0, 1)
        self.log: list[tuple[str, Any]] = []
        self.holding = False
        self._works = works

    @property
    def holds_graph(self) -> bool:
        return self.holding

    def prepare(self, group: int, grad_norm: float, tied: Payload | None) -> Work[None] | None:
        self.log.append(("begin", group))
        assert (grad_norm, tied) == (group / 2, None)
        return self._prepare(group) if self._works else None

    def _prepare(self, group: int) -> Work[None]:
        yield
        self.log.append(("prepared", group))

    def publish(self, group: int) -> Work[None]:
        assert not self.holding
        self.log.append(("published", group))
        yield from ()

    def ask_to_commit(self) -> bool:
        return False

    def read_weights(self) -> list[Payload]:
        return [Payload((1,), "float32", np.zeros(1, dtype=np.float32))]

    def write_weights(self, weights: list[Payload]) -> None:
        assert not self.holding
        self.log.append(("written", float(weights[0].data[0])))


class Stage:
    """A stage that does nothing but updates, as `StageWorker` would."""

    def __init__(self, node: Node, number: int, works: bool) -> None:
        self.place = StagePlace(node.layout, 0, number)
        self.engine = Engine(works=works)
        self.updates = WeightUpdates(StageLinks(self.place, node), self.engine, lambda: 0.0, lambda _: None)  # type: ignore[arg-type]
        self.running: Pass | None = None
        self.commits: deque[m.Commit] = deque()

    def receive(self, message: m.AnyMessage, payload: Payload | None) -> None:
        match message:
            case m.Prepare() as prepare:
                self.updates.prepare(prepare, payload)
            case m.Prepared(version):
                self.updates.prepared_behind(version)
            case m.Commit() as commit:
                self.commits.append(commit)
            case m.WeightsPart() as part:
                self.updates.copy_arrived(part, payload)

    @property
    def can_work(self) -> bool:
        return self.running is not None or self._commit is not None or self.updates.preparation_since == 0.0

    def work(self) -> None:
        if self.running is not None:
            self._advance(self.running)
        elif self._commit is not None:
            commit = self._commit
            if self.commits:
                self.commits.popleft()
            publication = self.updates.publish(commit)
            while self.running is not None or publication is not None:
                self.running, publication = publication, None  # type: ignore[assignment]
                self._advance(self.running)
        else:
            self.running = self.updates.take_preparation()

    @property
    def _commit(self) -> m.Commit | None:
        if self.place.first:
            decided = self.updates.decided
            return None if decided is None else decided.message
        return self.commits[0] if self.commits and self.updates.may_publish() else None

    def _advance(self, running: Pass) -> None:
        try:
            next(running.work)
        except StopIteration as end:
            self.running = None
            running.done(end.value)


class Node:
    """The mailbox of all stages of one node: each channel between two of them keeps its order."""

    def __init__(self, stages: int, works: bool = True) -> None:
        self.layout = Layout(1, stages)
        self.told: list[m.AnyMessage] = []
        self.channels: dict[tuple[int, str], deque[tuple[m.AnyMessage, Payload | None]]] = {}
        self.stages = [Stage(self, number, works) for number in range(stages)]

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Payload | None = None) -> None:
        if inbox is Inbox.LEADER:
            self.told.append(message)
            return
        way = "up" if isinstance(message, m.Prepared) else "down"
        stage = self.layout.stage_of(rank)
        assert stage is not None
        self.channels.setdefault((stage, way), deque()).append((message, payload))

    def choices(self) -> list[Any]:
        """What can happen next: a message arrives, or a stage works."""
        for stage in self.stages:
            if stage.running is None:
                stage.updates.settle()
        arrivals = [
            lambda stage=stage, mail=mail: self.stages[stage].receive(*mail.popleft())
            for (stage, _), mail in sorted(self.channels.items())
            if mail
        ]
        return arrivals + [stage.work for stage in self.stages if stage.can_work]

    def go_on(self, draw: Any) -> None:
        """Until nothing can happen any more, in an order that `draw` gives."""
        while choices := self.choices():
            choices[draw(len(choices))]()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.data())
def test_every_stage_publishes_all_steps_in_order_and_only_what_all_have_prepared(
    stages: int, groups: int, works: bool, data: st.DataObject
) -> None:
    node = Node(stages, works)
    for group in range(groups):
        node.stages[0].updates.step(group, group / 2, None)
        for _ in range(data.draw(st.integers(0, 8))):
            if choices := node.choices():
                choices[data.draw(st.integers(0, len(choices) - 1))]()
                prepared = [stage.updates.version for stage in node.stages]
                assert prepared == sorted(prepared, reverse=True), "no stage is ahead of the one before it"
    node.go_on(lambda count: data.draw(st.integers(0, count - 1)))
    parts = ("begin", "prepared", "published") if works else ("begin", "published")
    for stage in node.stages:
        assert stage.engine.log == [(part, group) for group in range(groups) for part in parts]
        assert stage.updates.version == groups
        assert not stage.updates.stepping
    assert node.told == [m.Stepped(0, group, group + 1) for group in range(groups)]


def test_nothing_is_published_before_the_last_stage_is_ready() -> None:
    node = Node(3)
    node.stages[0].updates.step(0, 0.0, None)
    for stage in node.stages[:2]:
        while stage.can_work:
            stage.work()
        for mail in [mail for (number, _), mail in node.channels.items() if number == stage.place.stage + 1]:
            node.stages[stage.place.stage + 1].receive(*mail.popleft())
    assert [stage.engine.log[-1][0] for stage in node.stages] == ["prepared", "prepared", "begin"]
    assert all(stage.updates.version == 0 for stage in node.stages)
    assert node.stages[0].updates.decided is None
    node.go_on(lambda _: 0)
    assert all(stage.updates.version == 1 for stage in node.stages)


def test_a_graph_keeps_the_weights_as_they_are_but_not_the_preparation() -> None:
    node = Node(2)
    for stage in node.stages:
        stage.engine.holding = True
    node.stages[0].updates.step(0, 0.0, None)
    node.go_on(lambda _: 0)
    assert [stage.engine.log[-1] for stage in node.stages] == [("prepared", 0)] * 2
    for stage in node.stages:
        assert [stage.updates.version for stage in node.stages] == [0, 0], "one that cannot publish is not ready"
        assert not node.stages[1].updates.holding
        stage.engine.holding = False
        node.go_on(lambda _: 0)
    assert [stage.updates.version for stage in node.stages] == [1, 1]
    assert not any(stage.updates.holding for stage in node.stages)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.data())
def test_copies_go_in_on_all_stages_alike_and_older_ones_may_be_left_out(stages: int, data: st.DataObject) -> None:
    node = Node(stages)
    for number in range(stages):
        coming = node.channels.setdefault((number, "across"), deque())
        for version in (2, 4, 6):
            weights = Payload((1,), "float32", np.full(1, version, dtype=np.float32))
            coming.extend([(m.WeightsPart(version, 1, 2), weights), (m.WeightsPart(version, 0, 2), weights)])
    node.go_on(lambda count: data.draw(st.integers(0, count - 1)))
    logs = [stage.engine.log for stage in node.stages]
    assert all(log == logs[0] for log in logs)
    assert logs[0][-1] == ("written", 6.0)
    assert [stage.updates.version for stage in node.stages] == [6] * stages
    assert not node.stages[0].updates.stepping
