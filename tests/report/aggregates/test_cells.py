"""Sums in cells of time, thinned samples, and percentiles of buckets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.report.aggregates.cells import Thinned, TimeCells, bucket, of_bucket, percentile_of_buckets

TIMES = st.floats(0, 1e5)


@given(st.lists(st.tuples(TIMES, st.floats(0, 100))), st.integers(2, 50))
def test_work_is_where_it_was(intervals: list[tuple[float, float]], most: int) -> None:
    cells: TimeCells[str] = TimeCells(most)
    for start, seconds in intervals:
        cells.cover("work", start, start + seconds)
    edges, sums = cells.edges, cells.sums("work")
    assert len(sums) == len(edges) - 1 <= most
    for low, high, found in zip(edges[:-1], edges[1:], sums, strict=True):
        real = sum(max(0.0, min(high, start + seconds) - max(low, start)) for start, seconds in intervals)
        assert found == pytest.approx(real, abs=1e-6)


@given(st.lists(TIMES), st.integers(2, 50))
def test_each_event_is_in_its_cell(times: list[float], most: int) -> None:
    cells: TimeCells[str] = TimeCells(most)
    for at in times:
        cells.count("events", at)
    counts, _ = np.histogram(times, cells.edges) if times else (np.empty(0), None)
    assert cells.sums("events").tolist() == counts.tolist()


def test_keys_have_cells_of_the_same_width() -> None:
    cells: TimeCells[str] = TimeCells(4, finest=1.0)
    cells.count("early", 0.5, 2.0)
    cells.count("late", 7.0)
    assert cells.names() == ["early", "late"]
    assert cells.edges.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert cells.sums("early").tolist() == [2.0, 0.0, 0.0, 0.0]
    assert cells.sums("never").tolist() == [0.0] * 4


@given(st.integers(0, 500), st.integers(1, 20))
def test_a_thinned_sample_is_evenly_spaced(count: int, most: int) -> None:
    thinned: Thinned[int] = Thinned(most)
    for number in range(count):
        thinned.add(number)
    assert thinned.kept == list(range(0, count, thinned.every))
    assert len(thinned.kept) <= most


@given(st.floats(1e-6, 1e6))
def test_a_bucket_is_close_to_its_values(value: float) -> None:
    assert of_bucket(bucket(value)) == pytest.approx(value, rel=0.011)


def test_percentiles_of_buckets() -> None:
    buckets = [bucket(value) for value in (0.1, 1.0, 10.0)]
    assert percentile_of_buckets(np.array([5.0, 4.0, 1.0]), buckets, 50) == pytest.approx(0.1, rel=0.011)
    assert percentile_of_buckets(np.array([5.0, 4.0, 1.0]), buckets, 99) == pytest.approx(10.0, rel=0.011)
    assert percentile_of_buckets(np.zeros(3), buckets, 50) is None
    assert bucket(0.0) == bucket(1e-6) and math.isfinite(of_bucket(bucket(0.0)))
