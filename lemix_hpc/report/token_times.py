"""What the stages' passes tell of tokens: the time between them, and how much stage time prompts, decode and training took."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lemix_hpc.records.schema import ServedTask, Span

WORK = ("prefill", "decode", "forward", "backward", "step")


def between_tokens(served: Iterable[ServedTask], spans: Iterable[Span], last_stage: int) -> Iterator[tuple[str, float]]:
    """Seconds between tokens that follow one another in an answer, of all finished requests, with the request's id: the first
    token came to its leader, and each further one when its pass on the last stage ended."""
    first = {task.id: task.first_token for task in served if task.outcome == "finished" and len(task.output) > 1}
    before = {task: token for task, token in first.items() if token is not None}
    ends = ((span.end, span.task) for span in spans if span.kind == "serve" and span.stage == last_stage)
    for end, task in sorted(ends):
        if end > before.get(task, math.inf):
            yield task, end - before[task]
            before[task] = end


def stage_shares(
    served: Iterable[ServedTask], spans: Sequence[Span], available: float
) -> dict[str, float] | dict[str, None]:
    """Time of all stages in each kind of `WORK` / `available` stage seconds, 0..1; None if there are none.

    A batch counts once, and whole as `prefill` if any request in it had no token before.
    """
    if available <= 0:
        return dict.fromkeys(WORK)
    first = {task.id: math.inf if task.first_token is None else task.first_token for task in served}
    seconds = dict.fromkeys(WORK, 0.0)
    batches: dict[tuple[int, int, int], tuple[float, bool]] = defaultdict(lambda: (0.0, False))
    for span in spans:
        if span.kind == "serve":
            place = span.node, span.stage, span.batch
            prefills = span.end <= first.get(span.task, math.inf)
            batches[place] = span.end - span.start, batches[place][1] or prefills
        elif span.kind in seconds:
            seconds[span.kind] += span.end - span.start
    for duration, prefills in batches.values():
        seconds["prefill" if prefills else "decode"] += duration
    return {kind: time / available for kind, time in seconds.items()}
