"""A supervisor in the batch step of a job, with Slurm's commands as scripts; slurm/test_survival.py has a real cluster."""

import os
import subprocess
import sys
import time
from datetime import datetime

import pytest

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.start import start
from lemix_hpc.records.attempts import attempts
from tests.launch.conftest import FakeSlurm

SUPERVISE = "import sys; from lemix_hpc.launch.supervisor import supervise; supervise(sys.argv[1])"


def submitted(slurm: FakeSlurm, recipe: Recipe, **cluster: object) -> RunDir:
    slurm.answers("sbatch", "Submitted batch job 12")
    changed = recipe.cluster.model_copy(update=cluster)
    return start(recipe.model_copy(update={"cluster": changed}), "slurm", None).run


def supervised(run: RunDir) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SUPERVISE, str(run.path)]
    environment = os.environ | {"SLURM_JOB_ID": "12"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def ranks(slurm: FakeSlurm, script: str) -> None:
    """What srun does in their place."""
    (slurm.directory / "srun").write_text(f"#!/bin/sh\n{script}\n")


def ends_in(slurm: FakeSlurm, seconds: float) -> None:
    slurm.answers("squeue", f"{datetime.fromtimestamp(time.time() + seconds).isoformat(timespec='seconds')}|RUNNING")


def test_slurm_is_asked_in_the_last_moment_when_the_ranks_do_not_end(fake_slurm: FakeSlurm, recipe: Recipe) -> None:
    run = submitted(fake_slurm, recipe)
    ranks(fake_slurm, "exec /bin/sleep 600")
    ends_in(fake_slurm, 4)
    done = supervised(run)
    assert done.returncode == 0, done.stderr
    assert fake_slurm.calls("scontrol")[-1] == "requeue 12"
    assert "attempt 0 ended: time-limit (the ranks did not end in time); requeue" in done.stdout


def test_a_refused_requeue_says_how_to_go_on(fake_slurm: FakeSlurm, recipe: Recipe) -> None:
    run = submitted(fake_slurm, recipe)
    ranks(fake_slurm, "exec /bin/sleep 600")
    ends_in(fake_slurm, 4)
    fake_slurm.answers("scontrol", stderr="Requested operation is presently disabled for job 12", code=1)
    assert "presently disabled for job 12; `lemix resume toy-" in supervised(run).stdout


@pytest.mark.parametrize(("restarts", "count"), [(0, 1), (2, 3)])
def test_crashes_without_progress_are_given_up(
    fake_slurm: FakeSlurm, recipe: Recipe, restarts: int, count: int
) -> None:
    run = submitted(fake_slurm, recipe, restarts=restarts)
    ranks(fake_slurm, "echo 'srun: error: n1: task 2: Killed' >&2; exit 137")
    ends_in(fake_slurm, 3600)
    done = supervised(run)
    assert done.returncode == 1
    assert done.stdout.count("ended: killed (rank 2 on n1 was killed by signal 9 (SIGKILL))") == count
    assert run.last_attempt.number == count - 1


def test_it_waits_for_the_controller_before_ranks_are_started(fake_slurm: FakeSlurm, recipe: Recipe) -> None:
    run = submitted(fake_slurm, recipe, restarts=0)
    ranks(fake_slurm, "exit 1")
    ends_in(fake_slurm, 3600)
    down, up = fake_slurm.directory / "down", fake_slurm.directory / "up"
    down.touch()
    script = f"[ -e {down} ] && echo 'Slurmctld(primary) at vm is DOWN' && /bin/mv {down} {up} && exit 1"
    (fake_slurm.directory / "scontrol").write_text(f"#!/bin/sh\n{script}\necho 'Slurmctld(primary) at vm is UP'\n")
    said = supervised(run).stdout
    assert said.count("Slurm's controller does not answer; the run waits for it") == 1
    assert said.index("controller") < said.index("attempt 0 ended")


def test_a_job_that_slurm_has_taken_away_is_not_asked_for_again(fake_slurm: FakeSlurm, recipe: Recipe) -> None:
    run = submitted(fake_slurm, recipe)
    taken, notes = fake_slurm.directory / "taken", fake_slurm.directory / "scontrol.calls"
    answer = f"#!/bin/sh\necho $@ >> {notes}\necho 'JobId=13 ArrayJobId=12 Restarts=1'\n"
    answer += f"[ ! -e {taken} ] || echo 'JobId=12 JobState=PENDING Restarts=1'\n"
    (fake_slurm.directory / "scontrol").write_text(answer)
    ranks(fake_slurm, f": > {taken}; echo 'srun: error: Node failure on n1' >&2; exit 1")
    ends_in(fake_slurm, 3600)
    done = supervised(run)
    assert (done.returncode, run.last_attempt.ended.reason) == (0, "node-failure")
    assert "Slurm has taken the job from this host" in done.stdout
    assert "requeue 12" not in fake_slurm.calls("scontrol")


def test_an_attempt_that_died_with_its_job_is_explained_by_the_next_start(
    fake_slurm: FakeSlurm, recipe: Recipe
) -> None:
    run = submitted(fake_slurm, recipe)
    (run.path / "attempts/0").mkdir(parents=True)
    run.stop.touch()
    fake_slurm.answers("sacct", "NODE_FAIL\nRUNNING")
    assert supervised(run).returncode == 0
    assert run.last_attempt.ended.reason == "node-failure"


def test_a_host_that_was_taken_for_dead_leaves_the_run_to_others(fake_slurm: FakeSlurm, recipe: Recipe) -> None:
    run = submitted(fake_slurm, recipe)
    # Meanwhile the job has been started elsewhere.
    ranks(fake_slurm, f"/bin/mkdir {run.path}/attempts/1; echo 'srun: error: Node failure on n1' >&2; exit 1")
    ends_in(fake_slurm, 3600)
    done = supervised(run)
    assert done.returncode == 0 and "requeue 12" not in fake_slurm.calls("scontrol")
    assert "the run goes on in another attempt" in done.stdout
    assert [attempt.ended for attempt in attempts(run.path)] == [None, None]
