"""How an attempt goes on where the last one ended: its weights, and what is still to be served, under which names."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import structs

from lemix_hpc.checkpoints.resumption import NodeStart, Resumption, check_model, find_checkpoint
from lemix_hpc.checkpoints.store import CHECKPOINTS, Checkpoint, complete_paths, newest_whole
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.records.attempts import Attempt, AttemptStart, lineage
from lemix_hpc.records.files import patiently
from lemix_hpc.records.inheritance import Inheritance, inherit
from lemix_hpc.records.journal import Accepted
from lemix_hpc.records.line_chain import acknowledged
from lemix_hpc.records.schema import SAMPLES, ServedTask
from lemix_hpc.runtime.scheduler.arrivals import Arrivals
from lemix_hpc.workload.request_stream import RequestStream
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
    last = inherited.last
    start = AttemptStart(
        time=time.time(),
        host=socket.gethostname(),
        job=os.environ.get("SLURM_JOB_ID"),
        inherits=None if last is None else last.number,
        journal_part=inherited.journal_part,
        journal_bytes=inherited.journal_bytes,
        tasks=inherited.tasks,
        results=None if last is None else inherited.results,
        samples=None if last is None else acknowledged(last.path / SAMPLES),
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


def arrivals_of(requests: RequestStream, inherited: Inheritance) -> Arrivals:
    """The requests that have no outcome yet. Raises UserError, at once or later, if they are not those of before."""
    over, waiting, (newest, _) = inherited.over, inherited.waiting.values(), inherited.newest
    came = {accepted.place: accepted.time for accepted in waiting if accepted.place is not None}
    left = functools.partial(remaining, inherited, came)
    known = min(over.first_gap, max(newest, 0))
    return Arrivals(requests.behind(known), len(requests) - len(over), left)


def remaining(inherited: Inheritance, came: Mapping[int, float], request: Request) -> Request | None:
    """A request of the workload as it comes now; None if it has its outcome. `came`: when those that wait had come [s], by
    place.

    These keep their arrival; the next turn of a conversation comes when its author has thought since the answer.
    """
    place = request.place
    assert place is not None, "those of a workload have places"
    if place == inherited.newest[0] and request.id != inherited.newest[1]:
        raise UserError(
            f"serving.source: request {place + 1} is {request.id[:80]!r}, and was {inherited.newest[1][:80]!r} when it came. "
            "While a run is not over, lines may only be added at the end of its file. Restore it, or start a new run."
        )
    if place in inherited.over:
        return None
    if place in came:
        return structs.replace(request, arrival=came[place], after=None)
    if request.after is not None and place - 1 in inherited.over:
        finished = inherited.turns.get(place)
        arrival = request.arrival if finished is None else finished + request.think_s
        return structs.replace(request, arrival=arrival, after=None)
    return request


def poisonous(inherited: Inheritance) -> list[Accepted]:
    """Requests that may have broken two attempts in a row, and will not be tried again."""
    return [accepted for number, accepted in inherited.waiting.items() if number in inherited.poison]


def lost(accepted: Accepted) -> ServedTask:
    """The outcome of a request that came, and that nobody will answer."""
    number, service = accepted.number, accepted.service
    return ServedTask(accepted.id, "lost", accepted.time, accepted.prompt_tokens, number=number, service=service)


def without(inherited: Inheritance, gone: Sequence[Accepted]) -> Inheritance:
    """The inheritance once these are lost."""
    numbers = {accepted.number for accepted in gone}
    waiting = {number: accepted for number, accepted in inherited.waiting.items() if number not in numbers}
    over = inherited.over.with_all(accepted.place for accepted in gone if accepted.place is not None)
    return dataclasses.replace(inherited, served=[*inherited.served, *map(lost, gone)], waiting=waiting, over=over)
