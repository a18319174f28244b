import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Command


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
