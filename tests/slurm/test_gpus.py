"""How GPUs are asked for, on a cluster that counts some."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.conftest import PATIENCE_S, Client, until

pytestmark = pytest.mark.slurm

RECIPE = str(REPOSITORY / "recipes" / "emulated-a100.yaml")
SHORT = ["serving.source.duration_s=2", "nodes.count=1", "nodes.stages=2"]
STYLES = {
    "cluster.gpus_per_node=2": ["0,1"] * 3,
    "cluster.gres=gpu:2": ["0,1"] * 3,
    "cluster.sbatch={gpus-per-task: 1}": ["0", "1", "2"],
}
"""Ways to ask for the GPUs of two stages, and what a leader and its stages see. One for each task is one more than needed."""


def asked(style: str, *settings: str) -> list[str]:
    return [RECIPE, "--cluster", "slurm", *(word for each in (*SHORT, style, *settings) for word in ("--set", each))]


@pytest.mark.parametrize("style", STYLES)
def test_slurm_takes_each_way_of_asking_and_ranks_see_what_they_should(
    client: Client, slurm_tmp_path: Path, style: str
) -> None:
    """`--dry-run` asks `sbatch --test-only`. Each rank tells what it was started with, in front of Python."""
    script = slurm_tmp_path / "tell"
    note = f"{slurm_tmp_path}/rank-$SLURM_PROCID"
    script.write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES" > {note}.part && mv {note}.part {note}\nexec "$@"\n')
    script.chmod(0o755)
    command = asked(style, f"cluster.container=[{script}]")
    client.run("run", *command, "--dry-run")
    out = str(slurm_tmp_path / "run")
    client.run("submit", *command, "--out", out)
    ranks = [slurm_tmp_path / f"rank-{rank}" for rank in range(3)]
    until("ranks", lambda: all(path.exists() for path in ranks))
    client.run("cancel", out)
    assert [path.read_text().strip() for path in ranks] == STYLES[style]


def test_the_doctor_goes_where_a_run_would(client: Client) -> None:
    """Two hosts of the cluster, and GPUs that are counted but not there: the torch of the tests sees none."""
    settings = ("nodes.count=2", "nodes.stages=1", "cluster.gpus_per_node=1", "cluster.kind=slurm")
    recipe = str(REPOSITORY / "recipes" / "tiny-cpu.yaml")
    command = ["doctor", recipe, "--in-job", "--json", *(word for each in settings for word in ("--set", each))]
    doctor = client.start(*command, "--set", "engine.device=auto", "--set", "training.across_nodes=average")
    said, progress = doctor.communicate(timeout=PATIENCE_S)
    found = {check["name"]: (check["verdict"], check["text"]) for check in json.loads(said)}
    assert found["ranks"] == ("ok", "4 ranks on 2 hosts met"), progress
    assert found["devices in a job"][0] == "fail" and "sees no GPU" in found["devices in a job"][1]
    assert found["messages between hosts"][0] in ("ok", "warn") and found["run directory in a job"][0] in ("ok", "warn")
    assert doctor.returncode == 1 and re.search(r"job \d+ is (PENDING|RUNNING)", progress)


def test_more_gpus_than_a_host_has_are_refused(client: Client) -> None:
    refused = client.start("run", *asked("cluster.gpus_per_node=5"), "--dry-run")
    _, said = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 2 and "allocation failure" in said


def test_a_first_recipe_is_for_the_gpus_that_slurm_counts(client: Client, slurm_tmp_path: Path) -> None:
    recipe = slurm_tmp_path / "first.yaml"
    client.run("init", str(recipe))
    assert "partition: main" in recipe.read_text()
    assert "#SBATCH --gpus-per-node=4" in client.run("run", str(recipe), "--dry-run")
