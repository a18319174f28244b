import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Command

TINY = Path(__file__).parents[2] / "recipes" / "tiny-cpu.yaml"


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["verdict"], check["text"]) for check in json.loads(done.stdout)}


@pytest.fixture
def without_slurm(tmp_path: Path) -> dict[str, str]:
    """A PATH on which nothing of Slurm is found, even where it is installed."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for directory in map(os.fspath, ("/usr/bin", "/bin")):
        for name in ("sh", "env", "hostname"):
            target = f"{directory}/{name}"
            if os.path.exists(target) and not (tools / name).exists():  # noqa: PTH110
                (tools / name).symlink_to(target)
    return {"PATH": str(tools)}


@pytest.mark.mpi
def test_a_sound_laptop(lemix: Command, recipe: Path, without_slurm: dict[str, str]) -> None:
    done = lemix("doctor", recipe, "--json", **without_slurm)
    found = findings(done)
    assert done.returncode == 0, done.stdout
    assert found["mpi"][0] == "ok"
    assert found["mpi"][1].startswith("two ranks started with ")
    assert found["slurm"] == ("ok", "not installed; runs start on this machine")
    assert found["recipe"][0] == "ok"
    assert found["policy"][0] == "ok"


@pytest.mark.mpi
def test_what_is_broken_is_told_with_exit_code_1(lemix: Command, tmp_path: Path, without_slurm: dict[str, str]) -> None:
    (tmp_path / "bad.yaml").write_text("nodes: {count: 0}\n")
    (tmp_path / "file").touch()
    done = lemix("doctor", "bad.yaml", "--json", **without_slurm, LEMIX_RUNS=str(tmp_path / "file" / "runs"))
    found = findings(done)
    assert done.returncode == 1
    assert found["recipe"] == ("fail", "bad.yaml:1: nodes.count: expected greater than 0, found 0")
    assert found["run directory"][0] == "fail"
    assert found["run directory"][1].endswith("Not a directory; set LEMIX_RUNS to a writable directory")


@pytest.mark.mpi
def test_ranks_are_started_as_a_run_would_and_try_their_place(
    lemix: Command, without_slurm: dict[str, str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    settings = ("training.across_nodes=sync", "training.sums=collective")
    command = ["doctor", TINY, "--in-job", "--json", *(word for each in settings for word in ("--set", each))]
    done = lemix(*command, **without_slurm, LEMIX_RUNS=str(runs))
    found = findings(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"works, and sums \d+\.\d GB/s", found["sums over nodes"][1])
    assert re.fullmatch(r"\d ranks on 1 host met", found["ranks"][1])
    assert found["software in a job"][1].startswith("Python 3.")
    assert "one way" in found["messages within a host"][1]
    assert "seen on all hosts" in found["run directory in a job"][1]
    assert list(runs.iterdir()) == []


@pytest.mark.mpi
def test_ranks_that_cannot_begin_are_told_with_what_they_said(
    lemix: Command, recipe: Path, without_slurm: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'lemix_hpc.probe' in sys.orig_argv: sys.exit('not here')\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = lemix("doctor", recipe, "--in-job", "--json", **without_slurm, PYTHONPATH=path)
    assert done.returncode == 1
    verdict, text = findings(done)["ranks"]
    assert verdict == "fail" and text.startswith("they did not start: ") and "not here" in text


def test_a_job_is_for_a_recipe(lemix: Command) -> None:
    done = lemix("doctor", "--in-job")
    assert done.returncode == 2 and "--in-job: give a recipe" in done.stderr
