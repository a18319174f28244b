"""What rank 0 says of a run in its log."""

import pytest

from lemix_hpc.records.schema import ClassFigures, Progress
from lemix_hpc.runtime.scheduler.progress_log import EVERY_S, ProgressLog

NO_TIMES: dict[str, float | None] = {"mean": None, "p50": None, "p95": None, "p99": None}


def at(seconds: float, served: int = 0, **given: object) -> Progress:
    return Progress("running", elapsed_s=seconds, received=served, requests=100, served=served, **given)  # type: ignore[arg-type]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_line_when_it_is_due_and_something_has_happened(capsys: pytest.CaptureFixture[str]) -> None:
    log = ProgressLog()
    log.tell(at(0.0))
    assert said(capsys) == [], "nothing has been done"
    for step in range(1, 8 * int(EVERY_S) + 1):
        log.tell(at(step / 4, served=step, attainment=[(0.05, 0.5), (0.25, 0.975)], trained=2, steps=1, loss=3.25))
    assert said(capsys) == [
        "10 s: served 40 of 100, 50.0% within 50 ms, 97.5% within 250 ms, trained 2 micro-batches in 1 steps, loss 3.2500",
        "20 s: served 80 of 100, 50.0% within 50 ms, 97.5% within 250 ms, trained 2 micro-batches in 1 steps, loss 3.2500",
    ]
    log.tell(at(40.0, served=90))
    log.tell(at(60.0, served=90))
    assert said(capsys) == ["40 s: served 90 of 100"], "nothing has happened since"


def test_the_last_word_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = ProgressLog()
    log.tell(at(10.0, served=1))
    log.tell(Progress("finished", elapsed_s=11.0, received=2, requests=2, served=2))
    assert said(capsys)[-1] == "11 s: served 2 of 2"


def test_limits_in_milliseconds_go_first(capsys: pytest.CaptureFixture[str]) -> None:
    shares: dict[str, float | None] = {"ttft": 0.99, "tpot": 0.95, "all": 0.94}
    interactive = ClassFigures(5, 5, NO_TIMES, NO_TIMES, NO_TIMES, NO_TIMES, shares, None)
    ProgressLog().tell(at(10.0, served=5, classes={"interactive": interactive}, attainment=[(0.05, 0.5)]))
    assert said(capsys) == ["10 s: served 5 of 100, 94.0% within the limits"]
