"""A clock stays within what messages prove, whatever they were held up by, and never goes back."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.runtime.transport.run_clock import RunClock

BEAT_S = 5.0


@dataclass
class Host:
    """A host's clock, `rate` times as fast as the scheduler rank's, whose time is `real`."""

    rate: float
    real: float = 0.0

    def clock(self) -> float:
        return 12_345.0 + self.rate * self.real


delays = st.floats(0, 0.5)


@given(
    drift=st.floats(-2e-4, 2e-4),
    wrong=st.floats(-0.1, 0.1),
    ways=st.lists(st.tuples(delays, delays), min_size=1, max_size=50),
)
def test_the_error_is_no_more_than_the_last_round_trip_and_what_drifted_since(
    drift: float, wrong: float, ways: list[tuple[float, float]]
) -> None:
    host = Host(1.0 + drift)
    clock = RunClock(-host.clock() + wrong, host.clock)
    latest = clock.monotonic()
    for there, back in ways:
        host.real += BEAT_S
        asked = clock.own()
        host.real += there
        theirs = host.real
        host.real += back
        clock.told(asked, theirs, clock.own())
        assert clock.monotonic() >= latest
        latest = clock.monotonic()
        error = latest - host.real
        # Where it was ahead it may stand until the time that it has shown before.
        assert -(there + back) - 1e-3 <= error <= max(there + back + 1e-3, abs(wrong) + 1e-6)


def test_hosts_that_drift_apart_stay_together_for_a_day() -> None:
    """50 millionths are 4.3 s in a day. Messages take 0.1 ms there, and 0.1 to 20 ms back."""
    host = Host(1.0 + 50e-6)
    clock = RunClock(-host.clock(), host.clock)
    worst = 0.0
    for beat in range(86_400 // int(BEAT_S)):
        host.real += BEAT_S
        worst = max(worst, abs(clock.monotonic() - host.real))
        asked = clock.own()
        host.real += 1e-4
        theirs = host.real
        host.real += 1e-4 * (1 + beat * 7919 % 200)
        clock.told(asked, theirs, clock.own())
    assert worst < 50e-6 * BEAT_S + 5e-4


def test_what_a_slow_message_does_not_prove_changes_nothing() -> None:
    clock = RunClock(100.0)
    assert clock.told(asked=1.0, theirs=101.2, heard=1.5) == 0
    assert clock.told(asked=1.0, theirs=101.2, heard=1.1) > 0
