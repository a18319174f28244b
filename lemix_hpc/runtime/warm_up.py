"""The first seconds of a run without a coefficient file: warm every stage up, and measure the first node's stage times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lemix_hpc.policy.latency import Shape
from lemix_hpc.profiling.blocks import block
from lemix_hpc.profiling.coefficients import CoefficientFile
from lemix_hpc.profiling.estimate import Point, fit_affine
from lemix_hpc.runtime.messages import PlaceRequest, WorkSpan

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


def probes(nodes: int, longest: int, *, generate: bool) -> Iterator[Probe]:
    """Requests to run one after the other: each length once on every node, then some times on the first one alone.

    Lengths double from `SHORTEST` to `longest`; where requests generate, each probe also decodes a few tokens.
    """
    lengths = []
    length = min(SHORTEST, longest)
    while length < longest:
        lengths.append(length)
        length *= 2
    lengths.append(longest)
    number = 0
    for node, measured in [(n, False) for n in range(nodes)] + [(0, True)] * REPEATS:
        for length in lengths:
            number -= 1
            tokens = [-number % DIFFERENT] * length
            request = PlaceRequest(number, length, DECODED if generate else 0, tokens, key=0.0)
            yield Probe(node, request, measured)


class StageTimes:
    """Collects what the probes took on each stage, and fits it."""

    def __init__(self, stages: int) -> None:
        self._points: list[list[Point]] = [[] for _ in range(stages)]
        self._passes: dict[tuple[int, int], int] = {}

    def add(self, probe: Probe, span: WorkSpan) -> None:
        """One pass of a probe on one stage: its prompt, then one token at a time."""
        done = self._passes.get((probe.request.task, span.stage), 0)
        self._passes[probe.request.task, span.stage] = done + 1
        prompt = probe.request.prompt
        shape = Shape.of((prompt,)) if done == 0 else Shape.of((1,), (prompt + done - 1,))
        if probe.measured:
            self._points[span.stage].append(Point(shape, span.end - span.start))

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
