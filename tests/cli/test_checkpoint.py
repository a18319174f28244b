"""`lemix checkpoint` on checkpoints of a made-up model of two nodes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lemix_hpc.checkpoints.manifest import MANIFEST
from lemix_hpc.launch.rundir import RunDir, RunRecord
from tests.checkpoints.conftest import MakeCheckpoint, make_checkpoint, tensors
from tests.cli.conftest import Command

__all__ = ["make_checkpoint"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory, of which the checkpoints are."""
    RunDir(tmp_path).write_record(RunRecord("r", "local", time.time(), [], "h", "u", "0", 3))
    return tmp_path


def test_checkpoints_are_listed_shown_and_found_whole(
    run: Path, make_checkpoint: MakeCheckpoint, inside: Command
) -> None:
    made = [make_checkpoint(step, nodes=2) for step in (5, 12)]
    listed = inside("checkpoint", "list", run)
    assert [line.split("│")[1].strip() for line in listed.stdout.splitlines() if "step-" in line] == ["5", "12"]
    rows = json.loads(inside("checkpoint", "list", run, "--json").stdout)
    assert [(row["step"], row["versions"]) for row in rows] == [(5, {"0": 5, "1": 5}), (12, {"0": 12, "1": 12})]
    shown = inside("checkpoint", "show", run)
    assert shown.stdout.startswith(f"{made[1].path}\n")
    assert shown.stdout.count("safetensors") == 4
    assert json.loads(inside("checkpoint", "show", run, "--step", 5, "--json").stdout)["step"] == 5
    verified = inside("checkpoint", "verify", run)
    assert (verified.returncode, verified.stdout.count(": whole")) == (0, 2)


def test_damage_is_named_and_ends_with_exit_code_1(run: Path, make_checkpoint: MakeCheckpoint, inside: Command) -> None:
    whole, flipped, torn = (make_checkpoint(step) for step in (1, 2, 3))
    path = flipped.path / "node-0-stage-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (torn.path / MANIFEST).write_bytes(b"{")
    done = inside("checkpoint", "verify", run)
    assert done.returncode == 1
    assert f"{whole.path}: whole" in done.stdout
    assert f"{path}: its checksum" in done.stdout
    assert f"{torn.path / MANIFEST}: damaged" in done.stdout
    assert inside("checkpoint", "verify", run, "--step", 1).returncode == 0
    found = json.loads(inside("checkpoint", "verify", run, "--json").stdout)
    assert [len(problems) for problems in found.values()] == [0, 1, 1]
    listed = inside("checkpoint", "list", run)
    assert "step-00000002" in listed.stdout
    assert "damaged" in listed.stderr


def test_each_node_has_a_directory_or_one_is_chosen_or_their_mean(
    run: Path, make_checkpoint: MakeCheckpoint, inside: Command
) -> None:
    make_checkpoint(5, nodes=2)
    assert inside("checkpoint", "export", run, "each").returncode == 0
    assert inside("checkpoint", "export", run, "one", "--node", 1).returncode == 0
    assert inside("checkpoint", "export", run, "mean", "--mean").returncode == 0
    own = [tensors(0, 5 + node)["a.weight"] for node in (0, 1)]
    for path, expected in (
        ("each/node-0", own[0]),
        ("each/node-1", own[1]),
        ("one", own[1]),
        ("mean", (own[0] + own[1]) / 2),
    ):
        assert np.allclose(load_file(run / path / "model.safetensors")["a.weight"], expected, rtol=1e-6)
    config = json.loads((run / "one" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("out", "--step", 6), "--step 6: there are checkpoints after 5 steps; give one of these"),
        (("out", "--node", 2), "has node 0, 1; give one of these"),
        (("out", "--node", 1, "--mean"), "give one of the two"),
        (("out", "--dtype", "int8"), "--dtype: expected one of float32, bfloat16, float16; found int8"),
        (("full",), "full: is not an empty directory; give a new one"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    arguments: tuple[object, ...], told: str, run: Path, make_checkpoint: MakeCheckpoint, inside: Command
) -> None:
    make_checkpoint(5, nodes=2)
    (run / "full").mkdir()
    (run / "full" / "something").touch()
    done = inside("checkpoint", "export", run, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (run / "out").exists()


def test_a_run_without_checkpoints_says_when_there_are_some(run: Path, inside: Command) -> None:
    done = inside("checkpoint", "list", run)
    assert (done.returncode, "has no checkpoint; a run that trains saves one at its end" in done.stderr) == (2, True)
