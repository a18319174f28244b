from itertools import product
from pathlib import Path

import pytest

from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import read_progress
from lemix_hpc.measure.measurement_rows import OtherRow, PassRow, read_rows
from lemix_hpc.measure.profiler import MESSAGE_BYTES
from lemix_hpc.profiling.points import Unfit, read_points
from tests.measure.conftest import SMALL, STAGES, RunJob


def key(row: PassRow) -> tuple[int, str, int, int, int]:
    return row.stage, row.kind, row.batch, row.length, row.context


def test_every_point_is_measured_once_and_read_back(run_job: RunJob, tmp_path: Path) -> None:
    run_job()
    rows = read_rows(tmp_path / "points.csv", PassRow)
    sizes = {(b, n) for b, n in product([1, 2, 4], [8, 16, 32]) if b * n <= 100}
    expected = {(s, k, b, n, 0) for s in range(STAGES) for k in ("forward", "backward") for b, n in sizes}
    expected |= {(s, "decode", b, 1, c) for s in range(STAGES) for b in (1, 2, 4) for c in (8, 16)}
    assert len(rows) == len(expected)
    assert set(map(key, rows)) == expected
    assert all(float(row.ms_low) <= float(row.ms) <= float(row.ms_high) for row in rows)
    assert all(row.peak_bytes > 0 and row.repeats >= SMALL.repeats for row in rows)
    table = read_points([tmp_path / "points.csv"])
    assert len(table.points) == len(rows)
    assert not table.per_layer


def test_everything_else_is_noted_once(run_job: RunJob, tmp_path: Path) -> None:
    run_job()
    run_job()
    rows = read_rows(tmp_path / "others.csv", OtherRow)
    kinds = [(row.stage, row.kind) for row in rows]
    for stage in range(STAGES):
        assert (
            kinds.count((stage, "at rest")) == kinds.count((stage, "step")) == kinds.count((stage, "host to host")) == 1
        )
    assert sorted(row.nbytes for row in rows if row.kind == "message") == sorted(MESSAGE_BYTES)
    assert next(float(row.ms) for row in rows if row.kind == "host to host") == 20.0


@pytest.mark.parametrize("dies_after", [0, 1, 7, 20])
def test_an_interrupted_job_goes_on_where_it_stopped(run_job: RunJob, tmp_path: Path, dies_after: int) -> None:
    first = run_job(dies_after=dies_after)
    with (tmp_path / "points.csv").open("a") as file:
        file.write("0,forward,1,8")  # the line that was being written
    second = run_job()
    assert len(first.asked) == dies_after
    assert len(set(first.asked) & set(second.asked)) == 0
    rows = read_rows(tmp_path / "points.csv", PassRow)
    assert len(rows) == len(set(map(key, rows))) == len(first.asked) + len(second.asked)
    assert run_job().asked == []


def test_what_does_not_fit_is_recorded_and_bounds_the_rest(run_job: RunJob, tmp_path: Path) -> None:
    loopback = run_job(room=40)
    rows = read_rows(tmp_path / "points.csv", PassRow)
    unfit = [row for row in rows if not row.fits]
    assert unfit
    for row in rows:
        assert row.fits == (row.batch * (row.length + row.context) <= 40)
    measured = {(s, p.kind, p.batch, p.length) for s, p in loopback.asked}
    # 4 x 16 tokens or 2 x 32 did not fit, whichever came first; what is larger than it was not even tried.
    for row in unfit:
        larger = {(row.stage, row.kind, 4, 32)} - {(row.stage, row.kind, row.batch, row.length)}
        assert not (larger & measured)
    assert {(u.stage, u.batch, u.length) for u in read_points([tmp_path / "points.csv"]).unfit} == {
        (row.stage, row.batch, row.length) for row in unfit
    }
    assert all(isinstance(u, Unfit) for u in read_points([tmp_path / "points.csv"]).unfit)
    assert run_job(room=40).asked == []


def test_points_beyond_the_time_budget_are_left_out(
    run_job: RunJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loopback = run_job(profile=SMALL.model_copy(update={"time_budget_s": 1e-9}))
    assert loopback.asked == []
    assert "profile.time_budget_s is spent; 44 points are left out" in capsys.readouterr().out
    assert read_rows(tmp_path / "points.csv", PassRow) == []
    assert len(run_job().asked) == 44


def test_progress_counts_points(run_job: RunJob, tmp_path: Path) -> None:
    run_job(dies_after=6)
    progress = read_progress(RunDir(tmp_path))
    assert progress is not None
    assert (progress.state, progress.measured) == ("running", 6)
    assert progress.to_measure > 6
    assert progress.left_s is not None and progress.left_s > 0
    assert "tokens" in progress.message
