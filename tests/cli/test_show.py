"""How the report of a run and a profiling job's result look in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from rich.table import Table

from lemix_hpc.cli.show import parts_of, print_wide, render_report
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.records.schema import RunFacts
from lemix_hpc.records.writer import Recorder
from lemix_hpc.report.build import build_report
from lemix_hpc.report.table import render


def printed(shown: RenderableType, width: int = 100) -> list[str]:
    """The lines that it takes in a terminal of this width."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(shown, crop=False)  # as the commands do
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


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
    run = RunDir(tmp_path)
    assert printed(render_report(run, report)) == [run.id, *printed(render(report))]
    assert printed(render(report))[0] == "pack  emulated engine · 3 nodes x 2 stages · 10.0 s"
    run.recipe.write_text("model: {path: /models/llama}\n")
    run.write_record(RunRecord(run.id, "slurm", 1.0, ["lemix"], "login", "me", "0", 3, job="12"))
    assert printed(render_report(run, report))[0] == f"{run.id}  /models/llama  job 12"


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


def test_a_table_is_cut_between_its_columns_where_it_is_too_wide() -> None:
    table = Table("rate", "policy", *(f"figure {number}" for number in range(12)))
    for rate in (8, 16):
        table.add_row(str(rate), "least-completion", *(f"{rate * number:,}" for number in range(12)), end_section=True)
    parts = parts_of(table, ("rate", "policy"), 80)
    drawn = [printed(part, 80) for part in parts]
    assert len(parts) > 1 and all(len(line) <= 80 for lines in drawn for line in lines)
    headings = [column.header for part in parts for column in part.columns if column.header not in ("rate", "policy")]
    assert headings == [f"figure {number}" for number in range(12)], "each figure once, in order"
    assert all([column.header for column in part.columns][:2] == ["rate", "policy"] for part in parts)
    assert "176" in drawn[-1][-2 if drawn[-1][-1].startswith("└") else -1], "the rows go through all parts"
    assert len(parts_of(table, ("rate", "policy"), 300)) == 1
