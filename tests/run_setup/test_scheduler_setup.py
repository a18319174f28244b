"""What the policy takes from a recipe."""

import math

import pytest

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.serving_section import Http
from lemix_hpc.policy.events import PassMeasured
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.run_setup.scheduler_setup import aim, make_scheduler, pace_of, scheduler_config, training_nodes
from lemix_hpc.workload.demand import Demand
from lemix_hpc.workload.tasks import Request
from tests.conftest import REPOSITORY


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate({"nodes": {"count": 4}, **sections})


@pytest.mark.parametrize(("share", "nodes"), [(0.05, 1), (0.5, 2), (0.75, 3), (0.98, 3)])
def test_separate_nodes_train_in_proportion_to_the_share(share: float, nodes: int) -> None:
    assert training_nodes(recipe(training={"share": share})) == nodes


def test_a_number_of_training_nodes_goes_before_the_share() -> None:
    assert training_nodes(recipe(training={"share": 0.9}, policy={"training_nodes": 1})) == 1
    assert training_nodes(recipe(training={"micro_batches": 10})) is None


def test_the_policy_aims_at_the_middle_limit_or_at_the_response_in_milliseconds() -> None:
    assert aim(recipe(slo={"factors": [10.0, 2.0, 4.0]})) == 4.0
    config = scheduler_config(recipe(slo={"response_ms": 300.0}), t0=0.1, pieces=16, drift_limit=0.2)
    assert config.slo_factor == pytest.approx(3.0)


def test_the_allocation_ends_for_the_policy_only_with_a_reserve() -> None:
    cluster = {"time": "00:10:00"}
    config = scheduler_config(recipe(cluster=cluster), t0=0.1, pieces=16, drift_limit=0.2)
    assert config.end == math.inf
    config = scheduler_config(
        recipe(cluster=cluster, policy={"drain_reserve_s": 60.0}), t0=0.1, pieces=16, drift_limit=0.2
    )
    assert config.end == 540.0


COEFFICIENTS = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
LATENCY = LatencyModel((Affine(0.01, 0.001, 0.0, 0.0001),) * 2, (Affine(0.02, 0.0, 0.0),) * 2)
"""On each of two stages a pass takes 10 ms, 1 ms more for a new token, and 0.1 ms for one in the cache."""
DEMAND = Demand.of((Request("a", 0.0, 10, 12), Request("b", 0.0, 30, 2)))


def generating(**slo: object) -> Recipe:
    source = {"kind": "poisson", "rate": 1.0, "requests": 2}
    serving = {"source": source, "mode": "generate"}
    return recipe(serving=serving, training={"share": 0.5}, policy={"pace": "slo"}, slo=slo)


def test_decode_is_paced_to_the_limits_of_the_recipe() -> None:
    assert pace_of(generating(ttft_ms=500, tpot_ms=50), LATENCY, DEMAND) == Pace(0.5, 0.05)


def test_limits_that_are_not_given_are_multiples_of_what_idle_nodes_take() -> None:
    pace = pace_of(generating(factors=[1.0, 2.0, 10.0], response_ms=10_000), LATENCY, DEMAND)
    assert pace is not None
    assert pace.ttft == pytest.approx(2.0 * 2 * (0.01 + 0.001 * (10 + 30) / 2))
    # One new token on top of 15 cached ones in the mean, and of 30.
    assert pace.tpot == pytest.approx(2.0 * 2 * (0.011 + 0.0001 * (15 + 30) / 2))


def test_without_a_limit_on_tokens_long_answers_are_to_be_within_that_on_responses() -> None:
    """Of a hundred requests the four longest answers do not count."""
    requests = [Request(str(number), 0.0, 10, 1000 if number >= 96 else 101) for number in range(100)]
    pace = pace_of(generating(factors=[4.0], ttft_ms=500, response_ms=5_500), LATENCY, Demand.of(requests))
    assert pace is not None and tuple(pace) == pytest.approx((0.5, 5.0 / 100))
    # An idle node takes 2 x 11 ms and more for a token, and nothing is to be faster.
    least = pace_of(generating(factors=[4.0], ttft_ms=500, response_ms=600), LATENCY, Demand.of(requests))
    assert least is not None and 0.022 < least.tpot < 0.04


def test_only_generation_beside_training_is_paced() -> None:
    paced = generating()
    serving = paced.serving
    assert serving is not None
    scores = {"serving": serving.model_copy(update={"mode": "score"})}
    for update in (scores, {"training": None}):
        assert pace_of(paced.model_copy(update=update), LATENCY, DEMAND) is None


def test_what_clients_ask_for_is_generation_whatever_the_mode() -> None:
    paced = generating()
    assert paced.serving is not None
    clients = paced.serving.model_copy(update={"mode": "score", "http": Http()})
    engine = paced.engine.model_copy(update={"kind": "vllm"})
    served = paced.model_copy(update={"serving": clients, "engine": engine})
    assert pace_of(served, LATENCY, DEMAND) is not None


@pytest.mark.parametrize(
    ("pace", "slo", "own", "clients"),
    [
        (None, {}, True, False),
        (None, {"ttft_ms": 50}, True, False),
        (None, {"tpot_ms": 50}, True, True),
        ("slo", {}, True, True),
        ("none", {"tpot_ms": 50}, False, False),
    ],
)
def test_clients_are_kept_waiting_where_the_recipe_says_for_how_long(
    pace: str | None, slo: dict[str, float], own: bool, clients: bool
) -> None:
    made = generating(**slo)
    made = made.model_copy(update={"policy": made.policy.model_copy(update={"pace": pace})})
    assert (pace_of(made, LATENCY, DEMAND) is not None) == own
    assert made.serving is not None
    serving = made.serving.model_copy(update={"http": Http()})
    called = made.model_copy(update={"serving": serving, "engine": made.engine.model_copy(update={"kind": "vllm"})})
    assert (pace_of(called, LATENCY, DEMAND) is not None) == clients


@pytest.mark.parametrize(("limit", "alarms"), [(None, [(0, "serve")]), (math.inf, [])])
def test_drift_is_told_unless_nobody_could_do_anything_about_it(limit: float | None, alarms: list[object]) -> None:
    made = recipe(nodes={"count": 1, "stages": 2}, engine={"kind": "emulated", "coefficients": COEFFICIENTS})
    scheduler = make_scheduler(made, load_hardware(made), 0.1, drift_limit=limit)
    for number in range(50):
        scheduler.handle(PassMeasured(float(number), 0, 0, "serve", Shape.of([100]), 60.0))
    assert [(drift.stage, drift.kind) for drift in scheduler.drifts] == alarms
