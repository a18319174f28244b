"""How the state of a run, a panel of it, and a profiling job's result look in the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.table import Table

from lemix_hpc.cli.show import print_wide, progress_line, progress_panel, render_report
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.policy.drift import Drift
from lemix_hpc.policy.stragglers import Straggler
from lemix_hpc.records.schema import Progress, RunFacts
from lemix_hpc.records.writer import Recorder
from lemix_hpc.report.build import build_report
from lemix_hpc.report.table import render

RUNNING = Progress("running", elapsed_s=2.0)


def printed(shown: RenderableType, width: int = 100) -> list[str]:
    """The lines that it takes in a terminal of this width."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(shown, crop=False)  # as the commands do
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def changed(**facts: Any) -> Progress:
    return Progress("running", elapsed_s=2.0, **facts)


# The line


def test_a_run_that_tells_nothing_yet_has_its_state_alone() -> None:
    assert progress_line("PENDING", None) == "pending"
    assert progress_line("RUNNING", Progress("starting", message="building the engines")) == (
        "running (starting), 0.0 s, building the engines"
    )


BROKEN = "more steps skipped: their gradients are not finite"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"requests": 60, "served": 7}, "served 7/60"),
        ({"trained": 3, "training_total": 8, "steps": 1}, "trained 3/8 in 1 steps"),
        ({"trained": 3, "steps": 1}, "trained 3 in 1 steps"),
        ({"training_total": 8}, "trained 0/8 in 0 steps"),
        ({"loss": 2.5}, "loss 2.5000"),
        ({"loss": 0.0}, "loss 0.0000"),
        ({"skipped": 2}, f"2 {BROKEN}"),
        ({"skipped": 1, "training_stopped": True}, f"1 {BROKEN}; training has stopped (training.on_nan)"),
        ({"lost_losses": 3}, "the loss of 3 micro-batches is not finite"),
        ({"response_ms_p50": 38.04}, "response p50 38.0 ms"),
        ({"address": "http://host:8000"}, "OpenAI API at http://host:8000/v1"),
        ({"measured": 3, "to_measure": 20, "left_s": 61.4}, "3/20 points, 61 s left"),
        ({"left_s": 0.2}, "0 s left"),
        ({"drift": [Drift(1, "serve", 2.96, since_s=1.0)]}, "drift: stage 1 serve takes 3 x its predicted time"),
        ({"stragglers": [Straggler(3, 1, 1.62, since_s=60.0)]}, "slow: node 3 stage 1, 1.6 x the others' time"),
    ],
)
def test_each_fact_that_is_there_is_told(facts: dict[str, Any], told: str) -> None:
    assert progress_line("RUNNING", changed(**facts)) == f"running (running), 2.0 s, {told}"


def test_what_is_not_there_is_not_told() -> None:
    assert progress_line("RUNNING", RUNNING) == "running (running), 2.0 s"


def test_the_address_of_a_run_that_is_over_is_not_told() -> None:
    over = Progress("finished", elapsed_s=2.0, address="http://host:8000")
    assert progress_line("COMPLETED", over) == "completed (finished), 2.0 s"


# The panel


@pytest.mark.parametrize("progress", [None, RUNNING])
def test_without_stages_the_panel_is_the_line(progress: Progress | None) -> None:
    assert progress_panel("RUNNING", progress) == progress_line("RUNNING", progress)


def test_the_panel_has_a_bar_for_every_stage() -> None:
    busy = changed(stage_busy=[[0.5, 1.0], [0.0, 0.074]])
    line, *bars = printed(progress_panel("RUNNING", busy))
    assert line == progress_line("RUNNING", busy)
    assert [(bar[:14], bar.split()[-1]) for bar in bars] == [
        ("node 0 stage 0", "50%"),
        ("node 0 stage 1", "100%"),
        ("node 1 stage 0", "0%"),
        ("node 1 stage 1", "7%"),
    ]
    assert [bar.count("━") for bar in bars] == [15, 30, 0, 2], "of 30"


def test_a_profiling_job_has_one_bar_of_its_points() -> None:
    line, bar = printed(progress_panel("RUNNING", changed(measured=5, to_measure=20)))
    assert line.endswith("5/20 points")
    assert bar == 15 * "━", "of 60"


# Reports

FITTED = """\
schema: 1
form: affine-quadratic
hardware: some device
model: some model
dtype: float32
layers: 4
stages:
  - forward: {a: 0.1, b: 0.0, c: 0.0}
    backward: {a: 0.2, b: 0.0, c: 0.0}
    residuals:
      forward: {points: 14, folds: 5, median_rel_error: 0.0123, p95_rel_error: 0.05, max_rel_error: 0.25}
      backward: {points: 8, folds: 5, median_rel_error: 0.02, p95_rel_error: 0.06, max_rel_error: 0.07}
  - forward: {a: 0.1, b: 0.0, c: 0.0}
provenance: {source: a test}
"""


@pytest.fixture
def profiled(tmp_path: Path) -> RunDir:
    """The directory of a profiling job that found the times of two stages, and how far off they are of the first."""
    run = RunDir(tmp_path)
    run.profile_order.write_text("{}")
    (tmp_path / "found.yaml").write_text(FITTED)
    return run


def test_the_report_of_a_run_is_the_table_of_its_figures(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.facts(RunFacts("pack", "emulated", 3, 2, [5], 0.5, 10.0, 0))
    recorder.close()
    report = build_report(tmp_path)
    assert printed(render_report(RunDir(tmp_path), report)) == printed(render(report))
    assert printed(render_report(RunDir(tmp_path), report))[0] == "pack  emulated engine · 3 nodes x 2 stages · 10.0 s"


def test_a_profiling_job_shows_how_well_its_times_hold(profiled: RunDir) -> None:
    found = {"coefficients": str(profiled.path / "found.yaml"), "points": 22, "seconds": 31, "warnings": []}
    table = printed(render_report(profiled, found | {"did_not_fit": 0}))
    assert table[0] == "some model, float32, on some device"
    rows = [line.replace("│", " ").split() for line in table if "%" in line and "error" not in line]
    assert rows == [
        ["0", "forward", "14", "1.2%", "5.0%", "25.0%"],
        ["0", "backward", "8", "2.0%", "6.0%", "7.0%"],
    ]
    assert table[-2] == "22 points in 31 s"


def test_a_profiling_job_tells_what_it_could_not_measure_and_warns(profiled: RunDir) -> None:
    found = {"coefficients": str(profiled.path / "found.yaml"), "points": 22, "seconds": 31}
    table = printed(render_report(profiled, found | {"did_not_fit": 2, "warnings": ["stage 1 is noisy"]}), width=40)
    assert "stage 1 is noisy" in table
    assert "22 points in 31 s, 2 did not fit into" in table
    assert table[-1] == found["coefficients"], "in one line, however narrow the terminal"


def test_a_table_is_as_wide_as_it_must_be(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(*(f"a long column {number}" for number in range(9)))
    table.add_row(*["x" * 30] * 9)
    print_wide(table)
    assert capsys.readouterr().out.count("x" * 30) == 9
