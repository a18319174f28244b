"""Slurm's spellings of a time limit."""

from __future__ import annotations

import re

_CLOCK = re.compile(r"^(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})$")


def parse_walltime(text: str) -> int:
    """Seconds in a Slurm time limit: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises ValueError with the accepted forms for anything else, and for a limit of zero.
    """
    match = _CLOCK.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no Slurm time limit; write minutes, H:M:S or D-H:M:S, such as 01:30:00")
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = parts + [0] * (3 - len(parts))
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, parts[0], sum(parts[1:])
    total = int(match["days"] or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    if total == 0:
        raise ValueError("a time limit of zero ends the job at once; write minutes, H:M:S or D-H:M:S")
    return total
