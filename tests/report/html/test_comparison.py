"""Reports side by side."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.report.build import build_report
from lemix_hpc.report.html.comparison import compared


@pytest.fixture
def report(example_run: Path) -> dict[str, Any]:
    return build_report(example_run)


def test_figures_of_one_run_have_no_ratios(report: dict[str, Any]) -> None:
    rows = {row.name: row for row in compared([report])}
    assert rows["requests finished"].values == ["3"] and rows["requests finished"].ratios == [None]
    assert rows["response within 5 T0"].values == ["50.0 %"]
    assert "within the limit on ttft" not in rows


def test_ratios_are_to_the_first_run(report: dict[str, Any]) -> None:
    other = copy.deepcopy(report)
    other["serving"]["response_ms"]["p50"] = 3000.0
    other["training"]["loss_last"] = None
    other["serving"]["slo_ms"] = {"ttft": 0.5}
    rows = {row.name: row for row in compared([report, other])}
    assert rows["response p50, ms"].values == ["1,500", "3,000"]
    assert rows["response p50, ms"].ratios == [None, "2.00"]
    assert rows["loss, last tenth"].values == ["3.50", "-"] and rows["loss, last tenth"].ratios == [None, "-"]
    # Nobody can say how many times as much as nothing it is.
    assert rows["within the limit on ttft"].values == ["-", "50.0 %"]
    assert rows["within the limit on ttft"].ratios == [None, None]


def test_what_no_report_has_is_left_out(report: dict[str, Any]) -> None:
    del report["serving"]["tokens_per_stage_s"]
    assert "tokens served per stage-second" not in [row.name for row in compared([report])]
