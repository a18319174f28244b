"""Requests are tasks by number in the runtime and strings in vLLM, which adds to them on the way."""

from __future__ import annotations

import re

_TASK = re.compile(r"lemix-(-?\d+)")


def request_id(task: int) -> str:
    """What vLLM is told."""
    return f"lemix-{task}"


def task_of(request_id: str) -> int:
    """The task behind a request id of vLLM's, such as `cmpl-lemix-7-0-1a2b3c4d`."""
    found = _TASK.search(request_id)
    if found is None:
        raise ValueError(f"{request_id!r} is not a task of this run")
    return int(found[1])
