import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.place import runs_root
from lemix_hpc.launch.registry import find_run, known_runs, register, registry_dir
from lemix_hpc.launch.rundir import RunDir, RunRecord, create_run_dir
from lemix_hpc.launch.states import run_state


def record(run: RunDir, created: float | None = None, **given: Any) -> RunRecord:
    facts: dict[str, Any] = dict.fromkeys(("host", "user", "version"), "x")
    return RunRecord(
        id=run.id, cluster="local", created=created or time.time(), command=["lemix"], world_size=3, **facts, **given
    )


def make(recipe: Recipe, out: Path | None = None, created: float | None = None) -> RunDir:
    run = create_run_dir(recipe, out)
    run.write_record(record(run, created))
    register(run)
    return run


def test_a_run_lies_below_the_runs_directory_with_its_recipe(recipe: Recipe) -> None:
    run = create_run_dir(recipe, None)
    assert run.path.parent == runs_root()
    assert re.fullmatch(r"toy-\d{8}-\d{6}-[0-9a-f]{4}", run.id)
    assert load_recipe(run.recipe) == recipe


def test_record_is_read_back(recipe: Recipe) -> None:
    run = create_run_dir(recipe, None)
    written = record(run, pid=3, pid_started=4)
    run.write_record(written)
    assert run.read_record() == written


def test_out_may_be_empty_or_absent_but_not_in_use(recipe: Recipe, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert create_run_dir(recipe, empty).path == empty
    assert create_run_dir(recipe, tmp_path / "deep" / "new").recipe.exists()
    with pytest.raises(UserError, match="is not an empty directory"):
        create_run_dir(recipe, empty)


def test_a_directory_that_cannot_be_made_is_the_users_matter(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made: Not a directory; choose another with --out"):
        create_run_dir(recipe, tmp_path / "file" / "run")


def test_runs_from_elsewhere_are_known_oldest_first(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make(recipe, created=2000.0)
    old = make(recipe, tmp_path / "own", created=1000.0)
    monkeypatch.setenv("LEMIX_RUNS", str(tmp_path / "other"))
    assert known_runs() == [old, new]


def test_deleted_runs_are_forgotten(recipe: Recipe, tmp_path: Path) -> None:
    kept, gone = make(recipe), make(recipe, tmp_path / "gone")
    shutil.rmtree(gone.path)
    assert known_runs() == [kept]
    assert len(list(registry_dir().iterdir())) == 1


def test_runs_on_a_file_system_that_is_not_here_stay_listed(recipe: Recipe, tmp_path: Path) -> None:
    run = make(recipe, tmp_path / "scratch" / "run")
    (tmp_path / "scratch").rename(tmp_path / "unmounted")
    assert known_runs() == []
    (tmp_path / "unmounted").rename(tmp_path / "scratch")
    assert known_runs() == [run]


def test_a_run_of_another_host_is_judged_by_its_files(recipe: Recipe) -> None:
    run = make(recipe)
    elsewhere = msgspec.structs.replace(run.read_record(), host="elsewhere", pid=os.getpid(), pid_started=1)
    assert run_state(run, elsewhere) == "UNKNOWN"
    run.report.touch()
    assert run_state(run, elsewhere) == "COMPLETED"


def test_two_runs_with_one_name_are_both_known(recipe: Recipe, tmp_path: Path) -> None:
    runs = [make(recipe, tmp_path / "a" / "run"), make(recipe, tmp_path / "b" / "run")]
    assert sorted(run.path for run in known_runs()) == sorted(run.path for run in runs)
    with pytest.raises(UserError, match="several runs match"):
        find_run("run")


def test_a_run_is_found_by_id_prefix_and_path(recipe: Recipe, tmp_path: Path) -> None:
    run = make(recipe, tmp_path / "alpha")
    other = make(recipe, tmp_path / "alphabet")
    assert find_run("alpha") == run
    assert find_run("alphab") == other
    assert find_run(str(run.path)) == run
    with pytest.raises(UserError, match="no run has this id"):
        find_run("beta")


def test_a_run_is_found_by_its_job_its_recipe_and_as_the_last(recipe: Recipe, tmp_path: Path) -> None:
    old, new, other = (
        make(recipe, tmp_path / name, created=created)
        for name, created in (("toy-20261101-101500-ab12", 1.0), ("toy-20261102-101500-ab12", 2.0), ("toys", 3.0))
    )
    old.write_record(msgspec.structs.replace(old.read_record(), job="4711"))
    new.successor.write_text("4712_3\n")
    assert find_run("last") == other
    assert find_run("toy") == new, "the newest of the recipe, though others begin so"
    assert find_run("toy-20261101") == old and find_run("toys") == other
    assert find_run("4711") == old and find_run("4712_3") == new
    with pytest.raises(UserError, match="several runs match"):
        find_run("to")
    with pytest.raises(UserError, match="no run has this id"):
        find_run("4713")


def test_a_path_with_dots_is_no_second_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LEMIX_RUNS", "../runs")
    run = make(recipe)
    assert run.path.parent == tmp_path / "runs"
    [known] = known_runs()
    assert known == run == find_run(run.id) == find_run("last")
    (tmp_path / "link").symlink_to("runs")
    monkeypatch.setenv("LEMIX_RUNS", "../link")
    assert known_runs() == [run]
