"""`lemix simulate`: a recipe, run in simulated time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.policy.events import Event
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.profiling.coefficients import CoefficientFile, save_coefficients
from lemix_hpc.profiling.hardware import Hardware, load_hardware
from lemix_hpc.records.reader import RunRecords
from lemix_hpc.records.schema import COEFFICIENTS, LearnedTimes, RunFacts, ServedTask
from lemix_hpc.records.writer import Recorder
from lemix_hpc.report import metrics
from lemix_hpc.report.build import summarise, write_report
from lemix_hpc.report.classes import of_class
from lemix_hpc.run_setup.memory_limits import StageRoom, memory_use
from lemix_hpc.run_setup.scheduler_setup import (
    aim,
    allocation_end,
    limits_ms,
    make_scheduler,
    mean_unloaded_response,
    pace_of,
    placement_of,
)
from lemix_hpc.run_setup.training_feed import TrainingFeed, feed_of
from lemix_hpc.simulator import to_records as result
from lemix_hpc.simulator.cluster_state import ClusterState, follow, make_requests
from lemix_hpc.simulator.event_trace import event_trace
from lemix_hpc.simulator.from_recipe import make_believed_times, make_config, make_times_of
from lemix_hpc.simulator.memory_limits import rooms, stage_memory_of, used
from lemix_hpc.simulator.simulator import run_simulation
from lemix_hpc.workload.load import Workload, load_workload
from lemix_hpc.workload.tasks import Request


@dataclass(frozen=True)
class Simulated:
    """What a simulated run has left.

    `recipe`: what was run, its split of the nodes settled; `notices`: of the workload, such as each line that could not be
    used; `learned`: about stage times, on top of the `coefficients` that forecasts started from; `events`: what the scheduler
    was told, if it was asked for.
    """

    recipe: Recipe
    records: RunRecords
    notices: tuple[str, ...]
    learned: LearnedTimes
    coefficients: CoefficientFile
    events: list[Event]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The report as plain data."""
        return summarise(self.records)

    def write(self, run_dir: Path) -> None:
        """Write the files of a run, and its report."""
        recorder = Recorder(run_dir)
        for stretch in self.records.stretches():
            recorder.work(stretch)
        for served in self.records.served:
            recorder.request(served)
        for trained in self.records.trained:
            recorder.micro_batch(trained)
        for event in self.events:
            recorder.event(event)
        recorder.facts(self.records.facts)
        recorder.learned(self.learned)
        recorder.close()
        save_coefficients(self.coefficients, run_dir / COEFFICIENTS)
        write_report(self.summary, run_dir)


def simulate(recipe: Recipe, *, events: bool = False) -> Simulated:
    """Run a resolved recipe in simulated time: the same recipe gives the same result, byte for byte.

    `events`: keep what the scheduler is told, which takes as long as the run itself.

    A separated cluster whose split is to be found is run with every one. Raises UserError for files that cannot be used,
    and without coefficients.
    """
    if is_open(recipe):
        return best_split(recipe, partial(simulate, events=events))
    hardware, work = load_hardware(recipe), load_workload(recipe)
    t0 = mean_unloaded_response(hardware.reference.latency(recipe.nodes.stages), work.requests.demand, recipe)
    return simulate_workload(recipe, hardware, work, t0, events=events)


def simulate_workload(
    recipe: Recipe, hardware: Hardware, work: Workload, t0: float, *, events: bool = False
) -> Simulated:
    """As `simulate`, with stage times and work that do not come from the recipe; `t0`: mean unloaded response [s]."""
    requests, rejected = _fitting(recipe, work.requests.lengths())
    requests = _in_order(requests)
    pace = pace_of(recipe, hardware.reference.latency(recipe.nodes.stages), work.requests.demand)
    scheduler = make_scheduler(recipe, hardware, t0, **pace._asdict() if pace else {})
    names: list[str] = []
    feed, groups = feed_of(recipe, work, partial(next, itertools.count())), None
    if feed is not None:
        groups = _groups(feed, names)
    config = make_config(recipe, hardware, endless=feed is not None and feed.total is None, logs=events, pace=pace)
    memory = rooms(recipe, hardware, requests)
    cluster, measured = run_simulation(
        scheduler,
        config,
        make_times_of(recipe, hardware),
        _records_of(requests),
        groups,
        stage_memory_of(memory, requests),
        make_believed_times(recipe, hardware),
    )
    records = RunRecords(
        _facts(recipe, work, hardware, t0, cluster, scheduler, pace, memory),
        result.spans(cluster, [request.id for request in requests] + names),
        rejected + result.served(cluster, requests),
        result.trained(cluster, names, config.rows),
    )
    source = recipe.policy.coefficients or recipe.engine.coefficients
    return Simulated(
        recipe,
        records,
        work.notices,
        LearnedTimes(str(source), recipe.policy.recalibrate, list(scheduler.learned)),
        hardware.believed[0],
        list(event_trace(cluster, config, measured)),
    )


def is_open(recipe: Recipe) -> bool:
    """Whether the split of a separated cluster is to be found."""
    return recipe.policy.splits and recipe.policy.training_nodes == "auto"


def best_split(recipe: Recipe, run: Callable[[Recipe], Simulated]) -> Simulated:
    """The run with the number of training nodes that meets most limits, and of those the one that gets most done."""

    def worth(run: Simulated) -> tuple[float, float]:
        interactive = of_class(run.records.served, "interactive")
        met = metrics.attainment(interactive, aim(recipe) * run.records.facts.t0_s)
        return met or 0.0, run.summary["throughput"]["per_makespan"] or 0.0

    def split(training_nodes: int) -> Simulated:
        policy = recipe.policy.model_copy(update={"training_nodes": training_nodes})
        return run(recipe.model_copy(update={"policy": policy}))

    return max(map(split, range(1, recipe.nodes.count)), key=worth)


def _fitting(recipe: Recipe, requests: Iterable[Request]) -> tuple[list[Request], list[ServedTask]]:
    """Requests that the model has positions for, and the records of the others."""
    context = describe(recipe.model).max_positions if recipe.engine.computes else None
    fitting, others = list[Request](), list[Request]()
    for request in requests:
        fits = context is None or request.prompt_tokens + request.output_tokens <= context
        (fitting if fits else others).append(request)
    return fitting, [ServedTask(r.id, "rejected", r.arrival, r.prompt_tokens, service=r.service) for r in others]


def _records_of(requests: list[Request]) -> Any:
    """Requests that come by themselves first, as the cluster wants them: see `_in_order`."""
    records = make_requests(
        [request.arrival for request in requests],
        [request.prompt_tokens for request in requests],
        [request.output_tokens for request in requests],
        [request.service == "batch" for request in requests],
    )
    place = {request.id: number for number, request in enumerate(requests)}
    turns = [(number, request) for number, request in enumerate(requests) if request.after is not None]
    if turns:
        later = np.array([number for number, _ in turns])
        earlier = np.array([place[request.after] for _, request in turns if request.after is not None])
        follow(records, later, earlier, [request.think_s for _, request in turns])
    return records


def _in_order(requests: list[Request]) -> list[Request]:
    """Later turns of conversations behind all others; a turn after one that was left out comes by itself."""
    known = {request.id for request in requests}
    own = [structs.replace(r, after=None) if r.after not in known else r for r in requests]
    opening = sorted((r for r in own if r.after is None), key=lambda r: r.arrival)
    return opening + [r for r in own if r.after is not None]


def _groups(feed: TrainingFeed, names: list[str]) -> Iterator[list[int]]:
    """The lengths of the micro-batches of each group, whose names are noted as they are taken."""
    while not feed.exhausted and (group := feed.next_group()) is not None:
        names.extend(group.ids)
        yield [micro_batch.length for micro_batch in group.micro_batches]


def _facts(
    recipe: Recipe,
    work: Workload,
    hardware: Hardware,
    t0: float,
    cluster: ClusterState,
    scheduler: Scheduler,
    pace: Pace | None,
    memory: list[list[StageRoom]],
) -> RunFacts:
    latencies, end = hardware.latencies(recipe.nodes.stages), allocation_end(recipe)
    return RunFacts(
        policy=placement_of(recipe),
        engine="simulated",
        nodes=recipe.nodes.count,
        stages=recipe.nodes.stages,
        slo_factors=list(recipe.slo.factors),
        slo_ms=limits_ms(recipe),
        t0_s=t0,
        duration_s=float(cluster.run["now"][0]),
        steps=int(cluster.run["steps"][0]),
        malformed_lines=len(work.left_out),
        outside_range=work.requests.demand.outside(latencies),
        drift=scheduler.drifts,
        stragglers=scheduler.stragglers,
        memory=memory_use(used(memory, cluster.memory)) if memory else None,
        refuses_after_s=end if end < math.inf else None,
        pace_s=pace._asdict() if pace else {},
        completion_window_s=recipe.slo.completion_window_s,
    )
