"""What is looked at before a run directory is made: the same is refused, and nothing is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.place import check_place
from lemix_hpc.launch.rundir import create_run_dir
from tests.inputs.permissions import bound_by_modes

ROOMY = {
    "f_flag": 0,
    "f_frsize": 1,
    "f_blocks": 9,
    "f_bfree": 9,
    "f_bavail": 9,
    "f_files": 9,
    "f_ffree": 9,
    "f_favail": 9,
}


def _file(directory: Path) -> Path:
    (directory / "file").touch()
    return directory / "file" / "run"


def _dangling(directory: Path) -> Path:
    (directory / "link").symlink_to("nothing")
    return directory / "link"


def _below_dangling(directory: Path) -> Path:
    return _dangling(directory) / "run"


def _read_only(directory: Path) -> Path:
    (directory / "closed").mkdir(mode=0o500)
    return directory / "closed" / "deep" / "run"


def _empty_but_read_only(directory: Path) -> Path:
    (directory / "empty").mkdir(mode=0o500)
    return directory / "empty"


def _long(directory: Path) -> Path:
    return directory / ("x" * 300) / "run"


@pytest.mark.parametrize("make", [_file, _dangling, _below_dangling, _read_only, _empty_but_read_only, _long])
def test_what_a_start_refuses_is_refused_without_making_anything(
    make: Callable[[Path], Path], recipe: Recipe, tmp_path: Path
) -> None:
    place = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with bound_by_modes():
        with pytest.raises(UserError) as looked:
            check_place("toy", place, for_slurm=False)
        assert sorted(tmp_path.rglob("*")) == before
        with pytest.raises(UserError) as tried:
            create_run_dir(recipe, place)
    assert str(looked.value) == str(tried.value)


@pytest.mark.parametrize("make", [lambda d: d / "new", lambda d: d / "deep" / "new", lambda d: d])
def test_what_can_be_made_is_not_refused(make: Callable[[Path], Path], recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    place = make(tmp_path / "place")
    with bound_by_modes():
        check_place("toy", place, for_slurm=False)
        assert list((tmp_path / "place").iterdir()) == []
        create_run_dir(recipe, place)


@pytest.mark.parametrize(
    ("disk", "user", "reason"),
    [
        ({"f_bavail": 0}, 1000, "No space left on device; make room"),
        ({"f_bavail": 0}, 0, None),
        ({"f_bfree": 0}, 0, "No space left on device; make room"),
        ({"f_favail": 0}, 1000, "No space left on device; make room"),
        ({"f_blocks": 0, "f_bavail": 0, "f_bfree": 0}, 1000, None),
        ({"f_flag": os.ST_RDONLY}, 0, "Read-only file system"),
    ],
)
def test_room_is_what_the_file_system_leaves_to_the_user(
    disk: dict[str, int], user: int, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**ROOMY | disk))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    looks: Any = lambda: check_place("toy", tmp_path / "run", for_slurm=False)  # noqa: E731
    if reason is None:
        looks()
        return
    with pytest.raises(UserError, match=f"run: the run directory cannot be made: {reason}"):
        looks()


def test_an_empty_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UserError, match="Operation not permitted"):
        check_place("toy", tmp_path, for_slurm=False)


def test_where_runs_go_by_default_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEMIX_RUNS", str(tmp_path / "file" / "runs"))
    with pytest.raises(UserError, match="Not a directory"):
        check_place("toy", None, for_slurm=False)
    monkeypatch.setenv("LEMIX_RUNS", str(tmp_path / "runs%j"))
    with pytest.raises(UserError, match="has a %"):
        check_place("toy", None, for_slurm=True)
