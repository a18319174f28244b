"""How an attempt goes on where the last one ended: what is still to be served, and under which names."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import chain

from lemix_hpc.records.attempts import Attempt, AttemptStart
from lemix_hpc.records.inheritance import Inheritance, inherit
from lemix_hpc.records.schema import ServedTask
from lemix_hpc.workload.tasks import Request


def take_over(attempt: Attempt) -> Inheritance:
    """Find what counts of the attempts before this one, and fence them off. Raises OSError, UserError for broken files."""
    inherited = inherit(attempt.run_dir, {})
    start = AttemptStart(
        time=time.time(),
        host=socket.gethostname(),
        job=os.environ.get("SLURM_JOB_ID"),
        inherits=inherited.last.number if inherited.last is not None else None,
        journal_bytes=inherited.journal_bytes,
        clock=inherited.clock,
    )
    attempt.start(start)
    return inherited


def remaining(requests: Sequence[Request], inherited: Inheritance) -> Iterator[Request]:
    """The requests that have no outcome yet. Those that came before keep their arrival; the next turn of a conversation comes
    when its author has thought since the answer."""
    over = {task.id: task for task in inherited.served}
    came = {accepted.id: accepted.time for accepted in inherited.waiting.values()}
    for request in requests:
        if request.id in over:
            continue
        before = over.get(request.after) if request.after is not None else None
        if request.id in came:
            yield dataclasses.replace(request, arrival=came[request.id], after=None)
        elif before is not None:
            yield dataclasses.replace(request, arrival=_turn(request, before), after=None)
        else:
            yield request


def lost(requests: Sequence[Request], inherited: Inheritance) -> list[ServedTask]:
    """Requests that came and will not be tried again: those of clients, who have hung up, and those that may have broken two
    attempts in a row."""
    known = frozenset(request.id for request in requests)
    return [
        ServedTask(accepted.id, "lost", accepted.time, accepted.prompt_tokens, number=number)
        for number, accepted in inherited.waiting.items()
        if number in inherited.poison or accepted.id not in known
    ]


def without_lost(inherited: Inheritance, lost: Sequence[ServedTask]) -> Inheritance:
    """The inheritance once these have their outcome."""
    gone = {task.number for task in lost}
    waiting = {number: accepted for number, accepted in inherited.waiting.items() if number not in gone}
    return dataclasses.replace(inherited, served=list(chain(inherited.served, lost)), waiting=waiting)


def _turn(request: Request, before: ServedTask) -> float:
    return request.arrival if before.finished is None else before.finished + request.think_s
