"""How the gradients of a group come together over the stages of a node, whatever order their messages come in."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.protocol import GroupGradient, Payload, Work
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.runtime.stage.links import StageLinks, StagePlace
from lemix_hpc.runtime.stage.passes import Passes
from lemix_hpc.runtime.stage.weight_updates import WeightUpdates
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox
from lemix_hpc.runtime.transport.rank_layout import Layout

GROUPS = 3


class Engine(EmulatedStage):
    """Stage K has squared norms of 10 ** K for each group; weights that the first and last stage share have gradients of 1."""

    def __init__(self, place: StagePlace, *, ties: bool) -> None:
        super().__init__(LatencyModel((Affine(0, 0, 0),), (Affine(0, 0, 0),)), 0, 1)
        self._place, self._ties = place, ties
        self.prepared: list[tuple[int, float, bool]] = []

    def seal(self, group: int, tied: Payload | None) -> GroupGradient:
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

    def __init__(self, stages: int, *, ties: bool) -> None:
        self.layout = Layout(1, stages)
        self.channels: dict[tuple[int, int], deque[tuple[m.AnyMessage, Payload | None]]] = defaultdict(deque)
        self._sender = 0
        self.engines: list[Engine] = []
        self.passes: list[Passes] = []
        self.updates: list[WeightUpdates] = []
        for number in range(stages):
            place = StagePlace(self.layout, 0, number)
            links, engine = StageLinks(place, self), Engine(place, ties=ties)  # type: ignore[arg-type]
            updates = WeightUpdates(links, engine, lambda: 0.0, lambda _: None)
            groups = {"in_flight": stages, "gpipe": False, "flush": False}
            self.engines.append(engine)
            self.updates.append(updates)
            self.passes.append(Passes(links, engine, updates, lambda: 0.0, lambda _: None, **groups))  # type: ignore[arg-type]

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Payload | None = None) -> None:
        if inbox is Inbox.STAGE:
            self.channels[self._sender, self.layout.stage_of(rank) or 0].append((message, payload))

    def whole(self, stage: int, group: int) -> None:
        self._sender = stage
        self.passes[stage].whole(group)

    def deliver(self, sender: int, stage: int) -> None:
        message, payload = self.channels[sender, stage].popleft()
        self._sender = stage
        match message:
            case m.Sealed():
                assert payload is None, "the gradient of tied weights goes past the stages between"
                self.passes[stage].sealed_behind(message)
            case m.TiedGradient(group):
                self.passes[stage].tied_arrived(group, payload)
            case m.Prepare() as prepare:
                self.updates[stage].prepare(prepare, payload)
            case m.Prepared(version):
                self.updates[stage].prepared_behind(version)
                self.updates[stage].settle()


@given(stages=st.integers(1, 4), ties=st.booleans(), data=st.data())
def test_a_group_is_stepped_by_once_it_is_whole_on_all_stages(stages: int, ties: bool, data: st.DataObject) -> None:
    ties = ties and stages > 1
    node = Node(stages, ties=ties)
    to_end = {stage: deque(range(GROUPS)) for stage in range(stages)}
    while True:
        moves: list[tuple[Any, ...]] = [("end", stage) for stage, left in to_end.items() if left]
        moves += [("deliver", *channel) for channel, waiting in node.channels.items() if waiting]
        if not moves:
            break
        kind, *where = data.draw(st.sampled_from(moves))
        if kind == "end":
            node.whole(where[0], to_end[where[0]].popleft())
        else:
            node.deliver(*where)
    norm = sum(10.0**stage for stage in range(stages)) ** 0.5
    for number, engine in enumerate(node.engines):
        # The first step is begun; the others wait until it is in force, which nobody decides here.
        [(group, told, tied)] = engine.prepared
        assert (group, told) == (0, pytest.approx(norm))
        assert tied == (ties and number in (0, stages - 1))
    assert not any(passes.sealing for passes in node.passes)
