"""The highest request rate at which enough requests meet their limit, by bracketing and bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.serving_section import GeneratedSource
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.records.reader import RunRecords
from lemix_hpc.report import metrics
from lemix_hpc.report.classes import of_class
from lemix_hpc.run_setup.scheduler_setup import mean_unloaded_response
from lemix_hpc.studies.recipe_variants import (
    Split,
    with_fixed_requests,
    with_limit,
    with_placement,
    with_rate,
    with_seed,
)
from lemix_hpc.studies.simulated_run import simulate
from lemix_hpc.workload.load import load_workload

FIRST, LOWEST, HIGHEST = 0.5, 1 / 128, 64.0
"""The rates that are tried first, at least and at most, in parts of the bound; batches that generate do many times that."""


@dataclass(frozen=True)
class Target:
    """What a rate must hold: this share of requests within `slo` T0 (None: within all limits in milliseconds that the recipe
    gives), as a mean over the seeds."""

    slo: float | None
    attainment: float
    seeds: tuple[int, ...]
    tolerance: float
    """Of the rate that is found, relative."""


@dataclass(frozen=True)
class Capacity:
    """`rate` holds, in requests per second; `attainment` and `rate` are those of the lowest rate where even that `misses`.

    `above`: where the highest rate that was tried `holds`, so that the capacity may be higher. `bound`: N S / T0, what
    the stages could do if they never idled, served one request at a time, and trained on nothing.
    """

    policy: str
    verdict: Literal["found", "misses", "holds"]
    rate: float
    attainment: float
    bound: float
    tried: int

    @property
    def share_of_bound(self) -> float:
        """0..1, more where requests share batches."""
        return self.rate / self.bound


@dataclass(frozen=True)
class Search:
    """Searches for the capacity of a policy: a function that other processes can be sent."""

    recipe: Recipe
    target: Target
    split: Split = None

    def __call__(self, policy: str) -> Capacity:
        recipes = self.recipes(policy)
        bound = bound_of(recipes)
        tried: dict[float, float] = {}

        def holds(rate: float) -> bool:
            tried[rate] = self._attainment(recipes, rate)
            return tried[rate] >= self.target.attainment

        low, high = _bracket(holds, bound)
        while low > 0.0 and high < math.inf and high - low > self.target.tolerance * low:
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        verdict: Literal["found", "misses", "holds"] = (
            "misses" if low == 0.0 else "holds" if high == math.inf else "found"
        )
        rate = low or high
        return Capacity(policy, verdict, rate, tried[rate], bound, len(tried))

    def recipes(self, policy: str) -> list[Recipe]:
        """The recipe for every seed, with as many requests at any rate. Raises UserError where the policy does not fit."""
        aimed = with_placement(self.recipe, policy, self.split)
        if self.target.slo is not None:
            aimed = with_limit(aimed, self.target.slo)
        return [with_fixed_requests(with_seed(aimed, seed)) for seed in self.target.seeds]

    def _attainment(self, recipes: Sequence[Recipe], rate: float) -> float:
        met = []
        for recipe in recipes:
            records = simulate(with_rate(recipe, rate)).records
            met.append(self._met(records) or 0.0)
        return sum(met) / len(met)

    def _met(self, records: RunRecords) -> float | None:
        interactive, facts = of_class(records.served, "interactive"), records.facts
        if self.target.slo is not None:
            return metrics.attainment(interactive, self.target.slo * facts.t0_s)
        return next(reversed(metrics.attainments(interactive, facts.slo_ms).values()))


def bound_of(recipes: Sequence[Recipe]) -> float:
    """N S / T0 in requests per second, as the rate of the source; T0 is each node's own, and a mean over the recipes."""
    return sum(map(_bound, recipes)) / len(recipes)


def _bound(recipe: Recipe) -> float:
    hardware, demand, stages = load_hardware(recipe), load_workload(recipe).requests.demand, recipe.nodes.stages
    t0 = [mean_unloaded_response(latency, demand, recipe) for latency in hardware.latencies(stages)]
    return sum(stages / t0[kind] for kind in hardware.kinds) / _busy_part(recipe)


def _busy_part(recipe: Recipe) -> float:
    """The part of the time in which a source has the rate that it is given with."""
    source = recipe.serving.source if recipe.serving else None
    bursty = isinstance(source, GeneratedSource) and source.kind == "bursty"
    return source.on_s / (source.on_s + source.off_s) if bursty and isinstance(source, GeneratedSource) else 1.0


def _bracket(holds: Callable[[float], bool], bound: float) -> tuple[float, float]:
    """A rate that holds and one that does not, at most twice as high; 0 or inf where there is none."""
    rate = FIRST * bound
    if holds(rate):
        while rate < HIGHEST * bound:
            rate *= 2
            if not holds(rate):
                return rate / 2, rate
        return rate, math.inf
    while rate > LOWEST * bound:
        rate /= 2
        if holds(rate):
            return rate, 2 * rate
    return 0.0, rate
