"""The sum over nodes, with every order in which messages can arrive. The same over MPI is in test_across_nodes.py."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.engines.protocol import Vector
from lemix_hpc.runtime.stage.ring_allreduce import Ring, RingChunk


@dataclass
class Node:
    """A node with its contributions to all rounds, and the ordered link that leads to it."""

    ring: Ring
    contributions: list[Vector]
    link: deque[RingChunk] = field(default_factory=deque)
    totals: list[Vector] = field(default_factory=list)
    begun: int = 0

    def moves(self) -> list[str]:
        """What can happen here next."""
        possible = {
            "arrive": bool(self.link),
            "advance": self.ring.ready,
            "begin": not self.ring.open and self.begun < len(self.contributions),
            "take": self.ring.complete,
        }
        return [move for move, can in possible.items() if can]


def make_nodes(size: int, length: int, rounds: int, part: int) -> list[Node]:
    random = np.random.default_rng(size * 1000 + length)
    return [
        Node(
            Ring(position, size, part=part),
            [random.standard_normal(length).astype(np.float32) for _ in range(rounds)],
        )
        for position in range(size)
    ]


def move(nodes: list[Node], at: int, name: str) -> None:
    node, following = nodes[at], nodes[(at + 1) % len(nodes)]
    if name == "arrive":
        node.ring.feed(node.link.popleft())
    elif name == "advance":
        part = node.ring.advance()
        if part is not None:
            following.link.append(RingChunk(part.round, part.index, part.hops, part.values.copy()))
    elif name == "begin":
        node.ring.begin(node.contributions[node.begun])
        node.begun += 1
    else:
        node.totals.append(node.ring.take())


def run(nodes: list[Node], choose: st.DataObject | None) -> None:
    while moves := [(at, name) for at, node in enumerate(nodes) for name in node.moves()]:
        move(nodes, *(moves[0] if choose is None else choose.draw(st.sampled_from(moves))))


def in_order(contributions: list[Vector]) -> Vector:
    total = contributions[0].copy()
    for own in contributions[1:]:
        total += own
    return total


@given(st.integers(1, 5), st.integers(0, 23), st.integers(1, 3), st.integers(1, 9), st.data())
def test_all_nodes_get_the_very_same_sum_in_any_order_of_events(
    size: int, length: int, rounds: int, part: int, data: st.DataObject
) -> None:
    nodes = make_nodes(size, length, rounds, part)
    run(nodes, data)
    for number in range(rounds):
        wanted = in_order([node.contributions[number] for node in nodes])
        for node in nodes:
            assert node.totals[number].tobytes() == wanted.tobytes()
    assert not any(node.link for node in nodes)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 7))
def test_what_a_node_gave_is_left_as_it_was(size: int, length: int, part: int) -> None:
    nodes = make_nodes(size, length, rounds=2, part=part)
    before = [own.copy() for node in nodes for own in node.contributions]
    run(nodes, None)
    after = [own for node in nodes for own in node.contributions]
    assert all(map(np.array_equal, before, after))


def test_how_the_vector_is_cut_changes_no_bit() -> None:
    totals = []
    for part in (3, 1000):
        nodes = make_nodes(size=5, length=50, rounds=1, part=part)
        run(nodes, None)
        totals.append(nodes[2].totals[0].tobytes())
    assert totals[0] == totals[1]


def test_a_round_ends_only_when_every_node_has_begun_it_even_with_nothing_to_sum() -> None:
    nodes = make_nodes(size=3, length=0, rounds=1, part=4)
    late = nodes[1]
    late.contributions, waiting = [], late.contributions
    run(nodes, None)
    assert not any(node.totals for node in nodes)
    late.contributions = waiting
    run(nodes, None)
    assert all(len(node.totals) == 1 for node in nodes)


def test_an_early_part_waits_for_its_round() -> None:
    ring = Ring(position=1, size=2, part=8)
    ring.feed(RingChunk(0, 0, 1, np.ones(3, dtype=np.float32)))
    assert not ring.ready
    ring.begin(np.full(3, 2.0, dtype=np.float32))
    sent = ring.advance()
    assert sent is not None
    assert (sent.hops, sent.values.tolist()) == (2, [3.0, 3.0, 3.0])
    assert ring.take().tolist() == [3.0, 3.0, 3.0]


def test_rounds_do_not_overlap_on_a_node() -> None:
    ring = Ring(position=0, size=2)
    ring.begin(np.zeros(1, dtype=np.float32))
    with pytest.raises(ValueError, match="round 0 has not ended"):
        ring.begin(np.zeros(1, dtype=np.float32))
    with pytest.raises(ValueError, match="no total yet"):
        ring.take()
