"""The first seconds of a run that computes: warm every stage up, and measure what requests take on the first node."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.latency import Shape
from lemix_hpc.profiling.blocks import block
from lemix_hpc.profiling.coefficients import CoefficientFile
from lemix_hpc.profiling.estimate import Point, fit_affine
from lemix_hpc.run_setup.scheduler_setup import TYPICAL_TOKENS
from lemix_hpc.runtime.transport.messages import PlaceRequest, WorkSpan
from lemix_hpc.workload.tasks import Request

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


def probes(recipe: Recipe, requests: Sequence[Request], context: int | None) -> Iterator[Probe]:
    """Requests to run one after the other: each length once on every node, then some times on the first one alone.

    Lengths double from `SHORTEST` to what the run will need at most, prompt and output or a micro-batch's sequence, within
    `context`, the tokens that the engine takes. Where requests generate, each probe also decodes a few tokens.
    """
    training = recipe.training
    clients = recipe.serving is not None and recipe.serving.http is not None
    generate = clients or any(request.output_tokens for request in requests)
    longest = max([request.prompt_tokens + request.output_tokens for request in requests], default=1)
    longest = max(longest, training.sequence_length if training else 1, 2 * TYPICAL_TOKENS if clients else 1)
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
    number = 0
    for node, measured in [(n, False) for n in range(recipe.nodes.count)] + [(0, True)] * REPEATS:
        for length in lengths:
            number -= 1
            tokens = [-number % DIFFERENT] * length
            request = PlaceRequest(number, length, DECODED if generate else 0, tokens, key=0.0)
            yield Probe(node, request, measured)


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
            "provenance": {"source": "measured in the first seconds of this run, on its first node"},
        }
        return CoefficientFile.model_validate(content)
