import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch import local
from lemix_hpc.launch.cancel import cancel
from lemix_hpc.launch.launcher import rank_command
from lemix_hpc.launch.process import is_alive, send_signal, start_time
from lemix_hpc.launch.rundir import RunDir, create_run_dir
from lemix_hpc.launch.start import start
from lemix_hpc.launch.states import read_progress, run_state

DEADLINE_S = 240


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)


def processes_of(run: RunDir) -> list[str]:
    commands = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in commands.splitlines() if str(run.path) in line]


def fake_mpiexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> str:
    """An mpiexec of some version as the only one, away from this Python's."""
    script = tmp_path / "mpiexec"
    script.write_text(f"#!/bin/sh\necho '{version}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    return str(script)


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("mpiexec (Open MPI) 5.0.11", ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]),
        ("mpiexec (OpenRTE) 4.1.4 of Open MPI 4.1.4", ["--oversubscribe", "--bind-to", "none"]),
        ("HYDRA build details: Version: 4.2.0", []),
    ],
)
def test_options_fit_the_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, options: list[str]) -> None:
    mpiexec = fake_mpiexec(tmp_path, monkeypatch, version)
    assert local.mpiexec_command(3, ["x"]) == [mpiexec, "-n", "3", *options, "x"]


def test_without_mpiexec_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"pip install 'lemix-hpc\[local-mpi\]'"):
        start(recipe, "local", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_local_run_leaves_the_job_that_it_is_started_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "PMIX_RANK", "PMI_RANK", "PMIX_MCA_gds"):
        monkeypatch.setenv(name, "1")
    kept = {name for name in local.environment() if name.startswith(("SLURM_", "PMI"))}
    assert kept == {"PMIX_MCA_gds"}


def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    started = start_time(child.pid)
    assert started is not None
    assert is_alive(child.pid, started)
    assert not send_signal(child.pid, started + 1, signal.SIGTERM)
    assert send_signal(child.pid, started, signal.SIGTERM)
    # Not reaped yet, so the pid is still taken: a zombie is not alive.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid, started)
    assert child.wait() == -signal.SIGTERM
    assert not send_signal(child.pid, started, signal.SIGTERM)


@pytest.mark.mpi
def test_a_run_completes_with_records_logs_and_report(recipe: Recipe) -> None:
    started = start(recipe, "local", None)
    assert started.process.wait(DEADLINE_S) == 0
    run = started.run
    assert run_state(run, started.record) == "COMPLETED"
    assert run.report.exists()
    assert read_progress(run).served == 5
    logs = run.rank_log(0, 0).parent
    assert sorted(path.name for path in logs.iterdir()) == ["launcher.log", *(f"rank-{rank}.log" for rank in range(3))]


@pytest.mark.mpi
def test_a_failing_rank_is_named_and_ends_all(recipe: Recipe, tmp_path: Path) -> None:
    source = {"kind": "azure", "path": tmp_path / "missing.csv"}
    broken = type(recipe).model_validate({**recipe.model_dump(), "serving": {"source": source}})
    started = start(broken, "local", None)
    assert started.process.wait(DEADLINE_S) != 0
    run = started.run
    assert run_state(run, started.record) == "FAILED"
    log, failure = run.rank_log(0, 0), run.last_attempt.failure.read_text()
    assert re.search(
        rf"^rank 0 \(node 0, leader\) failed: UserError: .*missing\.csv.*; log: {re.escape(str(log))}$",
        failure,
        re.MULTILINE,
    )
    assert failure.splitlines()[0] in run.launcher_log(0).read_text()
    assert "Traceback" in log.read_text()
    wait_for(lambda: not processes_of(run), "the other ranks to end")


@pytest.mark.mpi
def test_a_wrong_number_of_ranks_is_told(recipe: Recipe) -> None:
    run = create_run_dir(recipe, None)
    launcher = local.launcher(2, rank_command(run.path))
    assert subprocess.run(launcher.command, env=launcher.environment, check=False, timeout=DEADLINE_S).returncode != 0
    told = run.last_attempt.failure.read_text()
    assert "the recipe needs 3 MPI ranks, 1 x (1 leader + 2 stages), and 2 were started" in told


@pytest.mark.mpi
def test_cancel_ends_every_rank(recipe: Recipe) -> None:
    endless = type(recipe).model_validate(
        {**recipe.model_dump(), "serving": {"source": {"kind": "constant", "rate": 1, "requests": 1000}}}
    )
    started = start(endless, "local", None)
    wait_for(lambda: read_progress(started.run) is not None, "the run to start")
    assert run_state(started.run, started.record) == "RUNNING"
    cancel(started.run, started.record)
    started.process.wait(DEADLINE_S)
    assert run_state(started.run, started.record) == "CANCELLED"
    wait_for(lambda: not processes_of(started.run), "the ranks to end")
    with pytest.raises(UserError, match="has already ended"):
        cancel(started.run, started.record)
    assert run_state(started.run, started.record) == "CANCELLED"
