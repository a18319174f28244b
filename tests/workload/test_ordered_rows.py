import heapq
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.workload import ordered_rows
from lemix_hpc.workload.ordered_rows import OrderedRows
from lemix_hpc.workload.tasks import ApiCall
from lemix_hpc.workload.traces import TraceRow


@given(st.lists(st.integers(0, 9)), st.integers(1, 7), st.integers(1, 4))
def test_rows_come_as_if_sorted_in_memory_each_time(times: list[int], most: int, block: int) -> None:
    rows = [TraceRow(float(time), number, 1) for number, time in enumerate(times)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered_rows, "SORTED", most)
        patch.setattr(ordered_rows, "BLOCK", block)
        ordered = OrderedRows(iter(rows))
        first = iter(ordered)
        next(first, None)
        assert list(ordered) == sorted(rows, key=lambda row: row.time), "equal times in their order"
        assert list(first) == list(ordered)[1:], "beside one another"


def test_a_trace_that_is_in_order_is_one_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered_rows, "SORTED", 10)
    merged: list[int] = []

    def merge(*stretches: Any, key: Any) -> Any:  # noqa: ARG001
        merged.append(len(stretches))
        return iter(())

    monkeypatch.setattr(heapq, "merge", merge)
    list(OrderedRows(TraceRow(number / 2, 1, 1) for number in range(100)))
    assert merged == [1]


def test_what_rows_bring_is_kept() -> None:
    call = ApiCall("POST", "/v1/completions", (("a", "b"),), b"{}", answers=3)
    rows = [TraceRow(1.0, 3, 4, "name", (1, 2, 3)), TraceRow(2.0, 5, 6, "other", call=call)]
    assert list(OrderedRows(rows)) == rows
