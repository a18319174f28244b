import os
from pathlib import Path

import pytest

from lemix_hpc.config.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
COEFFICIENTS = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and the list of runs of this test alone."""
    monkeypatch.setenv("LEMIX_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def recipe() -> Recipe:
    """A run of a second on two emulated stages, three ranks."""
    return Recipe.model_validate(
        {
            "name": "toy",
            "nodes": {"stages": 2},
            "engine": {"kind": "emulated", "coefficients": COEFFICIENTS},
            "serving": {"source": {"kind": "poisson", "rate": 50, "requests": 5}},
        }
    )


class FakeSlurm:
    """Slurm's commands as scripts on PATH that print what a test wrote for them, and note their arguments."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel", "sinfo"):
            self.answers(name)

    def answers(self, name: str, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        script = self.directory / name
        notes = self.directory / f"{name}.calls"
        script.write_text(
            f"#!/bin/sh\necho \"$@\" >> {notes}\ncat <<'END'\n{stdout}\nEND\ncat >&2 <<'END'\n{stderr}\nEND\nexit {code}\n"
        )
        script.chmod(0o755)

    def lacks(self, name: str) -> None:
        (self.directory / name).unlink()

    def calls(self, name: str) -> list[str]:
        notes = self.directory / f"{name}.calls"
        return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    directory = tmp_path / "bin"
    directory.mkdir()
    # Only the system's basic tools beside them, without a Slurm that may be installed.
    for tool in ("sh", "cat", "env"):
        (directory / tool).symlink_to(next(Path(d) / tool for d in os.defpath.split(":") if (Path(d) / tool).exists()))
    monkeypatch.setenv("PATH", str(directory))
    return FakeSlurm(directory)
