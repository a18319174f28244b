"""What training cost serving, by simulations with the load of a run."""

from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.report.training_cost import read_cost, write_cost
from lemix_hpc.studies.serve_only import cost_of_training
from tests.studies.test_simulated_run import RECIPE, Simulate, simulated

__all__ = ["simulated"]


IMPOLITE = ("policy.serving_first=false", "policy.admission=none", "training.sequence_length=2048")


def run_of(simulated: Simulate, path: Path, *changes: str) -> Path:
    run = simulated(*changes)
    path.mkdir()
    run.write(path)
    long = RECIPE.replace("micro_batches_per_step", "sequence_length: 2048, micro_batches_per_step")
    (path / "recipe.yaml").write_text(long + "policy: {serving_first: false, admission: none}\n")
    return path


def test_training_costs_something_and_its_absence_is_what_a_run_without_it_would_be(
    simulated: Simulate, tmp_path: Path
) -> None:
    run = run_of(simulated, tmp_path / "run", *IMPOLITE)
    cost = cost_of_training(run, run / "recipe.yaml")
    assert cost.run == cost.simulated, "it was simulated with the same stage times"
    alone = simulated("training=null").summary["serving"]
    assert cost.serve_only.response_p99_ms == pytest.approx(alone["response_ms"]["p99"])
    assert cost.serve_only.attainment == alone["slo"]["5"]
    with_it, without = cost.simulated, cost.serve_only
    assert with_it.ttft_p99_ms is not None and without.ttft_p99_ms is not None
    assert with_it.ttft_p99_ms > without.ttft_p99_ms > 0.0
    assert f"TTFT p99 {with_it.ttft_p99_ms - without.ttft_p99_ms:+.3g} ms" in cost.words
    assert cost.words.startswith("attainment ") and "points (response within 5 T0)" in cost.words
    assert read_cost(run) is None
    write_cost(cost, run)
    assert read_cost(run) == cost


def test_a_run_without_training_has_no_cost(simulated: Simulate, tmp_path: Path) -> None:
    run = run_of(simulated, tmp_path / "run", *IMPOLITE, "training=null")
    (run / "recipe.yaml").write_text(RECIPE.replace("training:", "# training:"))
    with pytest.raises(UserError, match="--serve-only: the run does not serve and train"):
        cost_of_training(run, run / "recipe.yaml")
