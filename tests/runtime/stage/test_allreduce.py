"""The end of a run beside a sum over nodes: everybody gets out, and nobody waits on a device for a node that has left."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from lemix_hpc.engines.protocol import Payload, Vector, Work
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.stage.allreduce import Reduction, Sum
from lemix_hpc.runtime.transport import messages as m

LENGTH = 5
PATIENCE = 200
"""Turns of all nodes in which a run that can end has ended."""


@dataclass
class Node:
    """One stage of a node; `takes_part`: its gradient will be there, sooner or later, and it is not at rest before."""

    cluster: Cluster
    number: int
    takes_part: bool
    link: deque[tuple[m.AnyMessage, Payload | None]] = field(default_factory=deque)
    running: Work[Any] | None = None
    begun: bool = False
    left: bool = False

    def __post_init__(self) -> None:
        links: Any = SimpleNamespace(place=SimpleNamespace(node=self.number), across=self.cluster.send)
        engine: Any = SimpleNamespace(parameters=LENGTH)
        partners = Partners("sync", tuple(range(self.cluster.size)), collective=self.cluster.collective)
        self.reduction = Reduction(partners, links, engine, lambda: 0.0)

    def moves(self) -> list[str]:
        """What can happen here next."""
        at_rest = self.running is None and (self.begun or not self.takes_part)
        possible = {
            "begin": self.takes_part and not self.begun,
            "receive": bool(self.link),
            "work": self.running is not None or self.reduction.since < float("inf"),
            "leave": self.cluster.stopped and at_rest,
        }
        return [] if self.left else [move for move, can in possible.items() if can]

    def move(self, name: str) -> None:
        if name == "begin":
            self._begin()
        elif name == "receive":
            self._receive()
        elif name == "work":
            self._work()
        else:
            self.left = self.reduction.leave()
            assert not (self.left and self.link), "a rank takes in everything before it ends"

    def _begin(self) -> None:
        self.begun = True
        if self.cluster.collective:
            self.reduction.meet(self._sum_by_itself)
        else:
            self.reduction.begin(self._read, self._summed)

    def _receive(self) -> None:
        message, payload = self.link.popleft()
        if isinstance(message, m.RingPart):
            self.reduction.feed(message, payload)
        else:
            self.reduction.last_came()

    def _work(self) -> None:
        self.running = self.running or self.reduction.take().work
        try:
            next(self.running)
        except StopIteration:
            self.running = None

    def _read(self, into: Vector) -> Work[None]:
        into[:] = self.number
        yield

    def _summed(self, ended: Sum) -> Work[None]:
        self.cluster.summed[self.number] = ended.total.tolist()
        yield

    def _sum_by_itself(self, ended: Sum) -> Work[None]:
        """As on devices: it ends once all nodes have come to it."""
        assert not ended.total.size
        self.cluster.on_devices.add(self.number)
        while len(self.cluster.on_devices) < self.cluster.size:
            yield
        self.cluster.summed[self.number] = []


class Cluster:
    """Stage k of all nodes, and the ordered links between them."""

    def __init__(self, taking_part: list[bool], *, collective: bool) -> None:
        self.size = len(taking_part)
        self.collective = collective
        self.stopped = False
        self.on_devices: set[int] = set()
        self.summed: dict[int, list[float]] = {}
        self.nodes = [Node(self, number, takes_part) for number, takes_part in enumerate(taking_part)]

    def send(self, node: int, message: m.AnyMessage, payload: Payload | None = None) -> None:
        assert not self.nodes[node].left, "a message for a rank that has ended"
        if payload is not None:
            payload = Payload(payload.shape, payload.dtype, np.array(payload.data))
        self.nodes[node].link.append((message, payload))

    def run(self, choose: random.Random, stop_after: int) -> None:
        """Turns in any order; then all nodes in turn, until they have left."""
        for turn in range(stop_after + 30):
            self.stopped = turn >= stop_after
            if moves := [(node, name) for node in self.nodes for name in node.moves()]:
                node, name = choose.choice(moves)
                node.move(name)
        self.stopped = True
        for _ in range(PATIENCE):
            for node in self.nodes:
                for name in node.moves():
                    if name in node.moves():
                        node.move(name)


@given(st.lists(st.booleans(), min_size=2, max_size=5), st.booleans(), st.integers(0, 2**32), st.integers(0, 60))
@example([True, True], True, 0, 6)
def test_at_the_end_a_sum_on_devices_is_taken_by_all_nodes_or_by_none(
    taking_part: list[bool], collective: bool, seed: int, stop_after: int
) -> None:
    cluster = Cluster(taking_part, collective=collective)
    cluster.run(random.Random(seed), stop_after)
    assert all(node.left for node in cluster.nodes)
    size = len(taking_part)
    if collective:
        assert len(cluster.summed) == len(cluster.on_devices) == (size if all(taking_part) else 0)
    assert all(total == [sum(range(size))] * LENGTH for total in cluster.summed.values() if not collective)
    assert not cluster.summed or all(taking_part)
