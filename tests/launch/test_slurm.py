import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch import allocation, slurm
from lemix_hpc.launch.cancel import cancel, stop
from lemix_hpc.launch.launcher import rank_command
from lemix_hpc.launch.rundir import RunDir, create_run_dir
from lemix_hpc.launch.slurm_job import how_it_ended
from lemix_hpc.launch.start import StartedRun, choose_cluster, start
from lemix_hpc.launch.states import run_state, run_states
from lemix_hpc.records.attempts import claim
from tests.launch.conftest import FakeSlurm


def with_cluster(recipe: Recipe, **cluster: Any) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(exclude={"cluster"}), "cluster": cluster})


def flags(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    return {key: shlex.split(value)[0] if value else "" for key, value in found}


def command(script: str) -> list[str]:
    [line] = [line for line in script.splitlines() if line.startswith("exec ")]
    return shlex.split(line)


@pytest.mark.usefixtures("fake_slurm")
def test_shape_and_resources(recipe: Recipe, tmp_path: Path) -> None:
    asked = {
        "partition": "gpu",
        "account": "lab",
        "qos": "high",
        "time": "1-02:00:30",
        "gres": "gpu:4",
        "cpus_per_task": 6,
        "mem": "64G",
        "constraint": "a100",
        "nodelist": "n[1-2]",
        "exclude": "n3",
        "reservation": "friday",
    }
    wide = recipe.model_copy(update={"nodes": recipe.nodes.model_copy(update={"count": 4})})
    script = slurm.script(with_cluster(wide, nodes_per_host=2, **asked), tmp_path)
    found = flags(script)
    assert (
        found.items()
        >= {
            "nodes": "2",
            "ntasks-per-node": "6",
            "job-name": "lemix-toy",
            "time": "1561",
            "cpus-per-task": "6",
            "requeue": "",
            "open-mode": "append",
            "signal": "USR2@120",
        }.items()
    )
    same = {key: value for key, value in asked.items() if key not in ("time", "cpus_per_task")}
    assert found.items() >= same.items()
    assert "wckey" not in found
    assert "export SRUN_CPUS_PER_TASK=6\n" in script


@pytest.mark.usefixtures("fake_slurm")
@pytest.mark.parametrize(("kind", "given", "cores"), [("emulated", None, 1), ("vllm", None, 4), ("vllm", 2, 2)])
def test_ranks_beside_vllm_have_cores_for_its_threads(
    kind: str, given: int | None, cores: int, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = with_cluster(recipe, cpus_per_task=given)
    told = told.model_copy(update={"engine": told.engine.model_copy(update={"kind": kind})})
    script = slurm.script(told, tmp_path)
    assert flags(script)["cpus-per-task"] == str(cores)
    assert f"export SRUN_CPUS_PER_TASK={cores}\n" in script
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert f"--cpus-per-task={cores}" in allocation.launcher(told, rank_command(tmp_path)).command


@pytest.mark.usefixtures("fake_slurm")
def test_a_short_job_is_warned_later_and_one_that_must_not_come_back_says_so(recipe: Recipe, tmp_path: Path) -> None:
    found = flags(slurm.script(with_cluster(recipe, time="00:02:00", requeue=False), tmp_path))
    assert found.items() >= {"no-requeue": "", "signal": "USR2@30", "time": "2"}.items()
    assert "requeue" not in found


@pytest.mark.usefixtures("fake_slurm")
def test_the_batch_step_is_the_supervisor_behind_the_users_setup(recipe: Recipe, tmp_path: Path) -> None:
    script = slurm.script(with_cluster(recipe, container=["apptainer", "exec", "x"], setup=["module load x"]), tmp_path)
    assert command(script) == ["exec", sys.executable, "-u", "-m", "submitit.core._submit", str(tmp_path)]
    assert script.index("module load x") < script.index("exec ")


@pytest.mark.usefixtures("fake_slurm")
def test_ranks_run_under_mpi4py_inside_the_container(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    told = with_cluster(
        recipe, container=["apptainer", "exec", "my image.sif"], srun_args=["--cpu-bind=cores"], mpi="pmi2"
    )
    words = allocation.launcher(told, rank_command(tmp_path)).command
    assert words == [
        *("srun", "--nodes=1", "--ntasks=3", "--ntasks-per-node=3", "--cpus-per-task=1"),
        *("--mpi=pmi2", "--kill-on-bad-exit=1", "--distribution=block", "--cpu-bind=cores"),
        *("apptainer", "exec", "my image.sif"),
        *(sys.executable, "-u", "-m", "mpi4py", "-m", "lemix_hpc.launch.rank", str(tmp_path)),
    ]


def test_submission_is_recorded_with_the_script_that_was_sent(fake_slurm: FakeSlurm, recipe: Recipe) -> None:
    fake_slurm.answers("sbatch", "Submitted batch job 12")
    started = start(recipe, "slurm", None)
    assert started.record.job == "12"
    assert started.run.read_record() == started.record
    assert started.run.job_script.read_text() == slurm.script(recipe, started.run.submitit)


def test_a_refused_job_tells_why_and_leaves_no_run(fake_slurm: FakeSlurm, recipe: Recipe, tmp_path: Path) -> None:
    fake_slurm.answers("sbatch", stderr="sbatch: error: invalid partition specified: nope", code=1)
    with pytest.raises(UserError, match=r"^sbatch refused the job: invalid partition .*; `--dry-run`.*\n`sinfo -s`"):
        start(recipe, "slurm", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def submitted(fake_slurm: FakeSlurm, recipe: Recipe) -> StartedRun:
    fake_slurm.answers("sbatch", "Submitted batch job 12")
    return start(recipe, "slurm", None)


def test_state_of_a_job_that_waits_or_runs_comes_from_squeue(fake_slurm: FakeSlurm, submitted: StartedRun) -> None:
    fake_slurm.answers("squeue", "12|PENDING")
    assert run_state(submitted.run, submitted.record) == "PENDING"
    assert fake_slurm.calls("sacct") == []


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("12|COMPLETED", "COMPLETED"),
        ("12|CANCELLED by 1000", "CANCELLED"),
        ("12|NODE_FAIL\n12|REQUEUED\n12|TIMEOUT", "TIMEOUT"),
    ],
)
def test_state_of_an_ended_job_comes_from_sacct(
    fake_slurm: FakeSlurm, submitted: StartedRun, answer: str, state: str
) -> None:
    fake_slurm.answers("squeue", stderr="slurm_load_jobs error: Invalid job id specified", code=1)
    fake_slurm.answers("sacct", answer)
    assert run_state(submitted.run, submitted.record) == state


@pytest.mark.parametrize("sacct", ["absent", "failing"])
def test_without_accounting_the_state_comes_from_scontrol(
    fake_slurm: FakeSlurm, submitted: StartedRun, sacct: str
) -> None:
    if sacct == "absent":
        fake_slurm.lacks("sacct")
    else:
        fake_slurm.answers("sacct", stderr="Slurm accounting storage is disabled", code=1)
    fake_slurm.answers("scontrol", "JobId=12 JobName=lemix-toy JobState=FAILED Reason=None")
    assert run_state(submitted.run, submitted.record) == "FAILED"


def test_a_job_that_slurm_forgot_is_judged_by_its_files(submitted: StartedRun) -> None:
    assert run_state(submitted.run, submitted.record) == "UNKNOWN"
    submitted.run.report.touch()
    assert run_state(submitted.run, submitted.record) == "COMPLETED"
    claim(submitted.run.path).failure.touch()
    assert run_state(submitted.run, submitted.record) == "FAILED"


def test_slurm_is_asked_once_for_the_states_of_many_runs(
    fake_slurm: FakeSlurm, recipe: Recipe, submitted: StartedRun
) -> None:
    runs = [(submitted.run, submitted.record)]
    for job in ("13", "14"):
        fake_slurm.answers("sbatch", f"Submitted batch job {job}")
        started = start(recipe, "slurm", None)
        runs.append((started.run, started.record))
    runs[1][0].successor.write_text("15")
    fake_slurm.answers("squeue", "12|RUNNING\n15|PENDING")
    fake_slurm.answers("sacct", "13|TIMEOUT\n14|FAILED")
    assert run_states(runs) == ["RUNNING", "PENDING", "FAILED"]
    for command, jobs in (("squeue", "12,13,14,15"), ("sacct", "13,14")):
        [arguments] = fake_slurm.calls(command)
        assert f"--jobs {jobs}" in arguments
    assert fake_slurm.calls("scontrol") == []


def test_a_controller_that_is_down_is_not_asked_for_each_run(fake_slurm: FakeSlurm, submitted: StartedRun) -> None:
    fake_slurm.lacks("sacct")
    fake_slurm.answers("scontrol", "Slurmctld(primary) at c1 is DOWN", code=1)
    assert run_states([(submitted.run, submitted.record)] * 2) == ["UNKNOWN", "UNKNOWN"]
    assert fake_slurm.calls("scontrol") == ["ping"]


def test_cancel_asks_scancel(fake_slurm: FakeSlurm, submitted: StartedRun) -> None:
    cancel(submitted.run, submitted.record)
    assert fake_slurm.calls("scancel") == ["12"]
    fake_slurm.answers("scancel", stderr="scancel: error: Kill job error on job id 12: Access denied", code=1)
    with pytest.raises(UserError, match="Access denied"):
        cancel(submitted.run, submitted.record)


def test_a_run_can_be_asked_to_stop_while_the_controller_is_down(fake_slurm: FakeSlurm, submitted: StartedRun) -> None:
    submitted.run.successor.write_text("13")
    fake_slurm.answers("sacct", "12|RUNNING")
    for name in ("squeue", "scancel"):
        fake_slurm.answers(name, stderr="Unable to contact slurm controller (connect failure)", code=1)
    assert "is stopping" in stop(submitted.run, submitted.record)
    assert submitted.run.stop.exists() and submitted.run.successor.exists()
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        cancel(submitted.run, submitted.record)


def test_auto_takes_slurm_only_where_it_answers(fake_slurm: FakeSlurm) -> None:
    assert choose_cluster("auto") == "slurm"
    fake_slurm.answers("sinfo", code=1)
    assert choose_cluster("auto") == "local"
    fake_slurm.lacks("sbatch")
    assert choose_cluster("auto") == "local"
    with pytest.raises(UserError, match="not on PATH"):
        choose_cluster("slurm")


def test_test_only_hands_on_what_slurm_says(fake_slurm: FakeSlurm) -> None:
    fake_slurm.answers("sbatch", stderr="allocation failure: Requested node configuration is not available", code=1)
    answer = slurm.test_only("#!/bin/sh\n")
    assert not answer.accepted
    assert answer.message == "allocation failure: Requested node configuration is not available"
    [call] = fake_slurm.calls("sbatch")
    assert call.startswith("--test-only ")
    assert not Path(call.split()[1]).exists()


# What else sbatch is told


@pytest.mark.usefixtures("fake_slurm")
def test_any_option_of_sbatch(recipe: Recipe, tmp_path: Path) -> None:
    given = {"mem-per-cpu": "2G", "comment": "it's mine", "exclusive": True, "hint": False, "nice": 3}
    given |= {"mail-user": "me@site", "mail-type": "END,FAIL", "dependency": "afterok:1"}
    wide = with_cluster(recipe, sbatch=given, reservation="friday")
    found = flags(slurm.script(wide, tmp_path))
    assert found.items() >= {"mem-per-cpu": "2G", "comment": "it's mine", "exclusive": "", "nice": "3"}.items()
    assert found["reservation"] == "friday"
    assert (found["mail-user"], found["mail-type"], found["dependency"]) == ("me@site", "END,FAIL", "afterok:1")
    assert "hint" not in found


def test_a_job_that_follows_waits_for_nothing_else(recipe: Recipe, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.answers("sbatch", "Submitted batch job 8")
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    slurm.submit(with_cluster(recipe, sbatch={"dependency": "afterok:1", "comment": "x"}), run, after="7")
    found = flags(run.job_script.read_text())
    assert (found["dependency"], found["comment"]) == ("afterany:7", "x")


def test_nothing_of_an_outer_job_reaches_the_new_one(
    recipe: Recipe, tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "9", "SBATCH_TIMELIMIT": "1", "PMIX_RANK": "3"}
    for name, value in {**outer, "SLURM_CONF": "/etc/x.conf", "PMIX_MCA_gds": "hash"}.items():
        monkeypatch.setenv(name, value)
    script = fake_slurm.directory / "sbatch"
    script.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho Submitted batch job 7\n")
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    assert slurm.submit(recipe, run) == "7"
    for ask in (lambda: None, lambda: slurm.test_only("#!/bin/sh\n")):
        ask()
        seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
        assert not seen.keys() & outer.keys()
        assert (seen["SLURM_CONF"], seen["PMIX_MCA_gds"]) == ("/etc/x.conf", "hash")
    monkeypatch.delenv("SLURM_JOB_ID")
    slurm.submit(recipe, run)
    assert "SBATCH_TIMELIMIT=1" in (tmp_path / "seen").read_text(), "outside of jobs it is the user's own"


def test_a_run_directory_in_which_slurm_would_put_something_else(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a %, behind which Slurm puts in something else"):
        create_run_dir(recipe, tmp_path / "100%j", for_slurm=True)
    assert create_run_dir(recipe, tmp_path / "100%j").path.is_dir()


# What Slurm knows of an end


@pytest.mark.parametrize(
    ("scontrol", "sacct", "told"),
    [
        (
            "JobId=7 JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=3:0 NodeList=n1",
            "",
            "Slurm: job 7 is FAILED, exit code 3, on n1, reason NonZeroExitCode: "
            "its batch script ended with an error; `lemix logs` shows what was said",
        ),
        ("", "OUT_OF_MEMORY|0:125|None|n[1-2]", "Slurm: job 7 is OUT_OF_MEMORY, signal 125, on n[1-2]"),
        (
            "JobId=7 JobState=CANCELLED Reason=None ExitCode=0:15 NodeList=(null)",
            "",
            "Slurm: job 7 is CANCELLED, signal 15",
        ),
        ("", "", None),
    ],
)
def test_how_a_job_ended(scontrol: str, sacct: str, told: str | None, fake_slurm: FakeSlurm) -> None:
    fake_slurm.answers("scontrol", scontrol)
    fake_slurm.answers("sacct", sacct)
    assert how_it_ended("7") == told
