"""Who is silent for too long is named, and nobody else. Signs of life are answered with the time."""

import pytest

from lemix_hpc.runtime.scheduler.watch import Watch
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox
from lemix_hpc.runtime.transport.rank_layout import Layout


class World:
    """A clock, and a mailbox that keeps what is sent."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sent: list[tuple[int, Inbox, m.AnyMessage]] = []
        self.watch = Watch(8.0, lambda: self.time, Layout(1, 3), self)  # type: ignore[arg-type]

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage) -> None:
        self.sent.append((rank, inbox, message))

    def heard(self, rank: int) -> None:
        self.watch.heard(m.Alive(rank, 1000.0 + self.time))


def test_the_rank_that_was_silent_longest_is_named() -> None:
    world = World()
    for time in range(20):
        world.time = float(time)
        world.heard(1)
        if time <= 5:
            world.heard(2)
        if time <= 4:
            world.heard(3)
        if time <= 12:
            world.watch.check()
        elif time == 13:
            with pytest.raises(TimeoutError, match=r"rank 3 \(node 0, stage 2\) has not been heard of for 8 s"):
                world.watch.check()


def test_a_scheduler_that_was_away_blames_nobody() -> None:
    world = World()
    world.heard(1)
    for _ in range(3):
        world.time += 1000.0
        world.watch.check()
    for _ in range(8):
        world.time += 1.0
        world.watch.check()
    world.time += 1.0
    with pytest.raises(TimeoutError):
        world.watch.check()


def test_who_was_never_heard_of_or_has_left_is_not_missed() -> None:
    world = World()
    world.heard(1)
    world.watch.forget(1)
    world.watch.forget(2)
    for _ in range(20):
        world.time += 1.0
        world.watch.check()


def test_a_sign_of_life_is_answered_with_the_time() -> None:
    world = World()
    world.time = 5.0
    world.heard(2)
    assert world.sent == [(2, Inbox.CLOCK, m.TimeIs(asked=1005.0, time=5.0))]
