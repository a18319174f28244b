"""Figures of each class of requests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import RunFacts, ServedTask, Span
from lemix_hpc.report.build import build_report
from lemix_hpc.report.classes import class_figures, of_class

RunBuilder = Callable[..., Path]


def served(id: str, service: ServiceClass, arrival: float, finished: float) -> ServedTask:
    """Three tokens, the first one a second before the last."""
    return ServedTask(
        id, "finished", arrival, 4, first_token=finished - 1.0, finished=finished, output=[1, 2, 3], service=service
    )


INTERACTIVE = [served("a", "interactive", 0.0, 2.0), served("b", "interactive", 1.0, 5.0)]
BATCH = [served("c", "batch", 0.0, 50.0), ServedTask("d", "lost", 2.0, 4, service="batch")]
LIMITS = {"ttft": 1500.0, "tpot": 600.0}


def test_each_class_has_its_own_limits() -> None:
    quick = class_figures(INTERACTIVE, [0.5, 0.5], limits_ms=LIMITS, window_s=None)
    assert (quick.received, quick.finished) == (2, 2)
    assert quick.attainment == {"ttft": 0.5, "tpot": 1.0, "all": 0.5}
    assert quick.inter_token_ms["p99"] == 500.0 and quick.tokens_per_s == 6 / 5.0
    late = class_figures(BATCH, [], limits_ms=LIMITS, window_s=60.0)
    assert late.attainment == {"window": 0.5} and late.tokens_per_s == 3 / 50.0
    assert class_figures(BATCH, [], limits_ms=LIMITS, window_s=40.0).attainment == {"window": 0.0}


def test_limits_of_a_report_count_interactive_requests_only(write_run: RunBuilder) -> None:
    facts = RunFacts("x", "emulated", 1, 1, [1.0], 3.0, 50.0, 0, LIMITS, completion_window_s=60.0)
    spans = [Span(0, 0, task, "serve", end - 0.5, end, 0, 1) for task, end in (("a", 1.5), ("a", 2.0), ("c", 49.75))]
    serving = build_report(write_run(facts, spans, [*INTERACTIVE, *BATCH]))["serving"]
    assert serving["slo"] == {"1": 0.5} and serving["slo_ms"]["all"] == 0.5
    assert serving["received"] == 4
    classes = serving["classes"]
    assert [classes[name]["received"] for name in ("interactive", "batch")] == [2, 2]
    assert classes["interactive"]["inter_token_ms"]["p50"] == pytest.approx(500.0)
    assert classes["batch"]["inter_token_ms"]["p50"] == pytest.approx(750.0)
    assert [task.id for task in of_class([*INTERACTIVE, *BATCH], "batch")] == ["c", "d"]
