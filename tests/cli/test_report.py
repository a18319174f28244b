"""`lemix report --html` and `--png`; the table is tested with what is printed of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import msgspec
import pytest

from lemix_hpc.launch.rundir import RunDir, RunRecord
from tests.cli.conftest import Command
from tests.records.conftest import example_run, write_run

__all__ = ["example_run", "write_run"]
RECORD = RunRecord("example", "slurm", 0.0, ["lemix"], "login1", "user", "0", 0, job="4711")


@pytest.fixture
def run(example_run: Path) -> Path:
    """The example as a run that has ended, in a directory that is not that of the command."""
    RunDir(example_run).write_record(RECORD)
    (example_run / "recipe.yaml").write_text("model: {path: /models/llama-3.1-8b}\n")
    moved = example_run / "first"
    moved.mkdir()
    for path in example_run.iterdir():
        if path.is_file():
            path.rename(moved / path.name)
    return moved


def test_a_page_tells_what_run_it_is_of(inside: Command, run: Path, tmp_path: Path) -> None:
    done = inside("report", run, "--html", "page.html")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("Wrote page.html, 1.4 MB\n")
    page = (tmp_path / "page.html").read_text()
    for told in (
        "<h1>first</h1>",
        "/models/llama-3.1-8b",
        "least-completion, emulated engine",
        "job 4711, from login1",
    ):
        assert told in page


def test_runs_of_one_name_are_told_apart(inside: Command, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "first"
    shutil.copytree(run, other)
    (other / "recipe.yaml").write_text("model: [")
    assert inside("report", run, other, "--html", "page.html").returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert f"<h2>{run}</h2>" in page and f"<h2>{other}</h2>" in page


def test_mistakes(inside: Command, run: Path) -> None:
    for arguments, told in (
        ([run, run], "several runs are compared in figures: give --html FILE or --png DIR, or one run"),
        ([run, run, "--html", "page.html"], "first: is there twice; a run is compared with others"),
        ([run, "--html", "page.html", "--json"], "--json goes with neither --html nor --png"),
        ([run, "--html", "nowhere/page.html"], "nowhere/page.html: cannot be written: No such file or directory"),
    ):
        done = inside("report", *arguments)
        assert (done.returncode, done.stderr) == (2, told + "\n")


def test_pictures_beside_a_page(inside: Command, run: Path, tmp_path: Path) -> None:
    done = inside("report", run, "--html", "page.html", "--png", "new/pictures")
    assert (done.returncode, done.stdout) == (0, "")
    pictures = {path.name for path in (tmp_path / "new" / "pictures").iterdir()}
    assert done.stderr.endswith(f"Wrote page.html, 1.4 MB\nWrote {len(pictures)} pictures to new/pictures\n")
    assert {"stages.png", "latencies.png", "waits.png"} <= pictures


def test_pictures_need_a_directory_and_matplotlib(
    inside: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    done = inside("report", run, "--png", "file")
    assert (done.returncode, done.stderr) == (2, "file: cannot be written: File exists\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = inside("report", run, "--png", "pictures")
    assert done.returncode == 2 and "pip install 'lemix-hpc[plots]'" in done.stderr


def test_a_profiling_job_has_no_page(inside: Command, run: Path) -> None:
    (run / "profile.json").write_text("{}")
    done = inside("report", run, "--html", "page.html")
    assert done.returncode == 2 and "first is a profiling job, of which there are no figures" in done.stderr


def test_a_run_that_goes_on_says_so(inside: Command, run: Path, tmp_path: Path) -> None:
    attempt = run / "attempts" / "0"
    attempt.mkdir(parents=True)
    (attempt / "start.json").write_bytes(msgspec.json.encode({"time": 0.0, "host": "login1"}))
    for name in ("facts.json", "tasks.jsonl", "spans.jsonl"):
        shutil.copy(run / name, attempt / name)
    assert inside("report", run, "--html", "page.html").returncode == 0
    assert "not complete; this is what it has done so far" in (tmp_path / "page.html").read_text()


def test_the_table_does_without_the_plotting_library(
    inside: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "bokeh" or "report.html" in name]:
        monkeypatch.delitem(sys.modules, name)
    assert inside("report", run).returncode == 0
    assert "bokeh" not in sys.modules


def test_a_comparison_is_drawn_and_not_beside_runs(inside: Command, run: Path, tmp_path: Path) -> None:
    rows = [
        {"policy": policy, "rate": rate, "training_share": None, "runs": 1, "means": {"throughput": 1.0}, "ratios": {}}
        for policy in ("pack", "fill")
        for rate in (1.0, 2.0)
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"baseline": "pack", "rows": rows, "runs": []}))
    (tmp_path / "one.json").write_text(json.dumps({"baseline": "pack", "rows": rows[:1], "runs": []}))
    done = inside("report", "sweep.json", "--html", "page.html", "--png", "pictures")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Tasks per second" in (tmp_path / "page.html").read_text()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["sweep-0-0.png"]
    for arguments, told in (
        (["sweep.json"], "sweep.json: a comparison is drawn; give --html FILE or --png DIR"),
        (["sweep.json", run, "--html", "other.html"], "sweep.json is a comparison; give it without runs"),
        (
            ["one.json", "--png", "other"],
            "--png: one.json has one load only, of which there are no lines; compare several",
        ),
        (["sweep.json", "--png", "page.html"], "page.html: cannot be written: File exists"),
    ):
        refused = inside("report", *arguments)
        assert refused.returncode == 2 and refused.stderr.startswith(told), refused.stderr
