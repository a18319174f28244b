"""Runs as Slurm jobs, through submitit."""

from __future__ import annotations

import contextlib
import io
import math
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.walltime import parse_walltime
from lemix_hpc.launch.outer_job import leaked, without_outer_job
from lemix_hpc.launch.queue_reasons import way_out
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.supervisor import supervise
from lemix_hpc.runtime.scheduler.drain import signal_lead


class SupervisorExecutor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's Slurm executor with its function in the batch step, in the place of the shell: there it gets what Slurm tells
    the job, and the ranks, which it starts with srun, have no handlers of submitit's."""

    @property
    def _submitit_command_str(self) -> str:
        python = [sys.executable, "-u", "-m", "submitit.core._submit"]
        return f"exec {shlex.join([*python, str(self.folder)])}"

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        """sbatch takes options from the environment too, before those of the script, and jobs inherit it."""
        unset = [argument for name in leaked() for argument in ("-u", name)]
        sbatch = ["sbatch", str(submission_file_path)]
        return ["env", *unset, *sbatch] if unset else sbatch


@dataclass(frozen=True)
class TestAnswer:
    """What `sbatch --test-only` says of a job script."""

    accepted: bool
    message: str


def submit(recipe: Recipe, run: RunDir, after: str | None = None) -> str:
    """Submit a run, to start when the job `after` has ended, if there is one. Returns the job id.

    Raises UserError with sbatch's reason if Slurm refuses the job.
    """
    return submit_array(recipe, [run], run.submitit, after)[0]


def submit_array(recipe: Recipe, runs: Sequence[RunDir], folder: Path, after: str | None = None) -> list[str]:
    """Submit runs that ask Slurm for the same as `recipe` as one job array, with submitit's files in `folder`.

    Returns their job ids. Raises UserError with sbatch's reason if Slurm refuses the job.
    """
    executor = _executor(recipe, folder)
    if after is not None:
        # What the first job had to wait for is over.
        others = {
            key: value for key, value in executor.parameters["additional_parameters"].items() if key != "dependency"
        }
        executor.update_parameters(dependency=f"afterany:{after}", additional_parameters=others)
    jobs = _send(executor, supervise, [run.path for run in runs])
    for job, run in zip(jobs, runs, strict=True):
        script = Path(job.paths.submission_file)
        run.job_script.write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    return [str(job.job_id) for job in jobs]


def submit_other(recipe: Recipe, batch_step: Callable[[str], None], directory: Path) -> str:
    """Submit a job like those of a run, which calls another function with a directory; submitit's files are there, too.

    Returns the job id. Raises UserError with sbatch's reason if Slurm refuses the job.
    """
    return str(_send(_executor(recipe, directory / "submitit"), batch_step, [directory])[0].job_id)


def _send(
    executor: SupervisorExecutor, batch_step: Callable[[str], None], directories: Sequence[Path]
) -> list[submitit.Job[None]]:
    try:
        # submitit prints what sbatch says of a refused job, and raises it as well.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            return [executor.submit(batch_step, str(directory)) for directory in directories]
    except (FailedJobError, FailedSubmissionError) as error:
        said = _sbatch_reason(error)
        told = f"sbatch refused the job: {said}; `--dry-run` shows the script"
        raise UserError(f"{told}\n{hint[:1].upper()}{hint[1:]}" if (hint := way_out(said)) else told) from error


def same_request(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes ask Slurm for the same, so that their jobs may be of one array."""
    return _parameters(one) == _parameters(other)


def script(recipe: Recipe, folder: Path) -> str:
    """The sbatch script that `submit` would send, with submitit's files in `folder`."""
    executor = _executor(recipe, folder)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def test_only(text: str) -> TestAnswer:
    """Ask Slurm whether and when it would run a job script, without submitting it."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(
            ["sbatch", "--test-only", file.name],
            capture_output=True,
            text=True,
            check=False,
            env=without_outer_job(),
        )
    return TestAnswer(done.returncode == 0, (done.stderr or done.stdout).strip())


def _executor(recipe: Recipe, folder: Path) -> SupervisorExecutor:
    executor = SupervisorExecutor(folder)
    executor.update_parameters(**_parameters(recipe))
    return executor


def _parameters(recipe: Recipe) -> dict[str, Any]:
    """submitit's parameters; those that are None are left out of the script."""
    cluster, nodes = recipe.cluster, recipe.nodes
    limit = parse_walltime(cluster.time)
    extra: dict[str, Any] = {"requeue" if cluster.requeue else "no-requeue": True}
    if cluster.reservation is not None:
        extra["reservation"] = cluster.reservation
    # An option that is set to false is left out, so that `--set` can take one back.
    extra |= {name: value for name, value in cluster.sbatch.items() if value is not False}
    return {
        "job_name": f"lemix-{recipe.name}",
        "nodes": nodes.count // cluster.nodes_per_host,
        "ntasks_per_node": cluster.nodes_per_host * (nodes.stages + 1),
        "cpus_per_task": recipe.cores,
        "time": math.ceil(limit / 60),
        "signal_delay_s": signal_lead(recipe.policy.drain_reserve_s, limit),
        "use_srun": False,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "gres": cluster.gres,
        "gpus_per_node": cluster.gpus_per_node,
        "mem": cluster.mem,
        "constraint": cluster.constraint,
        "nodelist": cluster.nodelist,
        "exclude": cluster.exclude,
        "wckey": None,
        "setup": [*_exports(recipe), *cluster.setup],
        "additional_parameters": extra,
    }


def _exports(recipe: Recipe) -> list[str]:
    from lemix_hpc.launch.local import root_environment

    exports = {
        # Since 22.05 srun does not inherit --cpus-per-task from the job.
        "SRUN_CPUS_PER_TASK": str(recipe.cores),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        **root_environment(),
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]


def _sbatch_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
    return "; ".join(line.removeprefix("sbatch: error: ") for line in lines) or str(error)
