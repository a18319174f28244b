"""What the policy takes from a recipe."""

import math

import pytest

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.run_setup.scheduler_setup import aim, scheduler_config, training_nodes


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
