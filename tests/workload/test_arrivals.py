from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lemix_hpc.config.serving_section import GeneratedSource
from lemix_hpc.workload.arrivals import arrival_times, bursty, constant, daily, poisson

kinds = st.sampled_from(["poisson", "bursty", "constant", "daily"])
rates = st.floats(0.1, 50)
durations = st.floats(0.1, 100)


def joined(blocks: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.empty(0), *blocks])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(kinds, rates, durations, st.integers(1, 2000), st.integers(0, 99))
def test_arrivals_are_sorted_seeded_and_end_in_time(
    kind: Any, rate: float, duration: float, requests: int, seed: int
) -> None:
    source = GeneratedSource(kind=kind, rate=rate, duration_s=duration, requests=requests)
    times = joined(arrival_times(source, rng(seed)))
    assert len(times) <= requests
    assert (np.diff(times) >= 0).all() and (times >= 0).all() and (times < duration).all()
    assert np.array_equal(times, joined(arrival_times(source, rng(seed))))


@given(kinds, rates, durations, st.floats(1, 5), st.integers(1, 200))
def test_a_shorter_run_is_the_beginning_of_a_longer_one(
    kind: Any, rate: float, duration: float, longer: float, requests: int
) -> None:
    long = joined(arrival_times(GeneratedSource(kind=kind, rate=rate, duration_s=duration * longer), rng()))
    short = joined(arrival_times(GeneratedSource(kind=kind, rate=rate, duration_s=duration), rng()))
    few = joined(arrival_times(GeneratedSource(kind=kind, rate=rate, requests=requests), rng()))
    assert np.array_equal(short, long[: len(short)])
    shared = min(len(few), len(long))
    assert np.array_equal(few[:shared], long[:shared])


def test_poisson_has_its_rate_and_exponential_gaps() -> None:
    times = joined(poisson(20.0, 1000.0, None, rng()))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)


def test_a_day_has_its_mean_rate_and_is_quietest_at_the_start() -> None:
    times = joined(daily(10.0, 0.5, 1000.0, 4000.0, None, rng()))
    assert len(times) == pytest.approx(40_000, rel=0.03)
    phase = times % 1000.0
    night, noon = (phase < 100.0).sum() / 400.0, ((phase > 450.0) & (phase < 550.0)).sum() / 400.0
    assert night == pytest.approx(5.0, rel=0.1)
    assert noon == pytest.approx(15.0, rel=0.1)


@given(st.floats(0.5, 3), st.floats(0.5, 3), st.floats(1, 60))
def test_bursts_keep_to_their_phases(on_s: float, off_s: float, duration: float) -> None:
    times = joined(bursty(30.0, on_s, off_s, duration, None, rng()))
    assert (times % (on_s + off_s) <= on_s + 1e-9).all()


def test_bursts_have_the_rate_of_their_on_phase() -> None:
    times = joined(bursty(50.0, 1.0, 3.0, 400.0, None, rng()))
    assert len(times) == pytest.approx(50 * 100, rel=0.05)


def test_constant_starts_at_zero_and_excludes_the_end() -> None:
    assert joined(constant(4.0, 1.0, None)).tolist() == [0, 0.25, 0.5, 0.75]
    assert joined(constant(4.0, 1.1, None)).tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert joined(constant(4.0, 10.0, 2)).tolist() == [0, 0.25]


def test_requests_alone_end_the_process() -> None:
    for kind in ("poisson", "bursty", "constant"):
        assert len(joined(arrival_times(GeneratedSource(kind=kind, rate=3.0, requests=2500), rng()))) == 2500
