"""Memory of simulated stages: situations worked out by hand, and that nothing is ever lost, stuck or beyond the limit."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.policy.memory_rules import micro_batches_needed
from lemix_hpc.simulator.cluster_state import make_stage_memory
from lemix_hpc.simulator.dtypes import FINISHED, NONE
from lemix_hpc.studies.simulated_run import Simulated, simulate
from tests.simulator.cluster import SimulationResult, run
from tests.studies.test_simulated_run import COEFFICIENTS

PATIENT = 100.0


def test_a_forward_waits_for_the_cache_of_a_request_to_go() -> None:
    played = run([(0.0, 8, 3)], [[4]], stage_memory=make_stage_memory([10, 10], 1, 1), max_wait=PATIENT)
    assert played.of(1) == [(0, "F", 6.0, 7.0), (1, "F", 7.0, 8.0), (1, "B", 8.0, 10.0), (0, "B", 10.0, 12.0)]
    claim = played.cluster.memory.claims[1]
    assert (claim["waits"], claim["waited"], claim["longest"]) == (1, 5.0, 5.0)


def test_activations_leave_for_a_request_that_has_waited_long_enough_and_come_back_for_the_backwards() -> None:
    stage_memory = make_stage_memory([10, 10], 1, 1)
    played = run([(1.5, 3, 1)], [[4, 4]], stage_memory=stage_memory, max_wait=1.0, offload_rate=8.0)
    # Both leave the first stage from 2.5 to 3.5; room for one of them is kept. On the second stage a backward ends at 4.
    assert played.of(0) == [(0, "F", 4.0, 5.0), (1, "F", 5.0, 6.0)]
    # It is back at 4.5, when the stage serves, and the second one has 8 to 8.5 for it.
    assert played.of(1) == [(0, "F", 0.0, 1.0), (1, "F", 1.0, 2.0), (1, "B", 2.0, 4.0), (0, "B", 5.0, 7.0)]
    assert played.of(2) == [(0, "F", 1.0, 2.0), (1, "F", 4.0, 5.0), (1, "B", 6.0, 8.0), (0, "B", 8.5, 10.5)]
    assert played.cluster.memory.stages["offloaded"].tolist() == [8, 0]
    assert played.cluster.memory.claims[0]["waited"] == 2.5


@pytest.mark.parametrize("offload_rate", [0.0, 2.0])
def test_a_request_waits_for_backwards_where_nothing_is_offloaded_or_that_would_win_nothing(
    offload_rate: float,
) -> None:
    stage_memory = make_stage_memory([6, 6], 1, 1)
    played = run([(0.5, 3, 1)], [[4]], stage_memory=stage_memory, max_wait=1.0, offload_rate=offload_rate)
    assert played.of(0) == [(0, "F", 6.0, 7.0), (1, "F", 7.0, 8.0)]
    assert not played.cluster.memory.stages["offloads"].any()


def test_a_request_that_loses_its_cache_computes_prompt_and_answer_again() -> None:
    played = run([(0.0, 4, 4), (0.0, 4, 4)], stages=1, stage_memory=make_stage_memory([12], 1, 1))
    assert [end for *_, end in played.of(0)] == [1.0, 3.0, 5.0, 7.0]
    assert [end for *_, end in played.of(1)] == [2.0, 4.0, 6.0, 8.0]
    claim = played.cluster.memory.claims[0]
    assert (claim["preemptions"], claim["recomputed"]) == (1, 7)
    assert (claim["waits"], claim["waited"]) == (2, 2.0)


GROUP = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@given(
    groups=st.lists(GROUP, min_size=2, max_size=8),
    arrival=st.floats(0, 20),
    prompt=st.integers(1, 6),
    spare=st.integers(0, 6),
    in_flight=st.integers(2, 6),
    offload_rate=st.sampled_from([0.0, 2.0]),
)
@settings(deadline=None)
def test_a_request_that_waits_for_memory_is_served_before_a_micro_batch_that_came_later_begins(
    groups: list[list[int]], arrival: float, prompt: int, spare: int, in_flight: int, offload_rate: float
) -> None:
    largest = max(max(group) for group in groups)
    limit = max(prompt + largest if offload_rate else prompt, largest) + spare
    played = run(
        [(arrival, prompt, 1)],
        groups,
        stage_memory=make_stage_memory([limit, limit], 1, 1),
        max_wait=PATIENT,
        in_flight=in_flight,
        useful_in_flight=in_flight,
        offload_rate=offload_rate,
    )
    served = played.of(0)[0][2]
    begun = [played.of(1 + number)[0][2] for number in range(len(played.cluster.lengths))]
    assert sum(arrival < begins < served for begins in begun) <= 1, "the one that asked before the request came"


@pytest.mark.parametrize(("max_hold", "latest"), [(5.0, 9.0), (20.0, 24.0)])
def test_requests_make_room_for_training_that_they_have_kept_from_memory_for_long(
    max_hold: float, latest: float
) -> None:
    stream = [(2.0 * number, 4, 8) for number in range(40)]
    memory = make_stage_memory([12], 1, 1)
    played = run(
        stream, [[9]], stages=1, stage_memory=memory, max_wait=1.0, max_hold=max_hold, minimum_share=0.2, max_requests=4
    )
    begins = played.of(len(stream))[0][2]
    assert max_hold <= begins <= latest, "it asks behind the first pass, and what has begun then ends before"
    assert (played.cluster.requests["outcome"] == FINISHED).all()


@st.composite
def tight(draw: st.DrawFn) -> dict[str, Any]:
    """A node whose stages have room for any one task, and little more."""
    small = st.integers(1, 4)
    stages = draw(st.integers(1, 3))
    requests = draw(st.lists(st.tuples(st.floats(0, 10), small, st.integers(0, 5)), min_size=1, max_size=8))
    groups = draw(st.lists(st.lists(small, min_size=1, max_size=3), max_size=4))
    gpipe, offload_rate = draw(st.booleans()), draw(st.sampled_from([0.0, 2.0]))
    per_token = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(stages)]
    limits = []
    for cache, activations in per_token:
        longest = max((prompt + output - 1 for _, prompt, output in requests if output), default=0)
        largest = max((most_together(group, gpipe, offload_rate > 0.0) for group in groups), default=0)
        limits.append(max(longest * cache, largest * activations) + draw(st.integers(0, 6)))
    return {
        "requests": sorted(requests),
        "groups": groups or None,
        "stage_memory": make_stage_memory(limits, *([bytes_[kind] for bytes_ in per_token] for kind in range(2))),
        "stages": stages,
        "gpipe": gpipe,
        "offload_rate": offload_rate,
        "max_wait": draw(st.sampled_from([0.0, 1.0, 5.0])),
        "max_hold": draw(st.sampled_from([0.0, 3.0, 30.0])),
        "useful_in_flight": draw(st.integers(1, 6)),
        "in_flight": draw(st.integers(stages, 6)),
        "max_requests": draw(st.integers(1, 3)),
        "serving_first": draw(st.booleans()),
        "minimum_share": draw(st.sampled_from([0.0, 0.2])),
        "config": {"release": "sync" if gpipe else draw(st.sampled_from(["async", "sync"]))},
    }


def most_together(group: list[int], gpipe: bool, offloads: bool) -> int:
    """Tokens of the micro-batches that have to be on a stage together, or to have room there, for training to go on."""
    if gpipe and not offloads:
        return sum(group)
    return micro_batches_needed(len(group), gpipe, offloads) * max(group)


@given(tight())
@settings(deadline=None, max_examples=400)
def test_everything_finishes_within_the_limit_at_every_instant(case: dict[str, Any]) -> None:
    played = run(**case)
    cluster, stage_memory = played.cluster, played.cluster.memory.stages
    assert (cluster.requests["outcome"] == FINISHED).all()
    assert (cluster.micro_batches["outcome"] == FINISHED).all()
    assert (cluster.requests["produced"] == cluster.requests["output"]).all()
    assert not any(stage_memory[name].any() for name in ("cache", "activations", "kept", "back"))
    assert all((cluster.memory._asdict()[queue]["head"] == NONE).all() for queue in ("movable", "leaving", "away"))
    assert (stage_memory["peak"] <= stage_memory["limit"]).all()
    if case["offload_rate"] == 0.0:
        for stage in range(case["stages"]):
            assert most_in_training(played, stage) <= stage_memory["limit"][stage]


def most_in_training(played: SimulationResult, stage: int) -> int:
    """The most bytes of activations between a forward and its backward at any instant, from the spans."""
    nbytes = played.cluster.memory.stages["activation_bytes"][stage]
    changes = []
    for number, length in enumerate(played.cluster.lengths.tolist()):
        passes = [(at, start, end) for at, _, start, end in played.of(len(played.cluster.requests) + number)]
        inside = [(start, end) for at, start, end in passes if at == stage]
        changes += [(inside[0][0], 1, length * nbytes), (inside[-1][1], 0, -length * nbytes)]
    return max(accumulate(change for *_, change in sorted(changes)), default=0)


# Whole recipes

RECIPE = f"""\
nodes: {{count: 2, stages: 2}}
engine: {{kind: emulated, coefficients: {COEFFICIENTS}}}
serving:
  source: {{kind: poisson, rate: 12, requests: 60, lengths: lmsys-chat}}
  mode: generate
training: {{share: 0.4, sequence_length: 1024}}
policy: {{memory: {{capacity_gb: 64, max_wait_s: 0.2}}}}
"""


def simulated(folder: Path, *overrides: str) -> Simulated:
    """Simulates the recipe with some keys set otherwise."""
    (folder / "recipe.yaml").write_text(RECIPE)
    return simulate(load_recipe(folder / "recipe.yaml", overrides))


def test_the_report_tells_what_memory_has_cost(tmp_path: Path) -> None:
    summary = simulated(tmp_path, "policy.memory.offload_gb_per_s=20").summary
    assert summary["serving"]["finished"] == 60
    assert summary["training"]["finished"] == 40
    memory = summary["memory"]
    assert len(memory["stages"]) == 2
    for stage in memory["stages"]:
        assert stage["resting"] == pytest.approx(16 * 16 * 202_383_360 / 64e9)
        assert stage["resting"] < stage["peak"] <= 0.9
    assert memory["serving_waits"]["count"] + memory["training_waits"]["count"] > 0


def test_without_a_capacity_there_is_no_such_section(tmp_path: Path) -> None:
    assert simulated(tmp_path, "policy.memory.capacity_gb=null").summary["memory"] is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("policy.memory.capacity_gb=50", "weights, optimizer state never fits on stage 0 of node 0"),
        ("training.sequence_length=8192", "a training micro-batch"),
        ("policy.memory.capacity_gb=58", "the cache of request"),
    ],
)
def test_what_never_fits_is_refused(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        simulated(tmp_path, "training.sequence_length=64", override)
    assert "policy.memory.capacity_gb" in str(refused.value)


def test_a_capacity_needs_to_know_what_stages_hold(tmp_path: Path) -> None:
    lines = COEFFICIENTS.read_text().splitlines(keepends=True)
    bare = tmp_path / "bare.yaml"
    bare.write_text("".join(line for line in lines if "_bytes" not in line and "memory:  " not in line))
    with pytest.raises(UserError, match=r"no memory, which says what stages hold[.] `lemix profile` measures it"):
        simulated(tmp_path, f"engine.coefficients={bare}")
    finished = simulated(tmp_path, f"engine.coefficients={bare}", "policy.memory.capacity_gb=null").summary["serving"][
        "finished"
    ]
    assert finished == 60
