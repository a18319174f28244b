"""How an attempt goes on where the last one ended: its weights, and what is still to be served, under which names."""

from __future__ import annotations

import dataclasses
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lemix_hpc.checkpoints.resumption import NodeStart, Resumption, check_model, find_checkpoint
from lemix_hpc.checkpoints.store import CHECKPOINTS, Checkpoint, complete_paths, newest_whole
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.records.attempts import Attempt, AttemptStart, lineage
from lemix_hpc.records.files import patiently
from lemix_hpc.records.inheritance import Inheritance, inherit
from lemix_hpc.records.journal import Accepted
from lemix_hpc.records.reader import read_tasks
from lemix_hpc.records.schema import ServedTask
from lemix_hpc.records.task_chain import chain
from lemix_hpc.workload.tasks import Request

DISK_TIMEOUT_S = 600.0
"""How long an attempt waits for a disk that takes nothing."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where the stages of an attempt start. `checkpoint`: its directory, None for fresh weights; `continued` if it is of this
    very run, whose numbers go on. `starts`: how far each node is; those that are missing are at 0."""

    checkpoint: Path | None = None
    continued: bool = False
    starts: Mapping[int, NodeStart] = field(default_factory=dict)

    @property
    def resumption(self) -> Resumption | None:
        """Raises UserError if the checkpoint cannot be read."""
        return None if self.checkpoint is None else Resumption(Checkpoint.read(self.checkpoint), self.continued)


def take_over(recipe: Recipe, attempt: Attempt) -> tuple[Beginning, Inheritance]:
    """Find what counts of the attempts before this one, and fence them off.

    Raises OSError, and UserError for broken files and for a checkpoint of another model.
    """
    line = lineage(attempt.run_dir)
    own, problems = _own_checkpoint(recipe, attempt) if line else (None, [])
    inherited = inherit(attempt.run_dir, _versions(recipe, own) if recipe.engine.computes else None)
    told = {message for before in line if (start := before.started) is not None for message in start.damage}
    damage = [message for message in (*problems, *inherited.damage) if message not in told]
    for message in damage:
        print(f"damaged: {message}", flush=True)
    start = AttemptStart(
        time=time.time(),
        host=socket.gethostname(),
        job=os.environ.get("SLURM_JOB_ID"),
        inherits=inherited.last.number if inherited.last is not None else None,
        journal_part=inherited.journal_part,
        journal_bytes=inherited.journal_bytes,
        tasks=inherited.tasks,
        clock=inherited.clock,
        checkpoint=own.path.name if own is not None else None,
        versions=inherited.versions,
        damage=damage,
    )
    patiently(lambda: attempt.start(start), DISK_TIMEOUT_S)
    beginning = _beginning(recipe, own, inherited)
    elsewhere = None if beginning.continued else beginning.checkpoint
    return beginning, dataclasses.replace(inherited, elsewhere=elsewhere)


def _beginning(recipe: Recipe, own: Checkpoint | None, inherited: Inheritance) -> Beginning:
    if own is not None:
        resumption = Resumption(own, continued=True)
        starts = {node: resumption.start(node) for node in range(recipe.nodes.count)}
        print(f"training goes on from {own.path}", flush=True)
        return Beginning(own.path, True, starts)
    if not recipe.engine.computes:
        return Beginning(starts={node: NodeStart(version) for node, version in inherited.versions.items()})
    resume = recipe.training.resume if recipe.training is not None else None
    if resume is None:
        return Beginning()
    found = find_checkpoint(resume)
    check_model(found, model_config(recipe.model))
    print(f"training goes on from {found.path}", flush=True)
    return Beginning(found.path)


def _own_checkpoint(recipe: Recipe, attempt: Attempt) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of this run, and what is wrong with newer ones. These are put aside: nothing will be built
    on them."""
    if recipe.training is None or not recipe.engine.computes:
        return None, []
    directory = attempt.run_dir / CHECKPOINTS
    newest, problems = newest_whole(directory)
    paths = complete_paths(directory)
    for path in paths if newest is None else paths[paths.index(newest.path) + 1 :]:
        path.rename(path.with_name(f"damaged-{path.name}-{attempt.number}"))
    taken = (
        "an older checkpoint is taken"
        if newest is not None
        else "there is no older checkpoint, and training starts over"
    )
    return newest, [f"{problem}; {taken}" for problem in problems]


def oldest_versions(recipe: Recipe, run_dir: Path) -> dict[int, int] | None:
    """The weight version of each node behind which the run's training never goes back, unless it starts over; None if there are
    no weights that it could go back to."""
    if not recipe.engine.computes:
        return None
    oldest = next(iter(complete_paths(run_dir / CHECKPOINTS)), None)
    try:
        return _versions(recipe, None if oldest is None else Checkpoint.read(oldest))
    except UserError:
        return {}  # It is damaged: nothing is known.


def _versions(recipe: Recipe, own: Checkpoint | None) -> dict[int, int]:
    """The weight version of each node in a checkpoint."""
    return {} if own is None else Resumption(own, continued=True).versions(recipe.nodes.count)


def remaining(requests: Sequence[Request], inherited: Inheritance) -> Iterator[Request]:
    """The requests that have no outcome yet. Those that came before keep their arrival; the next turn of a conversation comes
    when its author has thought since the answer."""
    over = inherited.over
    came = {accepted.id: accepted.time for accepted in inherited.waiting.values()}
    for request in requests:
        if request.id in over:
            continue
        if request.id in came:
            yield dataclasses.replace(request, arrival=came[request.id], after=None)
        elif request.after is not None and request.after in over:
            yield dataclasses.replace(request, arrival=_turn(request, over[request.after]), after=None)
        else:
            yield request


def poisonous(inherited: Inheritance) -> list[ServedTask]:
    """Requests that may have broken two attempts in a row, and will not be tried again."""
    return [lost(accepted) for number, accepted in inherited.waiting.items() if number in inherited.poison]


def lost(accepted: Accepted) -> ServedTask:
    """The outcome of a request that came, and that nobody will answer."""
    number, service = accepted.number, accepted.service
    return ServedTask(accepted.id, "lost", accepted.time, accepted.prompt_tokens, number=number, service=service)


def without_lost(inherited: Inheritance, lost: Sequence[ServedTask]) -> Inheritance:
    """The inheritance once these have their outcome."""
    gone = {task.number for task in lost}
    waiting = {number: accepted for number, accepted in inherited.waiting.items() if number not in gone}
    return dataclasses.replace(inherited, served=[*inherited.served, *lost], waiting=waiting)


def with_over(inherited: Inheritance, requests: Sequence[Request]) -> Inheritance:
    """The inheritance once it knows which requests have their outcome: what it has itself is not yet in each `tasks.jsonl`.
    Raises UserError if one of these is missing or broken."""
    if inherited.last is None or not requests:
        return inherited
    run_dir = inherited.last.run_dir
    ids = {request.id for request in requests}
    tasks = itertools.chain(read_tasks(chain(lineage(run_dir))), inherited.served)
    over = {task.id: task.finished for task in tasks if isinstance(task, ServedTask) and task.id in ids}
    return dataclasses.replace(inherited, over=over)


def _turn(request: Request, finished: float | None) -> float:
    return request.arrival if finished is None else finished + request.think_s
