"""How much work a recipe makes: an amount that no run can hold is told before anything tries to make it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lemix_hpc.config.problem import Problem
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.section import LONGEST_S
from lemix_hpc.config.serving_section import GeneratedSource

MOST_REQUESTS = 5_000_000
"""They are drawn before a run begins, and stay in memory: some GB."""
MOST_MICRO_BATCHES = 1_000_000_000
MOST_TOKENS_OF_A_MICRO_BATCH = 10_000_000
MOST_RANKS_HERE = 1_024
"""On one machine. More are a mistake, and would take it down."""


def check_amounts(recipe: Recipe) -> Iterator[Problem]:
    """What is too much of something."""
    yield from _check_requests(recipe)
    yield from _check_training(recipe)
    engine = recipe.engine
    if engine.has_scheduler and engine.max_batch_tokens < engine.max_batch_requests:
        yield Problem(
            ("engine", "max_batch_tokens"),
            f"{engine.max_batch_tokens} is less than engine.max_batch_requests, which is {engine.max_batch_requests}, and "
            f"{engine.kind} takes at least a token of each request; raise one or lower the other",
        )


def check_ranks_here(recipe: Recipe) -> Iterator[Problem]:
    """Of a run on this machine alone."""
    ranks = recipe.nodes.count * (recipe.nodes.stages + 1)
    if ranks > MOST_RANKS_HERE:
        yield Problem(
            ("nodes", "count"),
            f"makes {ranks} ranks, nodes.count x (nodes.stages + 1), and at most {MOST_RANKS_HERE} are started on one "
            "machine; take --cluster slurm, or `lemix simulate`",
        )


def requests_made(recipe: Recipe) -> float | None:
    """How many requests a generated workload has; None of another one."""
    source = recipe.serving.source if recipe.serving is not None else None
    if not isinstance(source, GeneratedSource):
        return None
    duration, wanted = source.duration_s, source.requests
    by_time = math.inf if duration is None else source.rate * _share_of_time(source) * duration
    return min(by_time, math.inf if wanted is None else wanted)


def _check_requests(recipe: Recipe) -> Iterator[Problem]:
    source = recipe.serving.source if recipe.serving is not None else None
    made = requests_made(recipe)
    if not isinstance(source, GeneratedSource) or made is None:
        return
    rate = source.rate * _share_of_time(source)
    duration, wanted = source.duration_s, source.requests
    if made > MOST_REQUESTS:
        how = f"{wanted} requests" if made == wanted else f"{rate:g} requests/s x {duration:g} s"
        yield Problem(
            ("serving", "source"),
            f"{how} make {made:.3g} requests, and a run takes at most {MOST_REQUESTS}; lower `rate` or `duration_s`, or "
            "give `requests`",
        )
    elif duration is None and wanted is not None and wanted > rate * LONGEST_S:
        yield Problem(
            ("serving", "source"),
            f"{wanted} requests at {rate:g} requests/s would come over {wanted / rate:.3g} s; raise `rate`, or give "
            "`duration_s`",
        )


def _share_of_time(source: GeneratedSource) -> float:
    """In which requests come."""
    return source.on_s / (source.on_s + source.off_s) if source.kind == "bursty" else 1.0


def _check_training(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    if training is None:
        return
    tokens = training.micro_batch_size * training.sequence_length
    if tokens > MOST_TOKENS_OF_A_MICRO_BATCH:
        yield Problem(
            ("training", "micro_batch_size"),
            f"{training.micro_batch_size} sequences of training.sequence_length {training.sequence_length} make "
            f"{tokens:.3g} tokens in one micro-batch, and at most {MOST_TOKENS_OF_A_MICRO_BATCH} are taken; lower one",
        )
    if training.share is not None and training.share / (1.0 - training.share) * MOST_REQUESTS > MOST_MICRO_BATCHES:
        each = training.share / (1.0 - training.share)
        yield Problem(
            ("training", "share"),
            f"{training.share} makes {each:.3g} micro-batches for each request; lower it, or give `micro_batches`",
        )
