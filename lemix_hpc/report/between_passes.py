"""What serving passes wait for although their stage is free: messages, and the loops of the ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lemix_hpc.records.schema import ServedTask, Span


def handed_on(spans: Iterable[Span]) -> Iterator[float]:
    """Seconds from a batch's end on one stage to its start on the next one, or from when that stage was free, if that was
    later."""
    ends: dict[tuple[int, int, int], float] = {}
    for span, free in passes(spans):
        ends[span.node, span.batch, span.stage] = span.end
        before = ends.get((span.node, span.batch, span.stage - 1))
        if before is not None:
            yield span.start - max(before, free)


def next_token(served: Iterable[ServedTask], spans: Sequence[Span], last_stage: int) -> Iterator[float]:
    """Seconds from a batch's end on the last stage to the start of the next one with its requests on the first stage, or from
    when that was free, if that was later. Only of batches whose requests have all had a token before."""
    first = {task.id: math.inf if task.first_token is None else task.first_token for task in served}
    members: dict[tuple[int, int], list[str]] = defaultdict(list)
    for span in spans:
        if span.kind == "serve" and span.stage == 0:
            members[span.node, span.batch].append(span.task)
    had: dict[str, float] = {}
    # A batch starts behind the ends that it waited for.
    for span, free in passes(spans):
        requests = members[span.node, span.batch]
        if span.stage == 0 and all(span.start > first.get(name, math.inf) for name in requests):
            yield span.start - max(free, *(had.get(name, -math.inf) for name in requests))
        if span.stage == last_stage:
            had |= dict.fromkeys(requests, span.end)


def passes(spans: Iterable[Span]) -> Iterator[tuple[Span, float]]:
    """One span of each serving pass, in the order of their starts, and when what ran before it on its stage had ended [s]."""
    free: dict[tuple[int, int], float] = defaultdict(lambda: -math.inf)
    batch: dict[tuple[int, int], int] = {}
    for span in sorted(spans, key=lambda span: span.start):
        place = span.node, span.stage
        if span.kind == "serve":
            if batch.get(place) == span.batch:
                continue
            batch[place] = span.batch
            yield span, free[place]
        free[place] = max(free[place], span.end)
