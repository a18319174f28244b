import json
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.profile import fingerprint, for_one_node, open_job, submit_sweep
from lemix_hpc.launch.rundir import RunRecord
from lemix_hpc.launch.start import start_in
from tests.launch.conftest import FakeSlurm

CONFIG = {"model_type": "llama", "num_hidden_layers": 4}


def made(**changes: Any) -> Recipe:
    return Recipe.model_validate({"model": {"config": CONFIG}, "training": {}, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"seed": 1},
        {"profile": {"lengths": [8]}},
        {"profile": {"time_budget_s": 1}},
        {"engine": {"max_batch_tokens": 64}},
        {"cluster": {"partition": "gpu"}},
        {"policy": {"placement": "round-robin"}},
    ],
)
def test_what_does_not_change_the_times_does_not_change_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(made(**change)) == fingerprint(made())


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"config": {**CONFIG, "num_hidden_layers": 5}}},
        {"nodes": {"stages": 2}},
        {"engine": {"dtype": "bfloat16"}},
        {"training": {"release": "sync"}},
        {"training": None},
        {"cluster": {"cpus_per_task": 4}},
        {"profile": {"repeats": 20}},
        {"profile": {"pause_s": 0.1}},
        {"serving": {"mode": "generate", "source": {"kind": "poisson", "rate": 1, "requests": 1}}},
    ],
)
def test_what_changes_the_times_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(made(**change)) != fingerprint(made())


def test_one_node_is_profiled_without_the_file_that_is_to_be_made(tmp_path: Path) -> None:
    coefficients = {"coefficients": tmp_path / "not-there-yet.yaml"}
    many = made(nodes={"count": 4}, cluster={"nodes_per_host": 2}, engine=coefficients, policy={"training_nodes": 2})
    one = for_one_node(LoadedRecipe(many, "recipe.yaml", {})).recipe
    assert (one.nodes.count, one.cluster.nodes_per_host, one.engine.coefficients) == (1, 1, None)
    assert one.policy.training_nodes is None


def test_a_job_is_found_again_with_its_points(tmp_path: Path) -> None:
    first = open_job(made(), tmp_path)
    (first.path / "points.csv").write_text("points")
    first.stop.touch()
    first.report.write_text("{}")
    again = open_job(made(profile={"lengths": [16]}), tmp_path)
    assert again == first
    assert (again.path / "points.csv").read_text() == "points"
    assert not again.stop.exists()
    assert not again.report.exists()
    assert "lengths:\n  - 16" in again.recipe.read_text()
    assert json.loads(again.profile_order.read_text())["out"] == str(tmp_path)
    assert open_job(made(nodes={"stages": 2}), tmp_path) != first


def test_a_job_that_is_at_work_is_left_alone(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = open_job(made(), tmp_path)
    run.write_record(RunRecord(run.id, "slurm", 0.0, [], "host", "user", "1", 2, job="7"))
    fake_slurm.answers("squeue", "7|PENDING")
    with pytest.raises(UserError, match=r"is PENDING already; `lemix cancel"):
        open_job(made(), tmp_path)
    fake_slurm.answers("squeue", "")
    fake_slurm.answers("sacct", "7|TIMEOUT")
    assert open_job(made(), tmp_path) == run


def test_a_sweep_is_one_array_for_each_shape(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.answers("sbatch", "Submitted batch job 7")
    recipes = [
        made(nodes={"stages": stages}, engine={"dtype": d}) for stages in (1, 2) for d in ("float32", "bfloat16")
    ]
    started = submit_sweep(recipes, tmp_path)
    assert [s.record.job for s in started] == ["7_0", "7_1", "7_0", "7_1"]
    assert len({s.run.path for s in started}) == 4
    scripts = [call.split()[-1] for call in fake_slurm.calls("sbatch")]
    assert len(scripts) == 2
    for s, tasks in zip(started, (2, 2, 3, 3), strict=True):
        script = s.run.job_script.read_text()
        assert "#SBATCH --array=0-1" in script
        assert f"#SBATCH --ntasks-per-node={tasks}" in script
        assert s.run.submitit.is_symlink()
        assert s.run.read_record() == s.record


def test_a_sweep_over_what_makes_no_difference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not change what is measured"):
        submit_sweep([made(seed=1), made(seed=2)], tmp_path)


def test_start_in_leaves_what_was_there(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.answers("sbatch", stderr="sbatch: error: no such partition", code=1)
    run = open_job(made(), tmp_path)
    (run.path / "points.csv").write_text("points")
    with pytest.raises(UserError, match="no such partition"):
        start_in(made(), "slurm", run)
    assert (run.path / "points.csv").exists()
