"""What is compiled ahead is all that a simulation needs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lemix_hpc.config.load import load_recipe
from lemix_hpc.simulator.compiling import compile_simulator
from lemix_hpc.studies.simulated_run import simulate

RECIPES = Path(__file__).parents[2] / "recipes"


def test_a_simulation_compiles_nothing_after_it(caplog: pytest.LogCaptureFixture) -> None:
    compile_simulator()
    caplog.set_level(logging.INFO, "lemix_hpc.policy")
    simulate(load_recipe(RECIPES / "emulated-a100.yaml", ["serving.source.duration_s=1"]), events=True)
    assert caplog.messages == []
