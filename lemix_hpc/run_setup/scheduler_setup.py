"""What the policy takes from a recipe, of a run and of a simulated one alike."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lemix_hpc.config.recipe import Engine, Recipe
from lemix_hpc.config.serving_section import Serving
from lemix_hpc.config.walltime import parse_walltime
from lemix_hpc.policy.latency import LatencyModel, Shape
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.policy.placements import DEFAULT, DEFAULT_PACED
from lemix_hpc.policy.rules import SchedulerConfig, Split
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.workload.demand import Demand, Lengths

if TYPE_CHECKING:
    from lemix_hpc.policy.scheduler import Scheduler


TYPICAL_TOKENS = 128
"""What requests are taken to ask for, and to be given, before any has come."""


ANSWERS_IN_TIME = 0.9
"""Where only responses have a limit, decode is paced so that answers up to this quantile of their lengths are within it."""


@dataclass(frozen=True, slots=True)
class Partners:
    """The nodes that train together, in the order of their ring. `every`: steps of a node between two averages. `collective`:
    the engines sum gradients, and messages only say when."""

    mode: Literal["average", "sync"]
    nodes: tuple[int, ...]
    every: int = 1
    collective: bool = False


def make_scheduler(
    recipe: Recipe,
    hardware: Hardware,
    t0: float,
    overhead: float = 0.0,
    end: float | None = None,
    tpot: float = 0.0,
    ttft: float = 0.0,
    drift_limit: float | None = None,
) -> Scheduler:
    """The scheduler of a run of this recipe; `t0`: mean unloaded response [s]; `overhead`: what a response takes besides its
    stages' work, for each pass [s], which is learned from then on. `end`: when nothing may run any more [s], if it is not by
    the recipe. `tpot`, `ttft`: what decode and first tokens are paced to [s], if they are. `drift_limit`: the
    relative error of stage times that raises an alarm, if it is not that of the `hardware`."""
    # The compiler behind it takes a second to load, which stages and most leaders need not wait for.
    from lemix_hpc.policy.scheduler import Scheduler

    stages = recipe.nodes.stages
    limit = hardware.drift_limit if drift_limit is None else drift_limit
    config = scheduler_config(recipe, t0=t0, pieces=hardware.pieces(stages), drift_limit=limit)
    tpot = 0.0 if config.split else tpot  # nodes that only serve are not paced
    config = dataclasses.replace(
        config, overhead=overhead, end=config.end if end is None else end, tpot=tpot, ttft=ttft
    )
    return Scheduler(config, hardware.forecasts(stages), hardware.kinds)


def mean_unloaded_response(latency: LatencyModel, demand: Demand, recipe: Recipe) -> float:
    """T0 in seconds: mean over the interactive requests, or all if there are none, of their predicted time on all stages.
    Without requests that of one with `TYPICAL_TOKENS` in and out, if clients will send some, or else of a training forward."""
    lengths = demand.limited
    if not lengths.count and recipe.serving is not None:
        return sum(latency.request_times(TYPICAL_TOKENS, TYPICAL_TOKENS))
    if lengths.count:
        # Forms are linear in the cached tokens: decode passes take as long as that many with the mean number.
        decode = lengths.passes * sum(latency.forward_times(Shape(1, 1, lengths.mean_read))) if lengths.passes else 0.0
        return _mean_prompt(latency, lengths) + decode / lengths.count
    assert recipe.training is not None, "checked with the recipe"
    return sum(latency.forward_times(Shape.of((recipe.training.sequence_length,) * recipe.training.micro_batch_size)))


def is_paced(recipe: Recipe) -> bool:
    """Whether batches wait until they are due: where requests generate, as those of clients do, and training can have the
    time. Clients are only kept waiting if the recipe says so, or for how long; `policy.pace: none` is for nobody."""
    serving, pace = recipe.serving, recipe.policy.pace
    if serving is None or recipe.training is None or pace == "none":
        return False
    if _calls_come(recipe.engine, serving):
        return pace == "slo" or recipe.slo.tpot_ms is not None
    return serving.mode == "generate"


def placement_of(recipe: Recipe) -> str:
    """The name of the placement: the recipe's, or the one that suits how batches begin."""
    return recipe.policy.placement or (DEFAULT_PACED if is_paced(recipe) else DEFAULT)


def _calls_come(engine: Engine, serving: Serving) -> bool:
    """Whether requests are calls of the OpenAI API, which say themselves how much they generate."""
    from_file = serving.source is not None and serving.source.kind == "openai-batch"
    return engine.serves_http and (serving.http is not None or from_file)


def pace_of(recipe: Recipe, latency: LatencyModel, demand: Demand) -> Pace | None:
    """The limits that decode is paced to, None where it is not: the recipe's, or else the factor that the policy aims at
    times what requests take on an idle node, in the mean, as in T0. Without a limit on the time per token all but the longest
    answers are also to be within the limit on the response, if they are as the requests say."""
    if not is_paced(recipe):
        return None
    lengths = demand.limited
    if not lengths.count:
        lengths = Lengths()
        lengths.add([TYPICAL_TOKENS], [TYPICAL_TOKENS])
    alone = sum(latency.forward_times(Shape(1, 1, lengths.halves / 2 / lengths.count)))
    factor, slo = aim(recipe), recipe.slo
    ttft = factor * _mean_prompt(latency, lengths) if slo.ttft_ms is None else slo.ttft_ms / 1e3
    if slo.tpot_ms is not None:
        return Pace(ttft, slo.tpot_ms / 1e3)
    response = factor * mean_unloaded_response(latency, demand, recipe)
    response = response if slo.response_ms is None else slo.response_ms / 1e3
    longest = lengths.output_at(math.ceil(ANSWERS_IN_TIME * lengths.count) - 1)
    within = (response - ttft) / max(1, longest - 1)
    return Pace(ttft, min(factor * alone, max(within, alone)))


def _mean_prompt(latency: LatencyModel, lengths: Lengths) -> float:
    """What prompts take on all stages [s], in the mean."""
    times = (count * sum(latency.forward_times(Shape.of((prompt,)))) for prompt, count in lengths.prompts.items())
    return sum(times) / lengths.count


def scheduler_config(recipe: Recipe, *, t0: float, pieces: int, drift_limit: float) -> SchedulerConfig:
    """The policy's configuration. `t0`: mean unloaded response [s]; `pieces`: of a training pass on a stage.

    The split of a separated cluster is settled: a number of nodes, or None.
    """
    policy, slo = recipe.policy, recipe.slo
    return SchedulerConfig(
        nodes=recipe.nodes.count,
        placement=placement_of(recipe),
        knobs=policy.knobs,
        release=recipe.training.release if recipe.training else "async",
        training_nodes=training_nodes(recipe),
        lanes=policy.lanes,
        order=policy.order,
        serving_first=policy.serving_first,
        yield_training=policy.yield_training,
        pieces=pieces,
        admission=policy.admission,
        max_hold=policy.max_hold_s,
        t0=t0,
        slo_factor=aim(recipe) if slo.response_ms is None else slo.response_ms / 1e3 / t0,
        end=allocation_end(recipe),
        batch_requests=recipe.engine.max_batch_requests,
        oracle=policy.output_lengths == "oracle",
        seed=recipe.seed,
        recalibrate=policy.recalibrate,
        drift_limit=drift_limit,
        window=slo.completion_window_s,
    )


def allocation_end(recipe: Recipe) -> float:
    """When nothing may run any more where there is no real allocation, in seconds from the start; inf where the recipe does
    not give a reserve."""
    reserve = recipe.policy.drain_reserve_s
    if reserve == "auto" or reserve <= 0:
        return math.inf
    return parse_walltime(recipe.cluster.time) - reserve


def split(recipe: Recipe) -> Split | None:
    """Which nodes serve and which train, where they are separate."""
    return Split.of(recipe.nodes.count, training_nodes(recipe)) if recipe.policy.splits else None


def partners(recipe: Recipe) -> Partners | None:
    """Which nodes learn from each other, and how; None where each keeps its own updates, or only one trains."""
    training, apart = recipe.training, split(recipe)
    nodes = apart.training if apart is not None else range(recipe.nodes.count)
    if training is None or training.across_nodes == "local" or len(nodes) == 1:
        return None
    collective = training.sums == "collective"
    return Partners(training.across_nodes, tuple(nodes), training.average_every, collective)


def aim(recipe: Recipe) -> float:
    """The limit on responses that the policy aims at, in T0: the middle one of the recipe's."""
    factors = sorted(recipe.slo.factors)
    return factors[len(factors) // 2]


def limits_ms(recipe: Recipe) -> dict[str, float]:
    """The limits in milliseconds that a recipe gives."""
    slo = recipe.slo
    limits = {"ttft": slo.ttft_ms, "tpot": slo.tpot_ms, "response": slo.response_ms}
    return {name: limit for name, limit in limits.items() if limit is not None}


def training_nodes(recipe: Recipe) -> int | None:
    """How many nodes of a separated cluster train: given, or the share of training, at least one of each. None: half."""
    given, training, nodes = recipe.policy.training_nodes, recipe.training, recipe.nodes.count
    assert given != "auto", "settled or refused before"
    if given is not None or training is None or training.share is None:
        return given
    return min(max(1, round(nodes * training.share)), nodes - 1)
