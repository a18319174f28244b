"""Recipes and runs from Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lemix_hpc as lx
from lemix_hpc.config.load import read_recipe
from lemix_hpc.studies.run_directory import simulate_into
from tests.conftest import REPOSITORY

A100 = REPOSITORY / "recipes" / "emulated-a100.yaml"
BRIEF = {"nodes.count": 1, "serving.source.duration_s": 2, "training.share": 0.3}


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lx.Run:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run, _ = simulate_into(lx.load(A100, BRIEF).recipe, tmp_path / "run")
    return lx.Run(run.path)


def test_changes_are_those_of_the_command_line() -> None:
    file = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
    changes = {"nodes.count": 3, "slo.factors": [2, 4], "name": "of-1", "policy.coefficients": file, "training": None}
    sets = ["nodes.count=3", "slo.factors=[2, 4]", "name=of-1", f"policy.coefficients={file}", "training=null"]
    assert lx.load(A100, changes).recipe == read_recipe(A100, sets).recipe


def test_mistakes_are_told_as_on_the_command_line() -> None:
    with pytest.raises(lx.UserError, match=r"nodes\.cuont"):
        lx.load(A100, {"nodes.cuont": 3})
    with pytest.raises(lx.UserError, match=r"nodes\.count: .* cannot stand in a recipe"):
        lx.load(A100, {"nodes.count": object()})
    with pytest.raises(lx.UserError, match="has been loaded"):
        lx.simulate(lx.load(A100), {"nodes.count": 3})
    with pytest.raises(lx.UserError, match="only Slurm jobs"):
        lx.submit(A100, cluster="local", renew=True)
    with pytest.raises(lx.UserError, match="there is no policy 'best'"):
        lx.compare(A100, policies=["best"])
    with pytest.raises(lx.UserError, match="no run has this id"):
        lx.Run("nothing-of-this-name")


def test_a_simulated_run_can_be_looked_at(simulated: lx.Run) -> None:
    report = simulated.report()
    assert simulated.state == simulated.wait() == "COMPLETED" and simulated.ended
    requests, micro_batches = lx.rows(simulated.requests()), lx.rows(simulated.micro_batches())
    assert len(requests) == report["serving"]["finished"] == simulated.progress.served > 0
    assert len(micro_batches) == report["training"]["finished"] > 0
    assert {row["outcome"] for row in requests} == {"finished"}
    busy = sum(span.end - span.start for span in simulated.spans())
    assert 0 < busy <= 2 * simulated.facts.duration_s
    with pytest.raises(lx.UserError, match="was simulated"):
        simulated.stop()


def test_simulations_are_those_of_the_command_line(simulated: lx.Run) -> None:
    assert lx.simulate(A100, BRIEF).summary == simulated.report()


def test_placements_are_compared_with_the_first() -> None:
    rows = lx.compare(A100, {**BRIEF, "nodes.count": 2}, policies=["separate", "round-robin"], split=1, rates=[4])
    assert [row.policy for row in rows] == ["separate", "round-robin"]
    assert rows[0].ratios["throughput"] == 1 != rows[1].ratios["throughput"]


@pytest.mark.mpi
def test_the_example_runs(tmp_path: Path) -> None:
    environment = os.environ | {"LEMIX_RUNS": str(tmp_path / "runs"), "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-W", "error::UserWarning", str(REPOSITORY / "examples" / "study.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "requests; the slowest one is" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert lx.Run(run).report()["complete"]
