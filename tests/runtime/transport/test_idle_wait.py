import time
from dataclasses import dataclass, field

from lemix_hpc.runtime.transport.doorbell import Doorbell
from lemix_hpc.runtime.transport.idle_wait import ALONE_ON_HOST_S, BETWEEN_LOOKS_S, FIRST_SLEEP_S, Waiter


@dataclass
class Sleeper:
    """A bell that nobody rings; keeps how long was waited for it."""

    remote: bool = False
    waits: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


def test_sleeps_double_up_to_the_longest_and_start_afresh() -> None:
    bell = Sleeper(remote=True)
    waiter = Waiter(bell, spin=False)  # type: ignore[arg-type]
    for _ in range(7):
        waiter.idle()
    waiter.reset()
    waiter.idle()
    doubled = [FIRST_SLEEP_S * factor for factor in (1, 2, 4, 8, 16)]
    assert bell.waits == [*doubled, BETWEEN_LOOKS_S, BETWEEN_LOOKS_S, FIRST_SLEEP_S]


def test_where_everybody_can_ring_sleeps_are_long() -> None:
    bell = Sleeper()
    waiter = Waiter(bell, spin=False)  # type: ignore[arg-type]
    waiter.idle()
    assert bell.waits == [ALONE_ON_HOST_S]


def test_sleeps_end_in_time_for_what_is_due_and_for_mpi() -> None:
    bell = Sleeper()
    waiter = Waiter(bell, spin=False)  # type: ignore[arg-type]
    waiter.idle(at_most=0.0)
    waiter.idle(at_most=-1.0)
    assert bell.waits == []
    for _ in range(20):
        waiter.idle(in_transit=True)
    assert max(bell.waits) == BETWEEN_LOOKS_S
    waiter.idle(at_most=1e-5)
    assert bell.waits[-1] == 1e-5


def test_who_spins_never_sleeps() -> None:
    bell = Sleeper()
    Waiter(bell, spin=True).idle()  # type: ignore[arg-type]
    assert bell.waits == []


def test_a_ring_wakes_its_rank_and_no_other() -> None:
    bells = [Doorbell("test-doorbell", rank, {0, 1}) for rank in range(2)]
    bells[0].ring(1, 2)
    bells[0].ring(1, 3)
    bells[0].ring(7, 2)  # on another host: nothing to ring
    start = time.monotonic()
    bells[1].wait(60.0)
    assert time.monotonic() - start < 30.0
    start = time.monotonic()
    bells[1].wait(0.05)
    assert time.monotonic() - start >= 0.05, "both rings were taken"
    assert bells[1].rings == {2: 1, 3: 1}
    bells[1].ring(1, 3)
    assert bells[1].rings == {2: 1, 3: 2}, "it is awake"
    bells[1].wake()
    bells[1].wait(60.0)
    assert bells[1].rings[2] == 1
    bells[1].close()
    bells[0].ring(1, 2)  # it has left
    bells[0].close()
