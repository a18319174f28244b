import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LEMIX = str(Path(sys.executable).parent / "lemix")
COEFFICIENTS = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and the list of runs of this test alone."""
    monkeypatch.setenv("LEMIX_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


Command = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = f"""\
name: toy
nodes: {{stages: 2}}
engine: {{kind: emulated, coefficients: {COEFFICIENTS}}}
serving:
  source: {{kind: poisson, rate: 50, requests: 5}}
training: {{share: 0.3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The file of a run of a second on two emulated stages, three ranks."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def lemix(tmp_path: Path) -> Command:
    """Runs the installed command in a directory of its own."""

    def call(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        command = [LEMIX, *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=400, check=False
        )

    return call


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """As `lemix`, but in this process: quick where a command starts nothing."""
    from lemix_hpc.cli.main import main

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["lemix", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), printed.out, printed.err)

    return call
