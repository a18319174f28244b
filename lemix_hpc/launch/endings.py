"""Why an attempt ended, where its scheduler rank could not say so itself."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.launch.deaths import Death, first_death
from lemix_hpc.launch.entry import EXIT_EARLY, GAVE_UP, SCHEDULER_RANK
from lemix_hpc.records.attempts import Attempt, AttemptEnd, EndReason
from lemix_hpc.records.schema import Progress

OWN_FAULT: tuple[EndReason, ...] = ("killed", "out-of-memory", "error", "time-limit")
_DUE_TO = re.compile(r"CANCELLED AT \S+ DUE TO ([A-Z ]+?) \*\*\*")
OF_STATES: dict[str, EndReason] = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "time-limit",
    "DEADLINE": "time-limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node-failure",
    "BOOT_FAIL": "node-failure",
    "OUT_OF_MEMORY": "out-of-memory",
}
"""What it means for a run that its job ended in one of these states."""


def settle(attempt: Attempt, printed: str, status: int, killed: AttemptEnd | None) -> AttemptEnd:
    """Write down why an attempt ended, and return it. Raises OSError.

    `printed`: by its launcher, which exited with `status`; `killed`: why everything was ended from outside, None if it was not.
    """
    end = why(attempt, printed, status, killed)
    if end != attempt.ended:
        attempt.end(end)
    return end


def killed_by_slurm(printed: str) -> AttemptEnd:
    """Why Slurm ends the job, from what it has printed about the step; without a reason there it was scancel."""
    found = _DUE_TO.search(printed)
    if found is None:
        return _end("cancelled", "the job was cancelled")
    reasons: dict[str, EndReason] = {"TIME LIMIT": "time-limit", "NODE FAILURE": "node-failure"}
    return _end(reasons.get(found[1], "preempted"), f"Slurm ended the job: {found[1].lower()}")


def is_mistake(attempt: Attempt) -> bool:
    """Whether a rank failed for a mistake of the user, which another attempt would meet again."""
    return "failed: UserError:" in failures(attempt)


def why(attempt: Attempt, printed: str, status: int, killed: AttemptEnd | None) -> AttemptEnd:
    """What the scheduler rank wrote, unless Slurm or a dead rank explain why it did."""
    told, death = attempt.ended, first_death(printed)
    if told is not None and told.reason in ("finished", "unsaved", "diverged"):
        return told
    if killed is not None:
        # The rank may have taken the signal for one of a user, who wants it to stop.
        return killed if told is None or told.reason == "drained" else told
    early = death is not None and (death.rank, death.code) == (SCHEDULER_RANK, EXIT_EARLY)
    told_by_ranks = failures(attempt)
    # When a rank ends, those that start ranks end the others by the signal with which users ask a run to stop.
    if told is not None and not told_by_ranks and (death is None or early):
        return told
    if is_mistake(attempt) or (told_by_ranks and (death is None or death.signal in (None, GAVE_UP))):
        return _end("error", told_by_ranks.splitlines()[0])
    if death is None:
        said = "; ".join(line for line in printed.splitlines() if "error:" in line) or "no rank left a word"
        return _end("error", f"the launcher ended with status {status}: {said}")
    return _end(_reason(death), str(death))


def _reason(death: Death) -> EndReason:
    if death.node_failure:
        return "node-failure"
    if death.out_of_memory:
        return "out-of-memory"
    return "error" if death.signal is None else "killed"


def fruitless(attempts: Sequence[Attempt], first: int) -> int:
    """How many attempts in a row, up to the last one and from number `first` on, have got no further than those before them.

    One that Slurm ended for others' sake is not counted.
    """
    most, count = 0, 0
    for attempt in attempts:
        done, end = _done(attempt), attempt.ended
        if done > most:
            most, count = done, 0
        elif attempt.number >= first and end is not None and end.reason in OWN_FAULT:
            count += 1
    return count


def _done(attempt: Attempt) -> int:
    """Requests served, micro-batches trained and points measured until its end, by it and those before it."""
    try:
        progress = msgspec.json.decode((attempt.path / "progress.json").read_bytes(), type=Progress)
    except (OSError, *BROKEN_JSON):
        return 0
    return progress.served + progress.trained + progress.measured


def abandoned(attempt: Attempt, states: list[str]) -> AttemptEnd:
    """Of an attempt that nobody saw end, since its whole job did. `states`: of the job so far, in order, by the accounting."""
    known = [OF_STATES[state] for state in states if state in OF_STATES]
    if known:
        return _end(known[-1], f"Slurm ended the job, which was {states[-1]}")
    if is_mistake(attempt) or failures(attempt):
        return _end("error", failures(attempt).splitlines()[0])
    return _end("node-failure", "nobody saw its end; its host has failed, or Slurm started the job again")


def failures(attempt: Attempt) -> str:
    """A line for each rank that failed, empty where there is none."""
    try:
        return attempt.failure.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _end(reason: EndReason, message: str) -> AttemptEnd:
    return AttemptEnd(reason, message, time.time())
