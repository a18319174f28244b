"""Run short commands and poll until one of them says what is hoped for."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from vcluster.errors import DevclusterError
from vcluster.processes import Supervised

POLL_S = 0.1


def run(*command: str, step: str, env: dict[str, str] | None = None, text: str | None = None) -> str:
    """Output of a command that must succeed; its failure names the step."""
    done = subprocess.run(command, input=text, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DevclusterError(
            f"{step}: `{' '.join(command)}` failed with exit code {done.returncode}\n{done.stdout}{done.stderr}".rstrip()
        )
    return done.stdout


def output(*command: str, env: dict[str, str]) -> str:
    """Output of a command that may fail while things are starting; empty then."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def wait_until(step: str, check: Callable[[], bool], timeout_s: float, process: Supervised | None = None) -> None:
    """Poll ``check``; give up when ``process`` has died or after ``timeout_s`` seconds, and show its log's end."""
    deadline = time.monotonic() + timeout_s
    while not check():
        died = process is not None and process.pid() is None
        if not died and time.monotonic() < deadline:
            time.sleep(POLL_S)
            continue
        why = f"{process.name} ended early" if process and died else f"not after {timeout_s:.0f} s"
        where = f"; log {process.log_file}, its end:\n{process.log_tail()}" if process else ""
        raise DevclusterError(f"{step}: {why}{where}")


def clean_environment(slurm_conf: Path) -> dict[str, str]:
    """The environment less another cluster's SLURM_* (we may run inside a Slurm job), plus ours."""
    prefixes = ("SLURM", "SBATCH", "SRUN", "PMIX", "PMI_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    path = f"{kept.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin".lstrip(":")
    return {**kept, "PATH": path, "LC_ALL": "C.UTF-8", "SLURM_CONF": str(slurm_conf)}
