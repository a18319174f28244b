"""Many simulated runs at once: what varies, what is kept of each, and the processes that do it."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.records.reader import Records
from lemix_hpc.studies.recipe_variants import Split, with_placement, with_rate, with_seed, with_share
from lemix_hpc.studies.simulated_run import simulate

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Cell:
    """One run of a grid. None: as in the recipe."""

    policy: str
    rate: float | None
    training_share: float | None
    seed: int


@dataclass(frozen=True)
class Done:
    """A run that is done. `training_nodes`: of `separate`, if it was given or found. `broken`: why it counts in no mean, ""
    if it does."""

    cell: Cell
    training_nodes: int | None
    figures: Figures
    broken: str = ""


class Cells(Protocol):
    """The runs of a grid, and what each of them runs."""

    def cells(self) -> list[Cell]: ...

    def recipe_of(self, cell: Cell) -> Recipe: ...


def cells_of(
    policies: Sequence[str], rates: Sequence[float], shares: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """Each with each, those of the same load one behind the other; no rates or no shares: the recipe's own."""
    loads = itertools.product(rates or (None,), shares or (None,), policies, seeds)
    return [Cell(policy, rate, share, seed) for rate, share, policy, seed in loads]


@dataclass(frozen=True)
class Grid:
    """Every policy with every rate, share of training and seed; no rates or no shares: the recipe's own."""

    recipe: Recipe
    policies: Sequence[str]
    rates: Sequence[float] = ()
    shares: Sequence[float] = ()
    seeds: Sequence[int] = ()
    split: Split = None

    def cells(self) -> list[Cell]:
        """All runs, with the policies of the same load one behind the other."""
        return cells_of(self.policies, self.rates, self.shares, self.seeds or (self.recipe.seed,))

    def recipe_of(self, cell: Cell) -> Recipe:
        """Raises UserError where something does not fit the recipe."""
        recipe = with_seed(with_placement(self.recipe, cell.policy, self.split), cell.seed)
        if cell.training_share is not None:
            recipe = with_share(recipe, cell.training_share)
        return recipe if cell.rate is None else with_rate(recipe, cell.rate)


def run_cell(work: tuple[Cell, Recipe]) -> Done:
    """Simulate a cell by its recipe."""
    cell, recipe = work
    simulated = simulate(recipe)
    nodes = simulated.recipe.policy.training_nodes
    return Done(cell, nodes if isinstance(nodes, int) else None, figures(simulated.records, simulated.summary))


def run_grid(grid: Cells, *, jobs: int) -> Iterator[Done]:
    """All runs of a grid in the order of its cells, whatever the number of processes. Recipes are checked before the first."""
    work = [(cell, grid.recipe_of(cell)) for cell in grid.cells()]
    return spread(run_cell, work, jobs=jobs)


def spread(function: Callable[[Item], Answer], items: Sequence[Item], *, jobs: int) -> Iterator[Answer]:
    """The answers to the items in their order, worked out by several processes.

    The first one is worked out here: it compiles what is not compiled yet, and the other processes find it done.
    """
    if not items:
        return
    yield function(items[0])
    rest = items[1:]
    if jobs == 1 or len(rest) < 2:
        yield from map(function, rest)
        return
    with ProcessPoolExecutor(min(jobs, len(rest)), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(function, rest)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def figures(records: Records, report: dict[str, Any]) -> Figures:
    """The figures of a run that runs are compared by. SLO attainments are `slo_K` for K T0; `limits_met`: of all limits in
    milliseconds at once; `fullest_stage`: the most that any stage had in use of its memory, above 1 where tasks did not ask
    for it. Times are those of interactive requests, if there are any."""
    serving, training, throughput = report["serving"], report["training"], report["throughput"]
    times = serving["classes"].get("interactive", serving)
    duration, memory = records.facts.duration_s, report["memory"]
    return {
        "throughput": throughput["per_makespan"],
        "per_active_node": throughput["per_active_node"],
        **{f"slo_{factor}": share for factor, share in serving["slo"].items()},
        "limits_met": next(reversed(serving["slo_ms"].values()), None),
        "p50_ms": times["response_ms"]["p50"],
        "p99_ms": times["response_ms"]["p99"],
        "ttft_p99_ms": times["ttft_ms"]["p99"],
        "tpot_p99_ms": times["tpot_ms"]["p99"],
        "bubble_rate": report["bubble_rate"],
        "active_nodes": float(len({stretch.node for stretch in records.stretches()})),
        "trained": float(training["finished"]),
        "training_tokens_per_s": training["tokens_per_s"],
        "tokens_per_stage_s": serving["tokens_per_stage_s"],
        "batch_tokens_per_s": serving["classes"].get("batch", {}).get("tokens_per_s"),
        "micro_batches_per_s": training["finished"] / duration if duration > 0.0 else None,
        "steps_per_s": training["steps"] / duration if duration > 0.0 else None,
        "hold_mean_s": training["hold_s"]["mean"],
        "hold_max_s": training["hold_s"]["max"],
        "training_stage_share": training["stage_share"],
        "fullest_stage": max(stage["peak"] for stage in memory["stages"]) if memory else None,
    }
