"""What the live view says of a picture, on a screen and in lines alike. What a run does not know is not said."""

from __future__ import annotations

import math
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from lemix_hpc.cli.live.picture import Picture
from lemix_hpc.launch.job_queue import JobInQueue
from lemix_hpc.launch.queue_reasons import why
from lemix_hpc.launch.states import WAITING
from lemix_hpc.records.attempts import AttemptEnd
from lemix_hpc.records.schema import Progress

SILENT_S = 20.0
"""A run that goes on and has written no figures for so long may be stuck, or its file server."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What a run does or waits for. `key`: changes when that does; `words`: with counts that change; `since`: seconds since the
    epoch, if anybody knows; `hint`: what it means and what to do about it, if that is not plain."""

    key: str
    words: str
    since: float | None = None
    hint: str | None = None


ENDING = Phase("ending", "ending: writing its report")


def phase(picture: Picture) -> Phase:
    """What the run does now."""
    state, progress = picture.state, picture.current
    if picture.over:
        return Phase(state, _ended(picture))
    if state in WAITING:
        return _waiting(picture)
    if state != "RUNNING":
        told = "neither its files nor Slurm nor this host know its state"
        return Phase(state, f"unknown: {told}" if state == "UNKNOWN" else state.lower())
    if picture.end is not None:
        return _after(picture.attempt, picture.end)
    if progress is None:
        return Phase("ranks", f"starting the ranks of attempt {picture.attempt}")
    return _under_way(progress)


def _under_way(progress: Progress) -> Phase:
    """What its ranks say."""
    if progress.state == "starting":
        built = f": {progress.built} of {progress.engines}" if progress.engines else ""
        return Phase(progress.message, f"starting: {progress.message}{built}", progress.since)
    if progress.state == "running" and progress.draining is not None:
        return Phase("draining", f"draining: {progress.draining}")
    if progress.state == "running":
        return Phase("running", f"running: {progress.message}" if progress.message else "running")
    return ENDING


def _after(attempt: int, end: AttemptEnd) -> Phase:
    """The ranks are gone, and the supervisor decides what follows."""
    if end.reason in ("finished", "drained"):
        return ENDING
    return Phase("after", f"attempt {attempt} has ended: {end.reason}")


def _ended(picture: Picture) -> str:
    state, end = picture.state.lower(), picture.end
    if end is None or end.reason == "finished":
        return state
    # What failed has a text of its own, which may be long.
    return f"{state}: {end.reason}: {end.message.partition(chr(10))[0]}"


def _waiting(picture: Picture) -> Phase:
    """In Slurm's queue, at first or between two attempts."""
    job, ended = picture.job, picture.end
    since = picture.created if ended is None else ended.time
    if job is None or job.reason is None:
        return Phase(picture.state, "pending", since)
    words = [f"pending: {job.reason}"]
    if job.position is not None:
        words.append(f"place {job.position} of {job.waiting} that wait in {job.partition}")
    if job.starts < math.inf:
        words.append(f"expected to start {clock(job.starts, picture.now)}")
    return Phase(f"pending {job.reason}", ", ".join(words), since, why(job.reason))


def facts_of_job(picture: Picture) -> list[str]:
    """Attempts and jobs: what stays as it is for long."""
    facts = []
    if before := [end.reason for end in picture.before.values()]:
        facts.append(f"attempt {picture.attempt}, before it {', '.join(before)}")
    if picture.job_id is not None:
        facts.append(f"job {picture.job_id}")
    return facts


def time_left(job: JobInQueue, now: float) -> float | None:
    """Seconds to the time limit of a job that runs, None without one."""
    return max(0.0, job.ends - now) if job.ends < math.inf else None


def endpoint(picture: Picture) -> str | None:
    """Where the OpenAI API is now, and how to get there from here; None without one."""
    progress = picture.current
    if picture.state != "RUNNING" or progress is None or progress.address is None or progress.state != "running":
        return None
    keys = "" if progress.keys is None else f", key in {progress.keys}"
    return f"OpenAI API at {progress.address}/v1{keys}{_tunnel(progress.address, picture.host)}"


def _tunnel(address: str, host: str | None) -> str:
    """An address that only its own host reaches needs a way there."""
    try:
        parts = urlsplit(address)
        name, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if host in (None, socket.gethostname()) or name not in ("127.0.0.1", "localhost", "::1") or port is None:
        return ""
    return f"; from here by `ssh -N -L {port}:127.0.0.1:{port} {host}`"


def alarms(picture: Picture) -> dict[tuple[object, ...], str]:
    """What somebody should look at, by what it is about: figures in the text may change while it is the same alarm."""
    progress = picture.current
    if progress is None:
        return {}
    found: dict[tuple[object, ...], str] = {}
    if picture.state == "RUNNING" and progress.state == "running" and picture.age_s > SILENT_S:
        found["silent",] = (
            f"no news for {duration(picture.age_s)}: the run, or the file system of its directory, is stuck"
        )
    if progress.checkpoint_failure is not None:
        found["checkpoint",] = f"not saved: {progress.checkpoint_failure}"
    if progress.disk is not None:
        found["disk",] = f"disk: {progress.disk}"
    if progress.skipped:
        stopped = "; training has stopped (training.on_nan)" if progress.training_stopped else ""
        found["skipped", progress.training_stopped] = (
            f"{progress.skipped} more steps skipped: their gradients are not finite{stopped}"
        )
    if progress.lost_losses:
        found["losses",] = f"the loss of {progress.lost_losses} micro-batches is not finite"
    for drift in progress.drift:
        told = f"drift: stage {drift.stage} {drift.kind} takes {drift.ratio:.2g} x its predicted time"
        found["drift", drift.stage, drift.kind] = told
    for slow in progress.stragglers:
        told = f"slow: node {slow.node} stage {slow.stage}, {slow.ratio:.2g} x the others' time"
        found["slow", slow.node, slow.stage] = told
    return found


def milliseconds(value: float) -> str:
    """Short: three digits are enough to watch."""
    if value >= 1000:
        return f"{value / 1e3:.3g} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def duration(seconds: float) -> str:
    """As `8 s`, `1:23`, `2:03:11` or `3 d 2:03:11`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    short = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days} d {short}" if days else short


def clock(moment: float, now: float) -> str:
    """A time of day, with the date unless that is today's."""
    then = time.localtime(moment)
    return time.strftime("at %H:%M" if then[:3] == time.localtime(now)[:3] else "on %m-%d at %H:%M", then)
