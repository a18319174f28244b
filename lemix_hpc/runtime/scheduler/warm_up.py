"""The first seconds of a run that computes: warm every stage up, and measure what requests take on a node of each kind."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.latency import Shape
from lemix_hpc.profiling.blocks import block
from lemix_hpc.profiling.coefficients import CoefficientFile
from lemix_hpc.profiling.estimate import Point, fit_affine
from lemix_hpc.run_setup.scheduler_setup import TYPICAL_TOKENS
from lemix_hpc.runtime.transport.messages import PlaceRequest, WorkSpan
from lemix_hpc.workload.demand import Demand

REPEATS = 3
SHORTEST = 8
DECODED = 4
DIFFERENT = 199
"""Probes of different tokens: a cache of prefixes must not save their work. Below the size of any vocabulary."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A request that nobody waits for: its number is negative."""

    node: int
    request: PlaceRequest
    measured: bool


def kinds_of(devices: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """The kind of each node by the `devices` of its stages: nodes with the same ones are alike. Kinds are numbered in order."""
    known = list(dict.fromkeys(map(tuple, devices)))
    return tuple(known.index(tuple(stages)) for stages in devices)


def warm_up(
    recipe: Recipe,
    demand: Demand,
    context: int | None,
    kinds: Sequence[int],
    run: Callable[[Sequence[Probe]], tuple[float, Sequence[WorkSpan]]],
) -> list[ProbeTimes]:
    """What probes took, for each kind of nodes, on the first of them. `kinds`: that of each node. `run` runs probes side by
    side, and returns when they were sent [s] and their passes."""
    times = [ProbeTimes(recipe.nodes.stages) for _ in range(max(kinds) + 1)]
    firsts = [kinds.index(kind) for kind in range(len(times))]
    for together in probes(recipe, demand, context, firsts):
        sent, spans = run(together)
        for probe in together:
            times[kinds[probe.node]].add(probe, sent, [span for span in spans if span.node == probe.node])
    return times


def probes(
    recipe: Recipe, demand: Demand, context: int | None, measured: Sequence[int] = (0,)
) -> Iterator[list[Probe]]:
    """Requests to run, one list after the other, of which those of a list run side by side: each length once on all nodes, then
    some times on the nodes to be `measured`, one at a time, so that nothing else is under way.

    Lengths double from `SHORTEST` to what the run will need at most, prompt and output or a micro-batch's sequence, within
    `context`, the tokens that the engine takes. Where requests generate, each probe also decodes a few tokens.
    """
    training = recipe.training
    clients = recipe.serving is not None and recipe.serving.http is not None
    generate = clients or demand.generates
    longest = max(1, demand.longest, training.sequence_length if training else 1, 2 * TYPICAL_TOKENS if clients else 1)
    if context is not None:
        longest = min(longest, context - DECODED * generate)
    if recipe.engine.has_scheduler:
        # It cuts longer prompts, and then passes are not what is measured.
        longest = min(longest, recipe.engine.max_batch_tokens)
    lengths = []
    length = min(SHORTEST, longest)
    while length < longest:
        lengths.append(length)
        length *= 2
    lengths.append(longest)
    numbers = itertools.count(1)

    def probe(node: int, length: int, *, measured: bool) -> Probe:
        number = next(numbers)
        tokens = [number % DIFFERENT] * length
        request = PlaceRequest(-number, length, DECODED if generate else 0, tokens, key=0.0)
        return Probe(node, request, measured)

    for length in lengths:
        yield [probe(node, length, measured=False) for node in range(recipe.nodes.count)]
    for node in measured:
        for length in lengths * REPEATS:
            yield [probe(node, length, measured=True)]


class ProbeTimes:
    """Collects what the probes took, on each stage and besides."""

    def __init__(self, stages: int) -> None:
        self._points: list[list[Point]] = [[] for _ in range(stages)]
        self._besides: list[float] = []

    def add(self, probe: Probe, sent: float, spans: Sequence[WorkSpan]) -> None:
        """A probe sent at `sent` [s], and its passes on all stages: on each its prompt, then one token at a time."""
        if not probe.measured:
            return
        prompt = probe.request.prompt
        for stage, points in enumerate(self._points):
            passes = sorted((span.start, span.end) for span in spans if span.stage == stage)
            for done, (start, end) in enumerate(passes):
                shape = Shape.of((prompt,)) if done == 0 else Shape.of((1,), (prompt + done - 1,))
                points.append(Point(shape, end - start))
        work = sum(span.end - span.start for span in spans)
        self._besides.append((max(span.end for span in spans) - sent - work) / max(1, probe.request.output))

    @property
    def overhead(self) -> float:
        """Seconds of a response, for each token, that no stage works on it: the median, messages above all."""
        return max(0.0, statistics.median(self._besides))

    def coefficients(self, *, hardware: str, model: str, dtype: str, layers: int) -> CoefficientFile:
        """The fitted file. Backward passes are taken as twice the forward until they are measured."""
        fitted = [fit_affine(points) for points in self._points]
        longest = max(point.shape.tokens for points in self._points for point in points)
        times = [{"forward": block(form)} for form in fitted]
        content = {
            "schema": 1,
            "form": "affine-quadratic",
            "hardware": hardware,
            "model": model,
            "dtype": dtype,
            "layers": layers,
            "stages": times,
            "valid": {"max_length": longest},
            "provenance": {"source": "measured in the first seconds of this run, on the first node of its kind"},
        }
        return CoefficientFile.model_validate(content)
