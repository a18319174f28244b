"""The live view for programs: a picture of a run as plain data."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lemix_hpc.cli.live.picture import Picture
from lemix_hpc.cli.live.words import alarms, phase


def as_data(picture: Picture) -> dict[str, Any]:
    """`progress` has the fields of `progress.json`, `job` what Slurm says; each is null where nothing is known. Times are in
    seconds since the epoch."""
    now = phase(picture)
    return {
        "id": picture.name,
        "state": picture.state,
        "time": picture.now,
        "created": picture.created,
        "doing": now.words,
        "since": now.since,
        "hint": now.hint,
        "alarms": list(alarms(picture).values()),
        "attempt": picture.attempt,
        "attempts_ended": [msgspec.to_builtins(end) for end in picture.ends if end is not None],
        "host": picture.host,
        "job": picture.job_id,
        "queue": None if picture.job is None else _known(msgspec.to_builtins(picture.job)),
        "progress": None if picture.current is None else msgspec.to_builtins(picture.current),
        "memory": None if picture.memory is None else msgspec.to_builtins(picture.memory),
    }


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: what Slurm does not know is null."""
    return {name: None if value in (math.inf, "") else value for name, value in fields.items()}
