"""`lemix punish` breaks runs, and runs survive it."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.launch.punish import ranks
from lemix_hpc.launch.rundir import RunDir
from tests.cli.conftest import LEMIX, Command

PATIENCE_S = 240


def started(lemix: Command, recipe: Path, **settings: object) -> None:
    """A run of some seconds in `one`."""
    work = {"serving.source": "{kind: poisson, rate: 20, requests: 120}", "training.share": 0.2} | settings
    options = [part for key, value in work.items() for part in ("--set", f"{key}={value}")]
    submitted = lemix("submit", recipe, "--cluster", "local", *options, "--out", "one")
    assert submitted.returncode == 0, submitted.stderr


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the runs of this test have their temporary files; sockets there need short names."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


def shared_memory(pid: int) -> Path:
    """What a rank shares with others of its host."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    (found,) = [v.partition("=")[2] for v in variables if v.startswith("OMPI_MCA_btl_sm_backing_directory=")]
    return Path(found)


def report_at_end(lemix: Command, directory: Path) -> dict[str, Any]:
    subprocess.run([LEMIX, "logs", "one", "-f"], cwd=directory, timeout=PATIENCE_S, capture_output=True, check=True)
    report: dict[str, Any] = json.loads(lemix("report", "one", "--json").stdout)
    assert report["complete"] and report["serving"]["finished"] == report["serving"]["received"] == 120
    assert report["training"]["finished"] == 30
    return report


@pytest.mark.mpi
def test_a_run_survives_kills(lemix: Command, recipe: Path, tmp_path: Path, scratch: Path) -> None:
    started(lemix, recipe)
    done = lemix("punish", "one", "--mean-seconds", "0.5", "--count", "2")
    assert done.returncode == 0, done.stderr
    assert [line.split(maxsplit=1)[1].split()[0] for line in done.stdout.splitlines()] == ["rank:", "rank:", "blows"]
    attempts = report_at_end(lemix, tmp_path)["attempts"]
    assert [attempt["reason"] for attempt in attempts[:-1]] == ["killed", "killed"]
    assert list(scratch.iterdir()) == []


@pytest.mark.mpi
def test_a_rank_that_hangs_is_named_and_the_run_goes_on(
    lemix: Command, recipe: Path, tmp_path: Path, scratch: Path
) -> None:
    started(lemix, recipe, **{"engine.timeout_s": 5})
    run = RunDir(tmp_path / "one")
    end = time.monotonic() + PATIENCE_S
    while not run.facts.exists():
        assert time.monotonic() < end, "the run did not start"
        time.sleep(0.05)
    (stopped,) = [pid for pid in ranks(run) if b"PMIX_RANK=2" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    memory = shared_memory(stopped)
    assert memory.is_dir()
    os.kill(stopped, signal.SIGSTOP)
    attempts = report_at_end(lemix, tmp_path)["attempts"]
    assert len(attempts) == 2 and attempts[0]["reason"] == "error"
    assert "rank 2 (node 0, stage 1) has not been heard of for 5 s" in attempts[0]["message"]
    assert not Path(f"/proc/{stopped}").exists(), "it is not left behind"
    assert list(scratch.iterdir()) == [] and not memory.exists()


def test_what_it_does_not_know_is_named(inside: Command, recipe: Path) -> None:
    assert inside("simulate", recipe, "--out", "sim").returncode == 0
    done = inside("punish", "sim", "--kinds", "rank,volcano")
    assert (done.returncode, done.stderr) == (
        2,
        "--kinds: there is no 'volcano'; give some of rank, pause, engine, step, slurmd, controller\n",
    )


def test_daemons_of_others_are_not_killed(inside: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEMIX_DEVCLUSTER", "SLURM_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert inside("simulate", recipe, "--out", "sim").returncode == 0
    for kind in ("slurmd", "controller"):
        done = inside("punish", "sim", "--kinds", kind)
        assert done.returncode == 2
        assert done.stderr.startswith(
            "slurmd and controller: the Slurm of this host is no one-machine cluster of yours"
        )
