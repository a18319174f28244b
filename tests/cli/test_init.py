"""`lemix init`: a recipe that runs as it is, on what there is."""

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.what_fits import MODELS
from lemix_hpc.config.load import load_recipe
from tests.cli.conftest import LEMIX, REPOSITORY, Command
from tests.launch.conftest import FakeSlurm, fake_slurm

__all__ = ["fake_slurm"]

DATA = REPOSITORY / "recipes" / "data" / "sums.jsonl"
TINY = {"model_type": "gpt2", "n_embd": 8, "n_layer": 3, "n_head": 2, "vocab_size": 300, "n_positions": 64}
SINFO = """\
cpu*|up|4|16|64000|2-00:00:00|(null)
gpu|up|2|64|1000000|30:00|gpu:a100:4(S:0-1)
gpu|up|1|64|1000000|30:00|gpu:h100:8,shard:16
old|down|9|64|1000000|infinite|gpu:16"""


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers questions."""
    monkeypatch.setattr("sys.stdin", Path(os.devnull).open())  # noqa: SIM115


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


@pytest.mark.mpi
def test_what_it_writes_runs_as_it_is(lemix: Command, tmp_path: Path) -> None:
    done = lemix("init", "my first.yaml", "--data", DATA, "--partition", "none", "--gpus", "0")
    assert done.returncode == 0, done.stderr
    assert "Wrote my first.yaml, for a run on this machine on no GPUs." in done.stderr
    shorter = ["--set", "serving.source.requests=2", "--set", "serving.max_new_tokens=2"]
    done = lemix("run", "my first.yaml", *shorter, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["serving"]["finished"], report["engine"], report["stages"]) == (2, "torch", 2)
    assert (tmp_path / "runs").exists() and content(tmp_path / "my first.yaml")["name"] == "my-first"


def test_the_partition_with_gpus_is_taken_and_its_gpus_are_stages(
    inside: Command, fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    fake_slurm.answers("sinfo", SINFO)
    done = inside("init")
    assert done.returncode == 0, done.stderr
    written = load_recipe(tmp_path / "recipe.yaml")
    assert (written.nodes.count, written.nodes.stages, written.engine.device) == (2, 4, "cuda")
    cluster = content(tmp_path / "recipe.yaml")["cluster"]
    assert cluster["mem"] == "28G", "3 GB for each rank"
    # 10 ranks on 64 cores, and no hour in a partition of half an hour.
    given = {"kind": "slurm", "partition": "gpu", "time": "00:30:00", "nodes_per_host": 2, "gpus_per_node": 8}
    assert cluster.items() >= (given | {"cpus_per_task": 6}).items()
    assert written.training is None and "`lemix plan RECIPE --gpus 4x80GB`" in (tmp_path / "recipe.yaml").read_text()
    shown = inside("run", "recipe.yaml", "--dry-run")
    assert shown.returncode == 0 and "#SBATCH --gpus-per-node=8" in shown.stdout


def test_another_partition_may_be_asked_for(inside: Command, fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.answers("sinfo", SINFO)
    assert inside("init", "--partition", "cpu", "--data", DATA).returncode == 0
    written = content(tmp_path / "recipe.yaml")
    assert written["cluster"].items() >= {"partition": "cpu", "time": "01:00:00", "cpus_per_task": 5}.items()
    assert "gpus_per_node" not in written["cluster"] and written["engine"]["device"] == "cpu"


def test_gpus_of_known_size_are_cut_as_the_plan_would(inside: Command, fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.answers("sinfo", SINFO)
    model = tmp_path / "model"
    model.mkdir()
    # Without weights it is refused in the end, when all has been sized.
    (model / "config.json").write_text(json.dumps(MODELS["Llama-3.1-8B"]))
    for gpus, told in (
        ("8x80GB", "model.safetensors.index.json"),
        ("8x8GB", "--gpus: no way to cut 8 GPUs of 8 GB holds this model and its training; take more or larger ones"),
    ):
        done = inside("init", "--model", model, "--data", DATA, "--gpus", gpus)
        assert done.returncode == 2 and told in done.stderr
    fake_slurm.answers("sinfo", SINFO.replace("1000000", "50000"))
    done = inside("init", "--model", model, "--data", DATA, "--gpus", "8x80GB")
    assert done.returncode == 2 and "GB of a host's memory, and hosts of partition gpu have 52;" in done.stderr
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["taken.yaml"], "taken.yaml: is there already, and nothing is overwritten; choose another name"),
        (["--partition", "old"], "--partition: there is no old; sinfo names cpu, gpu"),
        (["--gpus", "9"], "--gpus: 9 are asked for, and hosts of partition gpu have 8; give at most so many"),
        (["--gpus", "-1"], "--gpus: '-1' says no GPUs"),
        (["--partition", "cpu", "--gpus", "1"], "--gpus: 1 are asked for, and hosts of partition cpu have 0"),
        (["--model", "nowhere"], "nowhere/config.json. Give a Hugging Face checkpoint directory"),
        (["--data", "nowhere"], "training.data.path: there is no file"),
        (["no/such/directory.yaml"], "no/such/directory.yaml: cannot be written: No such file or directory"),
    ],
)
def test_mistakes_leave_no_file(
    inside: Command, fake_slurm: FakeSlurm, tmp_path: Path, arguments: list[str], told: str
) -> None:
    fake_slurm.answers("sinfo", SINFO)
    (tmp_path / "taken.yaml").write_text("mine")
    done = inside("init", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert (tmp_path / "taken.yaml").read_text() == "mine" and not (tmp_path / "recipe.yaml").exists()


def test_where_no_slurm_answers_there_is_no_partition(inside: Command, fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.answers("sinfo", stderr="cannot connect", code=1)
    done = inside("init", "--partition", "gpu")
    assert done.returncode == 2 and "--partition: Slurm does not answer here" in done.stderr
    fake_slurm.answers("nvidia-smi", "[N/A]\n16384\n24576")
    assert inside("init", "--gpus", "1").returncode == 2  # refused by the check: no such device here
    assert inside("init", "--gpus", "0").returncode == 0
    assert content(tmp_path / "recipe.yaml")["cluster"] == {"kind": "local"}


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(TINY))
    ours, theirs = pty.openpty()
    os.write(ours, b"model\n\n")
    command = [LEMIX, "init", "asked.yaml", "--partition", "none", "--gpus", "0"]
    done = subprocess.run(command, cwd=tmp_path, stdin=theirs, capture_output=True, text=True, timeout=120, check=False)
    assert "Model, a Hugging Face checkpoint directory" in done.stderr and "Data to train on" in done.stderr
    # The answer was taken: it has no weights.
    assert done.returncode == 2 and "model.safetensors" in done.stderr
