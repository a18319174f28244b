"""The engine that docs/extending.md adds runs, with no more than the page says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lemix_hpc.config.engine_kinds import ENGINE_KINDS, EngineKind
from lemix_hpc.config.load import read_recipe
from lemix_hpc.launch.local import environment, mpiexec_command
from lemix_hpc.launch.preflight import preflight
from lemix_hpc.launch.rundir import create_run_dir
from tests.runtime.conftest import REPOSITORY, FinishedRun

pytestmark = pytest.mark.mpi

RANKS = Path(__file__).with_name("extending_ranks.py")
SECONDS_PER_TOKEN = 20e-6


def blocks() -> list[str]:
    """The examples of the section in order: the module, its entry in the registry, coefficients, a recipe."""
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    [section] = re.findall(r"^## Add an engine\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```(?:python|yaml)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def test_the_worked_engine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, entry, coefficients, recipe = blocks()
    package = tmp_path / "engines"
    package.mkdir()
    (package / "fixed_rate.py").write_text(module)
    (tmp_path / "fixed-rate-times.yaml").write_text(coefficients)
    (tmp_path / "recipe.yaml").write_text(recipe)
    [(name, kind)] = eval(f"{{{entry}}}", {"EngineKind": EngineKind}).items()
    monkeypatch.setitem(ENGINE_KINDS, name, kind)

    loaded = read_recipe(tmp_path / "recipe.yaml")
    assert preflight(loaded, "local") == ()
    directory = create_run_dir(loaded.recipe, tmp_path / "run")
    command = [sys.executable, "-m", "mpi4py", str(RANKS), str(directory.path), str(package), entry]
    done = subprocess.run(
        mpiexec_command(6, command), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr

    run = FinishedRun(directory.path, json.loads(directory.report.read_text()))
    assert run.report["engine"] == name
    assert run.report["serving"]["finished"] == run.report["serving"]["received"] == 40
    assert run.report["training"]["finished"] > 0
    assert run.report["training"]["steps"] > 0
    spans = list(run.lines("spans.jsonl"))
    assert {(span["node"], span["stage"]) for span in spans} == {(node, stage) for node in (0, 1) for stage in (0, 1)}
    tokens = {task["id"]: task["prompt_tokens"] for task in run.tasks("serving")}
    for span in spans:
        if span["kind"] == "serve":  # a sleep may take longer, never shorter
            assert span["end"] - span["start"] >= SECONDS_PER_TOKEN * tokens[span["task"]] - 1e-6
