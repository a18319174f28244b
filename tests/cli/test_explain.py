"""`lemix explain` of tasks that were held back or refused, and of records that are not those of one run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import RECIPE, Command

Simulate = Callable[..., Path]

# One node of two stages, whose requests are often in a hurry.
BUSY = ("serving.source.requests=60", "serving.source.rate=5", "training.sequence_length=1024")
SLACK = (*BUSY, "policy.yield_training=false", "slo.response_ms=250")
PAPER = ("serving.source.requests=60", "policy.admission=paper", "policy.max_hold_s=0.2", "slo.response_ms=60")
SHORT = ("serving.source.requests=60", "cluster.time=0:00:02", "policy.drain_reserve_s=1")


@pytest.fixture
def simulate(inside: Command, tmp_path: Path) -> Simulate:
    """Simulates a recipe that is changed by these settings: the directory of the run, which is called `one`."""

    def run(*settings: str) -> Path:
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        done = inside("simulate", "recipe.yaml", "--out", "one", *(word for s in settings for word in ("--set", s)))
        assert done.returncode == 0, done.stderr
        return tmp_path / "one"

    return run


def tasks(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "tasks.jsonl").read_text().splitlines()]


def held(run: Path) -> dict[str, Any]:
    """The first micro-batch that was held back."""
    return next(task for task in tasks(run) if task["kind"] == "training" and task["placed"] > task["eligible"])


def change(run: Path, id: str, **fields: Any) -> None:
    """Falsify the record of a task."""
    lines = [task | fields if task["id"] == id else task for task in tasks(run)]
    (run / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def explained(inside: Command, task: str, *options: str) -> str:
    done = inside("explain", "one", task, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(inside: Command, task: str) -> str:
    done = inside("explain", "one", task)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_training_that_was_held_for_the_sake_of_a_request(inside: Command, simulate: Simulate) -> None:
    task = held(simulate(*SLACK))
    told = explained(inside, task["id"])
    waited = task["placed"] - task["eligible"]
    assert f"Released at {task['eligible']:.4f} s, sent to the node {waited:.4f} s later" in told
    reason = re.search(
        r"It was held: it can delay requests by ([\d.]+) ms, and the most urgent request on its node was expected to meet "
        r"its limit with only ([\d.]+) ms to spare",
        told,
    )
    assert reason is not None, told
    in_the_way, slack = map(float, reason.groups())
    assert 0.0 <= slack < in_the_way
    assert "longest hold" not in told, "the request had gone before"


def test_training_that_was_held_for_its_own_response_and_let_in_by_its_age(inside: Command, simulate: Simulate) -> None:
    task = held(simulate(*PAPER))
    assert task["placed"] - task["eligible"] == pytest.approx(0.2)
    told = explained(inside, task["id"]).splitlines()
    assert told[3:6] == [
        f"Released at {task['eligible']:.4f} s, sent to the node 0.2000 s later",
        "It was held: its own response was expected to exceed the limit (policy.admission: paper).",
        "It was sent after the longest hold, policy.max_hold_s = 0.2 s.",
    ]


def test_training_that_was_not_held_needs_no_reason(inside: Command, simulate: Simulate) -> None:
    simulate(*SLACK)
    told = explained(inside, "t0")
    assert "Released at 0.0000 s, sent to the node 0.0000 s later" in told and "held" not in told


def test_a_request_that_was_refused(inside: Command, simulate: Simulate) -> None:
    late = next(task for task in tasks(simulate(*SHORT)) if task["outcome"] == "rejected")
    told = explained(inside, late["id"])
    assert told.splitlines()[:2] == [
        f"{late['id']}: a request of {late['prompt_tokens']} tokens, arrived at {late['arrival']:.4f} s",
        "least-completion refused it: it was expected to end too late for the allocation (policy.drain_reserve_s).",
    ]
    [forecast] = [line.split() for line in told.splitlines() if re.match(r"\s+>?\s*\d+ ", line)]
    assert forecast[0] == "0", "no node is marked"
    assert float(forecast[3]) > 1.0, "the allocation less its reserve"


def test_an_order_of_turns_is_no_choice_and_few_nodes_are_shown(inside: Command, simulate: Simulate) -> None:
    run = simulate("nodes.count=5", "policy.placement=round-robin")
    node = next(task["node"] for task in tasks(run) if task["id"] == "r3")
    told = explained(inside, "r3", "--nodes", "1")
    assert f"round-robin chose without forecasts: node {node}" in told
    shown = [line for line in told.splitlines() if re.match(r"\s+>?\s*\d+ ", line)]
    assert len(shown) <= 2 and sum(line.split()[:2] == [">", str(node)] for line in shown) == 1


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("r99", "r99: tasks.jsonl has no task of this id or number; ids are such as r0 and t1\n"),
        ("r0", "r0 was rejected before it reached the policy: it is too long for the model\n"),
    ],
)
def test_tasks_that_have_no_decision(inside: Command, simulate: Simulate, task: str, reason: str) -> None:
    change(simulate(), "r0", number=None, node=None, outcome="rejected")
    assert refused(inside, task) == reason


def test_a_refusal_that_was_not_recorded(inside: Command, simulate: Simulate) -> None:
    run = simulate(*SHORT)
    late = next(task for task in tasks(run) if task["outcome"] == "rejected")["id"]
    change(run, late, node=0)
    assert "leads to its refusal, and tasks.jsonl has it on node 0." in refused(inside, late)


def test_a_forecast_that_was_not_recorded(inside: Command, simulate: Simulate) -> None:
    change(simulate(), "r1", predicted_response_s=123.0)
    assert re.search(r"leads to a forecast of [\d.]+ s, and tasks\.jsonl has 123 s", refused(inside, "r1"))


@pytest.mark.parametrize(("task", "reason"), [("r4", "has no arrival of it"), ("t1", "does not lead to its placement")])
def test_events_that_end_before_the_decision(inside: Command, simulate: Simulate, task: str, reason: str) -> None:
    events = simulate() / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(lines[:1]))
    assert f"{task}: {events} {reason}." in refused(inside, task)
