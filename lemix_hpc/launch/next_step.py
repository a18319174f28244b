"""What follows when an attempt of a run has ended. Pure: it asks nobody and does nothing."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lemix_hpc.records.attempts import AttemptEnd, EndReason


class Next(enum.Enum):
    """`DONE`: the run, or this job's part in it, is over. `GIVE_UP`: it is over, and has failed."""

    DONE = "done"
    RESTART = "restart"
    REQUEUE = "requeue"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Situation:
    """How things are after an attempt.

    `fruitless`: attempts in a row, up to this one, in which no more was served or trained than before; `restarts`: how many
    of them are borne. `mistake`: a rank raised a UserError, which would come again. `requeue`: Slurm may start the job again;
    `renewed`: another job goes on with the run after this one. `stopped`: a user wants the run to end. `ending`: Slurm is
    ending the job.
    """

    end: AttemptEnd
    fruitless: int = 0
    restarts: int = 3
    mistake: bool = False
    requeue: bool = False
    renewed: bool = False
    stopped: bool = False
    ending: bool = False


Step = tuple[Next, str]
"""What to do, and why."""


AGAIN = "another attempt would end in the same way"
FOR_GOOD: dict[EndReason, str] = {
    "unsaved": "`lemix resume` trains what is in no checkpoint again, and saves it",
    "diverged": AGAIN,
}
"""Ends of runs that came to them by themselves, and failed."""


def decide(now: Situation) -> Step:
    """What to do now."""
    reason = now.end.reason
    if reason in ("finished", "drained", "cancelled"):
        return Next.DONE, now.end.message
    if reason in FOR_GOOD:
        return Next.GIVE_UP, FOR_GOOD[reason]
    if now.ending:
        # A job that Slurm requeues itself, after a preemption or a failed node, needs nobody who asks for it.
        return Next.DONE, "the job is ending"
    if reason == "time-limit" and now.fruitless > now.restarts:
        return Next.GIVE_UP, f"{now.fruitless} attempts in a row ended without progress"
    if reason in ("time-limit", "preempted"):
        return (Next.DONE, "the run was asked to stop") if now.stopped else _elsewhere(now, Next.DONE)
    return _after_crash(now)


def _after_crash(now: Situation) -> Step:
    if now.stopped:
        return Next.GIVE_UP, "the run was asked to stop"
    if now.mistake:
        return Next.GIVE_UP, AGAIN
    if now.end.reason == "node-failure":
        return _elsewhere(now, Next.GIVE_UP)
    if now.restarts == 0:
        return Next.GIVE_UP, "cluster.restarts is 0"
    if now.fruitless > now.restarts:
        return Next.GIVE_UP, f"{now.fruitless} attempts in a row ended without progress"
    return Next.RESTART, f"{now.restarts - now.fruitless} more without progress are borne"


def _elsewhere(now: Situation, otherwise: Next) -> Step:
    """Go on in another allocation, or do `otherwise`."""
    if now.renewed:
        return Next.DONE, "the next job goes on with the run"
    if now.requeue:
        return Next.REQUEUE, "the run goes on when Slurm starts the job again"
    return otherwise, "`lemix resume` goes on with the run"
