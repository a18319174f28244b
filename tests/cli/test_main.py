import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lemix_hpc
from tests.cli.conftest import Command

HEAVY = (
    "torch",
    "transformers",
    "deepspeed",
    "mpi4py",
    "submitit",
    "numpy",
    "scipy",
    "pydantic",
    "yaml",
    "rich.live",
    "matplotlib",
    "numba",
)


SIMULATED = ("simulate", "compare", "capacity", "replay", "explain")


# Typer itself imports pydantic for a command.
@pytest.mark.parametrize(("command", "heavy"), [("--help", {*HEAVY}), ("ps", {*HEAVY} - {"pydantic"})])
def test_what_people_ask_for_often_imports_nothing_heavy(command: str, heavy: set[str], tmp_path: Path) -> None:
    code = (
        f"import sys, json; sys.argv = ['lemix', '{command}']; from lemix_hpc.cli.main import app\n"
        "try: app()\n"
        "finally: print(json.dumps(sorted(sys.modules)))"
    )
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "LEMIX_RUNS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "typer" in modules
    assert modules.isdisjoint(heavy | {"lemix_hpc.config.recipe"})


def test_version(lemix: Command) -> None:
    assert lemix("--version").stdout == f"lemix {lemix_hpc.__version__}\n"


def test_every_command_is_explained(inside: Command) -> None:
    text = inside("--help").stdout
    for command in (
        "run",
        "submit",
        "ps",
        "logs",
        "cancel",
        "report",
        "trace",
        "doctor",
        "fit",
        "coefficients",
        *SIMULATED,
    ):
        assert f"\n  {command} " in text
        assert inside(command, "--help").returncode == 0


def test_a_mistake_is_a_message_and_exit_code_2(lemix: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("engine:\n  kinds: torch\n")
    done = lemix("run", "bad.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("bad.yaml:2: engine.kinds: unknown key; did you mean 'kind'?")
    assert done.stdout == ""
