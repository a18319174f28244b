"""Whether a file system has room for a run."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.place import check_place
from lemix_hpc.launch.room import shortage
from tests.inputs.files import LLAMA

GB = 1_000_000_000
RECORDS = {"serving": {"source": {"kind": "poisson", "rate": 100, "requests": 100_000}}}
LARGE = LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
TRAINING = {
    "engine": {"kind": "torch"},
    "model": {"config": LARGE},
    "training": {"data": {"path": "text.jsonl"}, "checkpoint": {"keep": 1}},
}


def disk(monkeypatch: pytest.MonkeyPatch, nbytes: int, files: int = 1 << 20, **more: int) -> None:
    fields = {"f_flag": 0, "f_frsize": 1, "f_blocks": 1 << 50, "f_files": 1 << 30}
    fields |= {"f_bfree": nbytes, "f_bavail": nbytes, "f_ffree": files, "f_favail": files} | more
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**fields))


@pytest.mark.parametrize(
    ("recipe", "enough", "said"),
    [
        # 100,000 requests of 5,300 bytes, and what is not compressed yet.
        (RECORDS, 0.8, "500 MB left for you, and the run will write some 748 MB of records"),
        # Two times 12 bytes for each of 6.5 billion weights.
        (
            TRAINING,
            170.0,
            r"500 MB left for you, and the run will write some 17 MB of records and 16\d.\d GB of checkpoints\. Make room",
        ),
    ],
)
def test_a_run_that_will_not_fit_is_told(
    recipe: dict[str, object], enough: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Recipe.model_validate(recipe)
    disk(monkeypatch, int(enough * GB))
    assert shortage(checked, tmp_path / "runs") is None
    disk(monkeypatch, GB // 2)
    assert re.search(f"run directory, {tmp_path}/runs, has {said}", shortage(checked, tmp_path / "runs") or "")
    disk(monkeypatch, 0, f_blocks=0)
    assert shortage(checked, tmp_path / "runs") is None, "it does not count"
    disk(monkeypatch, 1 << 50, files=20)
    assert "has room for 20 more files, and the run will make 1" in (shortage(checked, tmp_path) or "")


def test_a_file_system_that_does_not_answer_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(_: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "statvfs", stale)
    assert shortage(Recipe.model_validate(RECORDS), tmp_path) is None


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EDQUOT, "make room, or choose another"),
        (errno.EIO, "choose another"),
        # A run would begin all the same.
        (errno.EOPNOTSUPP, None),
        (errno.ENOSPC, None),
    ],
)
def test_a_quota_shows_when_something_is_written(
    number: int, way_out: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    if way_out is None:
        check_place("toy", tmp_path / "run", for_slurm=False)
    else:
        with pytest.raises(UserError, match=f"run: the run directory cannot be made: {os.strerror(number)}; {way_out}"):
            check_place("toy", tmp_path / "run", for_slurm=False)
    assert list(tmp_path.iterdir()) == []
