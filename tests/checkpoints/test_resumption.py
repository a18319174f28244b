from pathlib import Path

import numpy as np
import pytest

from lemix_hpc.checkpoints.resumption import NodeStart, Resumption, check_model, find_checkpoint
from lemix_hpc.checkpoints.stage_state import FIRST_MOMENT
from lemix_hpc.config.errors import UserError
from tests.checkpoints.conftest import MakeCheckpoint, tensors


def test_every_tensor_is_read_by_name_whatever_file_it_is_in(make_checkpoint: MakeCheckpoint) -> None:
    state = Resumption(make_checkpoint(4)).state(0)
    assert set(state.weights) == {"a.weight", "b.bias", "c.weight"}
    for stage in (0, 1):
        for name, values in tensors(stage, 4).items():
            assert np.array_equal(state.read(name, values.shape), values)
    assert (state.updates, state.schedule) == (4, 4)


def test_more_nodes_than_were_saved_start_from_those_that_were(make_checkpoint: MakeCheckpoint) -> None:
    resumption = Resumption(make_checkpoint(4, nodes=2))
    for node, saved in enumerate((0, 1, 0, 1, 0)):
        expected = tensors(0, 4 + saved)["a.weight"]
        assert np.array_equal(resumption.state(node).read("a.weight"), expected)


def test_only_a_run_that_goes_on_keeps_its_numbers(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(4)
    assert Resumption(checkpoint).start(0) == NodeStart(0, 0)
    assert Resumption(checkpoint, continued=True).start(0) == NodeStart(4, 4)
    assert Resumption(checkpoint, continued=True).versions(2) == {0: 4, 1: 4}


def test_what_does_not_fit_is_named(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(4)
    state = Resumption(checkpoint).state(0)
    with pytest.raises(UserError, match=r"training\.resume: .* has no tensor x\.weight; give a checkpoint of the same"):
        state.read("x.weight")
    with pytest.raises(UserError, match=r"exp_avg/a\.weight .* has the shape \(3, 5\), and this model's has \(3, 6\)"):
        state.read(FIRST_MOMENT + "a.weight", (3, 6))
    with pytest.raises(UserError, match="hidden_size 64, and this recipe's has 32"):
        check_model(checkpoint, {"model_type": "llama", "hidden_size": 32})
    check_model(checkpoint, {"model_type": "llama", "hidden_size": 64, "vocab_size": 3})
    (checkpoint.path / "node-0-stage-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"node-0-stage-1\.safetensors could not be read.*verify"):
        Resumption(checkpoint).state(0)


def test_a_runs_directory_stands_for_its_newest_whole_checkpoint(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = make_checkpoint(1), make_checkpoint(2)
    assert find_checkpoint(tmp_path) == newer
    assert find_checkpoint(older.path) == older
    (newer.path / "node-0-stage-0.safetensors").write_bytes(b"")
    assert find_checkpoint(tmp_path) == older
    assert str(newer.path) in capsys.readouterr().out
    (older.path / "node-0-stage-0.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint"):
        find_checkpoint(tmp_path)
