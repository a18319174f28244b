"""The Slurm job that this process is in: its state, and asking Slurm to start it again."""

from __future__ import annotations

import os
import re
import subprocess

from lemix_hpc.launch.queue_reasons import why

TIMEOUT_S = 30
STILL_THERE = ("RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "PENDING", "")


def job_id() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def is_over(job: str) -> bool:
    """Whether a job has ended or is not known any more."""
    answer = ask("squeue", "--noheader", "--jobs", job, "--format", "%T").strip()
    return answer not in {state for state in STILL_THERE if state}


def states_so_far(job: str) -> list[str]:
    """The states in which the job ended each time it ran, oldest first; none without accounting."""
    answer = ask("sacct", "-X", "-D", "--noheader", "--parsable2", "--format", "State", "--jobs", job)
    # sacct writes `CANCELLED by 1000`.
    states = [line.split()[0].rstrip("+") for line in answer.splitlines() if line.strip()]
    return [state for state in states if state not in STILL_THERE]


def how_it_ended(job: str) -> str | None:
    """What Slurm knows of the end of a job, for people; None if it knows nothing any more."""
    told = ask("scontrol", "--oneliner", "show", "job", job).splitlines()
    fields = dict(re.findall(r"(\w+)=(\S+)", told[-1])) if told else {}
    if "ExitCode" not in fields:
        format_ = "State,ExitCode,Reason,NodeList"
        rows = ask("sacct", "-X", "--noheader", "--parsable2", "--format", format_, "--jobs", job).splitlines()
        names = ("JobState", "ExitCode", "Reason", "NodeList")
        fields = dict(zip(names, rows[-1].split("|"), strict=False)) if rows else {}
    if not fields.get("JobState"):
        return None
    code, _, signal_ = fields.get("ExitCode", "").partition(":")
    how = f"signal {signal_}" if signal_ not in ("", "0") else f"exit code {code or 'unknown'}"
    known = [f"on {fields['NodeList']}"] if fields.get("NodeList") not in (None, "(null)", "") else []
    known += [f"reason {fields['Reason']}"] if fields.get("Reason") not in (None, "None", "") else []
    ended = f"Slurm: job {job} is {', '.join([fields['JobState'], how, *known])}"
    reason = fields.get("Reason", "None")
    meaning = why(reason) if reason != "None" else None
    return ended if meaning is None else f"{ended}: {meaning}"


def controller_answers() -> bool:
    """Whether Slurm's controller, or one that stands in for it, is up; True where that cannot be asked."""
    try:
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except OSError:
        return True
    except subprocess.TimeoutExpired:
        return False
    return " is UP" in done.stdout or " is DOWN" not in done.stdout


def taken_away(job: str) -> bool:
    """Whether Slurm has ended this job on the hosts at hand, and starts it again or has done so."""
    # It may tell of all jobs of an array.
    answer = ask("scontrol", "--oneliner", "show", "job", job)
    restarts = re.search(rf"^JobId={job} .*\bRestarts=(\d+)", answer, re.MULTILINE)
    return restarts is not None and int(restarts[1]) > int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def requeue(job: str) -> str | None:
    """Ask Slurm to end this job and start it again. Returns what it says against that, None if it does so."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else None


def ask(*command: str) -> str:
    """What a Slurm command prints; nothing if it fails, is not there or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
