"""What shipped recipes decide without a pace: to pace decode, and classes of requests, must not change it.

A change that is meant to (a rule that holds without a pace, too, or a shipped recipe) brings new digests; the failure shows
them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lemix_hpc.config.load import load_recipe
from lemix_hpc.records.schema import ServedTask, TrainedTask
from lemix_hpc.studies.simulated_run import Simulated, simulate

RECIPES = Path(__file__).parents[2] / "recipes"
GENERATES = ("serving.source.requests=200", "policy.pace=none")
CASES = {
    "generation": ("generation-study", GENERATES, "d4593e4b334fe72c"),
    "generation, one node": (
        "generation-study",
        (*GENERATES, "nodes.count=1", "serving.source.rate=6"),
        "bb2fbce90e39ed3a",
    ),
    "generation, lemix": (
        "generation-study",
        (*GENERATES, "policy.placement=lemix", "slo.tpot_ms=null"),
        "7467a3ca2524673e",
    ),
    "generation, batch requests": ("generation-study", (*GENERATES, "serving.batch_requests=0.5"), "d72cdeb7fcc57676"),
    "scoring": ("emulated-a100", ("serving.source.duration_s=10", "policy.pace=none"), "4378dd67a6272171"),
    "scoring, much": ("policy-study", ("serving.source.requests=300", "policy.pace=none"), "7bd512e5eb75dc9b"),
}


def digest(run: Simulated) -> str:
    """Of all that was decided, and of when it ran, to the microsecond."""
    found = hashlib.sha256()
    records = run.records
    tasks: list[ServedTask | TrainedTask] = [*records.served, *records.trained]
    for task in tasks:
        found.update(f"{task.id} {task.outcome} {task.node} {_time(task.placed)} {_time(task.finished)}\n".encode())
    for span in records.spans:
        times = f"{_time(span.start)} {_time(span.end)}"
        found.update(f"{span.node} {span.stage} {span.task} {span.kind} {times} {span.version} {span.batch}\n".encode())
    return found.hexdigest()[:16]


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.6f}"


@pytest.mark.parametrize("case", CASES)
def test_without_a_pace_everything_is_as_it_was(case: str) -> None:
    name, overrides, expected = CASES[case]
    run = simulate(load_recipe(RECIPES / f"{name}.yaml", overrides))
    assert not run.records.facts.pace_s and len(run.records.served) >= 100
    assert digest(run) == expected
