"""How the gradients of a group come together over the stages of a node, whatever order their messages come in."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.protocol import GroupGradient, Payload, Work
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.runtime.stage.group_seals import GroupSeals
from lemix_hpc.runtime.stage.links import StageLinks, StagePlace
from lemix_hpc.runtime.stage.weight_updates import WeightUpdates
from lemix_hpc.runtime.stage.work_items import Pass
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox
from lemix_hpc.runtime.transport.rank_layout import Layout

GROUPS = 3


class Engine(EmulatedStage):
    """Stage K has squared norms of 10 ** K for each group; weights that the first and last stage share have gradients of 1."""

    def __init__(self, place: StagePlace, *, ties: bool, pieces: int) -> None:
        super().__init__(LatencyModel((Affine(0, 0, 0),), (Affine(0, 0, 0),)), 0, 1)
        self._place, self._ties, self._pieces = place, ties, pieces
        self.prepared: list[tuple[int, float, bool]] = []

    def seal(self, group: int, tied: Payload | None) -> GroupGradient | Work[GroupGradient]:
        sealed = self._seal(group, tied)
        return self._in_pieces(sealed) if self._pieces else sealed

    def _in_pieces(self, sealed: GroupGradient) -> Work[GroupGradient]:
        for _ in range(self._pieces - 1):
            yield
        return sealed

    def _seal(self, group: int, tied: Payload | None) -> GroupGradient:
        assert (tied is not None) == (self._ties and self._place.first)
        own = Payload((1,), "float32", np.full(1, group, dtype=np.float32))
        assert tied is None or tied.data == own.data, "of another group"
        shares = self._ties and (self._place.first or self._place.last)
        return GroupGradient(10.0**self._place.stage, own if shares else None)

    def prepare(self, group: int, grad_norm: float, tied: Payload | None) -> Work[None] | None:
        self.prepared.append((group, grad_norm, tied is not None))
        return None


class Node:
    """A mailbox for all stages: what one stage sends another arrives in order, and nothing else is certain."""

    def __init__(self, stages: int, *, ties: bool, pieces: int) -> None:
        self.layout = Layout(1, stages)
        self.channels: dict[tuple[int, int], deque[tuple[m.AnyMessage, Payload | None]]] = defaultdict(deque)
        self._sender = 0
        self.engines: list[Engine] = []
        self.seals: list[GroupSeals] = []
        self.running: dict[int, Pass] = {}
        self.updates: list[WeightUpdates] = []
        for number in range(stages):
            place = StagePlace(self.layout, 0, number)
            links, engine = StageLinks(place, self), Engine(place, ties=ties, pieces=pieces)  # type: ignore[arg-type]
            updates = WeightUpdates(links, engine, lambda: 0.0, lambda _: None)
            self.engines.append(engine)
            self.updates.append(updates)
            self.seals.append(GroupSeals(links, engine, updates, lambda: 0.0))

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Payload | None = None) -> None:
        if inbox is Inbox.STAGE:
            self.channels[self._sender, self.layout.stage_of(rank) or 0].append((message, payload))

    def whole(self, stage: int, group: int) -> None:
        self._sender = stage
        self.seals[stage].whole(group)

    def works(self, stage: int) -> bool:
        return stage in self.running or self.seals[stage].since < math.inf

    def work(self, stage: int) -> None:
        """One piece of what is sealed on a stage."""
        self._sender = stage
        running = self.running.setdefault(stage, self.running.get(stage) or self.seals[stage].take())
        assert self.seals[stage].open
        try:
            next(running.work)
        except StopIteration as end:
            del self.running[stage]
            running.done(end.value)

    def deliver(self, sender: int, stage: int) -> None:
        message, payload = self.channels[sender, stage].popleft()
        self._sender = stage
        match message:
            case m.Sealed():
                assert payload is None, "the gradient of tied weights goes past the stages between"
                self.seals[stage].sealed_behind(message)
            case m.TiedGradient(group):
                self.seals[stage].tied_arrived(group, payload)
            case m.Prepare() as prepare:
                self.updates[stage].prepare(prepare, payload)
            case m.Prepared(version):
                self.updates[stage].prepared_behind(version)
                self.updates[stage].settle()


@given(stages=st.integers(1, 4), ties=st.booleans(), pieces=st.integers(0, 3), data=st.data())
def test_a_group_is_stepped_by_once_it_is_whole_on_all_stages(
    stages: int, ties: bool, pieces: int, data: st.DataObject
) -> None:
    """Stages seal in so many `pieces`; 0: at once."""
    ties = ties and stages > 1
    node = Node(stages, ties=ties, pieces=pieces)
    to_end = {stage: deque(range(GROUPS)) for stage in range(stages)}
    while True:
        moves: list[tuple[Any, ...]] = [("end", stage) for stage, left in to_end.items() if left]
        moves += [("deliver", *channel) for channel, waiting in node.channels.items() if waiting]
        moves += [("work", stage) for stage in range(stages) if node.works(stage)]
        if not moves:
            break
        kind, *where = data.draw(st.sampled_from(moves))
        if kind == "end":
            node.whole(where[0], to_end[where[0]].popleft())
        elif kind == "work":
            node.work(where[0])
        else:
            node.deliver(*where)
    norm = sum(10.0**stage for stage in range(stages)) ** 0.5
    for number, engine in enumerate(node.engines):
        # The first step is begun; the others wait until it is in force, which nobody decides here.
        [(group, told, tied)] = engine.prepared
        assert (group, told) == (0, pytest.approx(norm))
        assert tied == (ties and number in (0, stages - 1))
    assert not any(seals.open for seals in node.seals)


def test_a_stage_seals_its_part_before_the_stages_behind_are_through() -> None:
    node = Node(3, ties=False, pieces=1)
    for stage in range(3):
        node.whole(stage, 0)
    assert [node.works(stage) for stage in range(3)] == [False, True, True]
    node.work(1)
    assert node.seals[1].open, "what is behind is missing"
    assert not node.channels[1, 0]
    node.work(2)
    node.deliver(2, 1)
    node.deliver(1, 0)
    assert [node.works(stage) for stage in range(3)] == [True, False, False]
