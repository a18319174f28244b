"""How many micro-batches are in flight where the recipe does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.run_setup.in_flight import planned_in_flight
from tests.studies.test_simulated_run import COEFFICIENTS

TOKEN_GB = 16 * 139_264 / 1e9
"""GB that a token takes in training on one of two stages."""
RESTING_GB = 16 * 16 * 202_383_360 / 1e9
LARGEST_GB = 4096 * TOKEN_GB


def planned(training: dict[str, Any], **memory: Any) -> int:
    content = {
        "nodes": {"count": 2, "stages": 2},
        "engine": {"kind": "emulated", "coefficients": str(COEFFICIENTS)},
        "training": {"micro_batches": 8} | training,
        "policy": {"memory": memory},
    }
    recipe = Recipe.model_validate(yaml.safe_load(yaml.safe_dump(content)))
    engine = recipe.engine.model_copy(update={"coefficients": Path(COEFFICIENTS)})
    return planned_in_flight(recipe.model_copy(update={"engine": engine}))


VARIED = {"lengths": "lmsys-chat"}


@pytest.mark.parametrize(
    ("training", "memory", "expected"),
    [
        ({}, {}, 2),
        (VARIED, {}, 8),
        (VARIED | {"in_flight": 3}, {}, 3),
        (VARIED, {"capacity_gb": RESTING_GB + 5.5 * LARGEST_GB, "kappa": 1.0}, 5),
        (VARIED, {"capacity_gb": RESTING_GB + 1.5 * LARGEST_GB, "kappa": 1.0}, 2),
        (VARIED, {"capacity_gb": RESTING_GB + 50 * LARGEST_GB, "kappa": 1.0}, 8),
        # Room to bring activations back to is only kept while some are away.
        (VARIED, {"capacity_gb": RESTING_GB + 5.5 * LARGEST_GB, "kappa": 1.0, "offload_gb_per_s": 20}, 5),
        (VARIED, {"capacity_gb": RESTING_GB + 1.5 * LARGEST_GB, "mode": "ignore"}, 8),
    ],
    ids=["equal", "varied", "given", "as fit", "at least one a stage", "no more than help", "offloading", "ignored"],
)
def test_as_many_as_help_and_fit(training: dict[str, Any], memory: dict[str, Any], expected: int) -> None:
    assert planned(training, **memory) == expected
