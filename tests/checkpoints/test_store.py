from pathlib import Path

import pytest

from lemix_hpc.checkpoints import store
from lemix_hpc.checkpoints.manifest import MANIFEST
from lemix_hpc.checkpoints.store import Checkpoint
from lemix_hpc.config.errors import UserError
from tests.checkpoints.conftest import MakeCheckpoint


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_checkpoints_are_listed_by_step_once_they_are_complete(
    make_checkpoint: MakeCheckpoint, directory: Path
) -> None:
    made = [make_checkpoint(step) for step in (9, 120, 10)]
    store.begin(directory, "under-way")
    (directory / "step-00000200").mkdir()
    paths = store.complete_paths(directory)
    assert [path.name for path in paths] == ["step-00000009", "step-00000010", "step-00000120"]
    assert Checkpoint.read(paths[-1]) == made[1]


def test_what_is_unfinished_goes_and_what_is_complete_stays(make_checkpoint: MakeCheckpoint, directory: Path) -> None:
    kept = make_checkpoint(3)
    (store.begin(directory, "under-way") / "part").write_text("half")
    (directory / "step-00000004").mkdir()
    store.remove_unfinished(directory)
    assert list(directory.iterdir()) == [kept.path]


def test_the_newest_stay(make_checkpoint: MakeCheckpoint, directory: Path) -> None:
    for step in (1, 2, 3, 4):
        make_checkpoint(step)
    assert [path.name[-1] for path in store.prune(directory, keep=2)] == ["1", "2"]
    assert [path.name[-1] for path in store.complete_paths(directory)] == ["3", "4"]
    assert store.prune(directory, keep=2) == []


def test_a_run_that_went_back_keeps_what_it_has_saved_since(make_checkpoint: MakeCheckpoint, directory: Path) -> None:
    make_checkpoint(9)
    again = make_checkpoint(7, created=2e9)
    assert store.newest_whole(directory) == (again, [])
    assert [path.name[-1] for path in store.prune(directory, keep=1)] == ["9"]


def test_a_checkpoint_after_the_same_step_takes_the_place_of_the_former(make_checkpoint: MakeCheckpoint) -> None:
    make_checkpoint(5, nodes=2)
    again = make_checkpoint(5)
    assert Checkpoint.read(again.path).manifest == again.manifest
    assert sorted(path.name for path in again.path.iterdir()) == [
        MANIFEST,
        "node-0-stage-0.safetensors",
        "node-0-stage-1.safetensors",
    ]


def test_whole_files_have_no_damage_and_every_flipped_byte_is_found(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(1)
    assert list(store.damage(checkpoint)) == []
    path = checkpoint.path / "node-0-stage-1.safetensors"
    for place in range(0, path.stat().st_size, 7):
        flip(path, place)
        [problem] = store.damage(checkpoint)
        assert str(path) in problem
        assert "checksum" in problem
        flip(path, place)
    path.write_bytes(path.read_bytes()[:-1])
    [problem] = store.damage(checkpoint)
    assert "bytes" in problem
    path.unlink()
    [problem] = store.damage(checkpoint)
    assert "No such file" in problem


def test_a_damaged_newest_one_is_named_and_the_one_before_is_taken(
    make_checkpoint: MakeCheckpoint, directory: Path
) -> None:
    whole, flipped, torn = (make_checkpoint(step) for step in (1, 2, 3))
    flip(flipped.path / "node-0-stage-0.safetensors", -1)
    (torn.path / MANIFEST).write_bytes((torn.path / MANIFEST).read_bytes()[:100])
    found, problems = store.newest_whole(directory)
    assert found == whole
    assert [str(torn.path) in problems[0], str(flipped.path) in problems[1]] == [True, True]
    store.remove(whole.path)
    assert store.newest_whole(directory)[0] is None


def test_a_directory_that_is_no_checkpoint_is_refused_with_the_way_out(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    with pytest.raises(UserError, match=r"no checkpoint.*RUN/checkpoints/step-"):
        Checkpoint.read(tmp_path)
    newer = make_checkpoint(1).path / MANIFEST
    newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(UserError, match="schema 2"):
        Checkpoint.read(newer.parent)
