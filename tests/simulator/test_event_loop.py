"""Simulated runs: the golden cases, situations worked out by hand, and what holds for every run."""

from __future__ import annotations

import itertools
from collections import defaultdict
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.policy.execution_rules import COMMIT
from lemix_hpc.simulator.cluster_state import follow, make_requests
from lemix_hpc.simulator.dtypes import FINISHED
from tests.golden.cases import golden_cases
from tests.simulator.cluster import SimulationResult, run

# The golden cases


@pytest.mark.parametrize("case", golden_cases("des"), ids=itemgetter("name"))
def test_golden_runs(case: dict[str, Any]) -> None:
    given_, expect_ = case["input"], case["expect"]
    training = [task for task in given_["tasks"] if task["train"]]
    (forward,) = {seconds for task in given_["tasks"] for seconds in task["F"]}
    (backward,) = {seconds for task in training for seconds in task["B"]}
    pieces = given_.get("pieces", 1)
    played = run(
        [(arrival, 1, 0) for arrival in given_["arrivals"]],
        [[1] for _ in training],
        forward=forward,
        backward=backward,
        nodes=given_["N"],
        stages=given_["S"],
        pieces=pieces,
        serving_first={"fifo": False, "serving first": True}[given_["order"]],
        yield_training=pieces > 1,
        config={"lanes": 1, "release": given_["pp"]},
    )
    numbers = [task["tid"] for task in given_["tasks"] if not task["train"]] + [task["tid"] for task in training]
    log = [[numbers[task], *rest] for task, *rest in played.log]
    assert log == expect_["log"], case["why"]
    assert max(span[-1] for span in log) == expect_["makespan"]
    active = [[span for span in log if span[1] == node] for node in range(given_["N"])]
    assert sum(max(span[-1] for span in one) - min(span[-2] for span in one) for one in active) == expect_["active_sum"]


# Training gives way to serving


def test_a_training_pass_nobody_disturbs_is_one_stretch() -> None:
    played = run(groups=[[1]], forward=4.0, backward=8.0)
    assert played.of(0) == [(0, "F", 0, 4), (1, "F", 4, 8), (1, "B", 8, 16), (0, "B", 16, 24)]


def test_training_rests_at_the_next_boundary_between_pieces() -> None:
    # Pieces of 1 s: the request of 1.5 waits until 2, and the forward then goes on with its last two pieces.
    played = run([(1.5, 1, 0)], [[1]], forward=4.0, backward=8.0)
    assert played.of(0)[0] == (0, "F", 2, 6)
    assert played.of(1)[:2] == [(0, "F", 0, 2), (0, "F", 6, 8)]


def test_requests_that_come_one_after_the_other_keep_training_resting() -> None:
    played = run([(1.5, 1, 0), (1.6, 1, 0)], [[1]], forward=4.0, backward=8.0)
    assert [span[2:] for span in played.of(2) if span[:2] == (0, "F")] == [(0, 2), (10, 12)]


def test_training_that_does_not_yield_runs_through() -> None:
    played = run([(1.5, 1, 0)], [[1]], forward=4.0, backward=8.0, yield_training=False)
    assert played.of(1)[0] == (0, "F", 0, 4)
    assert played.of(0)[0] == (0, "F", 4, 8)


def test_training_that_is_owed_time_runs_on_while_serving_waits() -> None:
    # One stage, passes and pieces of 0.1 s: after each 0.1 s of serving training is owed time, and paid with one piece.
    played = run([(0.0, 1, 0)] * 8, [[1]], stages=1, forward=0.1, backward=0.4, minimum_share=0.45)
    training = played.of(8)
    assert training[0] == (0, "F", pytest.approx(0.1), pytest.approx(0.2))
    assert [span[2] for span in training] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


def test_without_a_minimum_share_serving_goes_before_training() -> None:
    played = run([(0.0, 1, 0)] * 8, [[1]], stages=1, forward=0.1, backward=0.4)
    assert played.of(8)[0][2] == pytest.approx(0.8)


# Batches and generation


def test_requests_that_generate_go_before_new_ones() -> None:
    # One stage; the second request is in the second batch, as two batches are formed ahead.
    played = run([(0.0, 3, 3), (0.0, 3, 0)], stages=1)
    assert [span[2:] for span in played.of(0)] == [(0, 1), (2, 3), (3, 4)]
    assert played.of(1) == [(0, "F", 1, 2)]


def test_a_request_counts_its_tokens_and_tells_of_the_first() -> None:
    played = run([(0.0, 3, 4)], stages=2)
    request = played.cluster.requests[0]
    assert (request["produced"], request["first_token"], request["finished"]) == (4, 2.0, 8.0)


def test_batches_keep_to_their_limits() -> None:
    played = run([(0.0, prompt, 0) for prompt in (40, 30, 40, 31)], stages=1, max_requests=3, max_tokens=70)
    batches = defaultdict(list)
    for span in played.records:
        batches[int(span["batch"])].append(int(span["task"]))
    assert list(batches.values()) == [[0, 1], [2], [3]]


def test_batches_that_wait_on_a_stage_run_by_their_key() -> None:
    # A backward of 10 s keeps the second stage while both requests come to it; the shorter one overtakes the other there.
    requests = [(1.2, 8, 0), (3.5, 1, 0)]
    order = {"order": "shortest"}
    played = run(requests, [[1]], backward=10.0, per_token=0.1, yield_training=False, config=order)
    assert played.of(1)[1] == (1, "F", pytest.approx(12.3), pytest.approx(13.4))
    assert played.of(0)[1] == (1, "F", pytest.approx(13.4), pytest.approx(15.2))


@pytest.mark.parametrize(("output", "gone"), [(0, 6), (2, 3)])
def test_only_batches_that_generate_are_limited_in_flight(output: int, gone: int) -> None:
    # A backward keeps the second stage from 2 to 22 s: of two stages, three batches may be under way that generate.
    played = run([(2.5, 1, output)] * 6, [[1]], backward=20.0, yield_training=False)
    passes = [span for task in range(6) for span in played.of(task)]
    assert sum(stage == 0 and end < 22.0 for stage, _, _, end in passes) == gone


def test_a_turn_comes_after_the_answer_it_follows() -> None:
    requests = make_requests([0.0, 0.5, 0.0], [1, 1, 1], [0, 0, 0])
    follow(requests, np.array([2]), np.array([0]), 0.25)
    played = run(requests)
    assert played.cluster.requests["arrival"].tolist() == [0.0, 0.5, 2.25]
    assert played.of(2)[0][2] == 2.25


# Weight updates


def test_commits_travel_down_the_pipeline_between_batches() -> None:
    played = run([(0.0, 1, 0), (30.0, 1, 0)], [[1, 1], [1]])
    steps = played.records[played.records["kind"] == COMMIT]
    assert [(int(s["stage"]), int(s["version"])) for s in steps] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert played.cluster.run["steps"][0] == 2
    assert played.cluster.requests["last_version"].tolist() == [0, 2]


def test_steps_after_every_micro_batch_leave_no_stage_idle() -> None:
    # While the first stage runs a backward, the last one must not wait to publish: it has reported before.
    played = run(groups=[[1]] * 20, pieces=4)
    for stage in range(2):
        spans = [span for span in played.log if span[2] == stage]
        assert spans[-1][5] - spans[0][4] <= 20 * 3.0 + 3.0  # the pipeline fills and empties


def test_what_passes_wait_for_between_two_of_them() -> None:
    played = run([(0.0, 1, 2), (0.5, 1, 0)], groups=[[1]], between=0.25, pieces=1)
    # The forward of the micro-batch, the request's two passes behind it, and the one that is only scored.
    first = sorted((start, end) for _, _, stage, _, start, end in played.log if stage == 0)
    assert first[0] == (0.25, 1.25)
    assert all(after[0] >= before[1] + 0.25 for before, after in itertools.pairwise(first))
    assert {end - start for start, end in first} == {1.0, 2.0}


def test_gpipe_runs_all_forwards_of_a_group_first() -> None:
    played = run(groups=[[1, 1, 1]], stages=1, gpipe=True, config={"release": "sync"})
    assert "".join(kind for _, _, _, kind, _, _ in played.log) == "FFFBBB"


def test_1f1b_alternates() -> None:
    played = run(groups=[[1, 1, 1]], stages=1, config={"release": "sync"})
    assert "".join(kind for _, _, _, kind, _, _ in played.log) == "FBFBFB"


def test_training_without_an_end_stops_with_serving() -> None:
    endless = iter(lambda: [1, 1], None)
    played = run([(0.0, 1, 0), (40.0, 1, 0)], endless, endless=True)
    finished = played.cluster.micro_batches["finished"][played.cluster.micro_batches["outcome"] == FINISHED]
    assert played.cluster.requests["finished"].max() >= 42.0
    assert len(finished) % 2 == 0
    assert 40.0 < finished.max() < 60.0


# What holds for every run

REQUEST = st.tuples(st.integers(0, 12), st.integers(1, 8), st.integers(0, 4))


@given(
    requests=st.lists(REQUEST, max_size=12),
    groups=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=3), max_size=5),
    nodes=st.integers(1, 3),
    stages=st.integers(1, 3),
    placement=st.sampled_from(["least-completion", "round-robin", "lemix", "pack"]),
    release=st.sampled_from(["async", "sync"]),
    admission=st.sampled_from(["slack", "none"]),
    changes=st.fixed_dictionaries(
        {
            "gpipe": st.booleans(),
            "serving_first": st.booleans(),
            "yield_training": st.booleans(),
            "minimum_share": st.sampled_from([0.0, 0.05, 0.5]),
            "max_requests": st.integers(1, 3),
            "pieces": st.integers(1, 5),
            "latency_error": st.sampled_from([0.0, 0.3]),
        }
    ),
)
@settings(max_examples=150, deadline=None)
def test_every_run_keeps_the_rules(
    requests: list[tuple[int, int, int]],
    groups: list[list[int]],
    nodes: int,
    stages: int,
    placement: str,
    release: str,
    admission: str,
    changes: dict[str, Any],
) -> None:
    changes["gpipe"] = changes["gpipe"] and release == "sync"
    arrivals = sorted((0.1 * at, prompt, output) for at, prompt, output in requests)
    config = {"placement": placement, "release": release, "admission": admission, "max_hold": 1.0}
    played = run(
        arrivals,
        groups,
        nodes=nodes,
        stages=stages,
        forward=0.1,
        backward=0.2,
        per_token=0.01,
        config=config,
        **changes,
    )
    check_served(played)
    check_stages(played)
    check_training(played)
    check_versions(played)


def check_served(played: SimulationResult) -> None:
    """Every request is answered once, with the tokens it asked for, on all stages of one node in their order."""
    requests = played.cluster.requests
    assert (requests["outcome"] == FINISHED).all()
    assert (requests["produced"] == requests["output"]).all()
    assert (requests["finished"] >= requests["first_token"]).all()
    for task, request in enumerate(requests):
        passes = max(1, int(request["output"])) * played.shape.stages
        log = [span for span in played.log if span[0] == task]
        assert len(log) == passes
        assert {span[1] for span in log} == {int(request["node"])}
        times = [(start, end) for *_, start, end in sorted(log, key=lambda span: span[4])]
        assert times[0][0] >= request["arrival"]
        assert times[-1][1] == request["finished"]
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def check_stages(played: SimulationResult) -> None:
    """A stage runs one thing at a time."""
    work = defaultdict(set)
    for span in played.records:
        work[int(span["node"]), int(span["stage"])].add((float(span["start"]), float(span["end"])))
    for stretches in work.values():
        ordered = sorted(stretches)
        assert all(start <= end for start, end in ordered)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))


def check_training(played: SimulationResult) -> None:
    """Every micro-batch goes forward through all stages and then backward, and every group is stepped once."""
    cluster, stages = played.cluster, played.shape.stages
    assert (cluster.micro_batches["outcome"] == FINISHED).all()
    assert (cluster.micro_batches["placed"] >= cluster.micro_batches["eligible"]).all()
    assert cluster.run["steps"][0] == len(cluster.groups)
    assert (cluster.stages["version"].reshape(-1, stages) == cluster.stages["version"].reshape(-1, stages)[:, :1]).all()
    way = [(stage, "F") for stage in range(stages)] + [(stage, "B") for stage in reversed(range(stages))]
    for number, micro_batch in enumerate(cluster.micro_batches):
        log = played.of(len(cluster.requests) + number)
        order = [span[:2] for span in log]
        assert [step for at, step in enumerate(order) if at == 0 or order[at - 1] != step] == way
        assert log[-1][-1] == micro_batch["finished"]
    for group in cluster.groups:
        members = cluster.micro_batches[group["first"] : group["first"] + group["size"]]
        assert len(set(members["node"])) == 1


def check_versions(played: SimulationResult) -> None:
    """A batch meets one weight version on all stages."""
    serving = played.records[played.records["batch"] >= 0]
    versions = defaultdict(set)
    for span in serving:
        versions[int(span["node"]), int(span["batch"])].add(int(span["version"]))
    assert all(len(seen) == 1 for seen in versions.values())


def test_the_same_input_gives_the_same_output() -> None:
    requests = [(0.05 * at, 1 + at % 7, at % 3) for at in range(60)]
    again = [
        run(requests, [[2, 5]] * 20, nodes=3, forward=0.1, backward=0.2, per_token=0.01, latency_error=0.2, seed=seed)
        for seed in (7, 7, 8)
    ]
    assert again[0].cluster.spans.tobytes() == again[1].cluster.spans.tobytes()
    assert again[0].cluster.spans.tobytes() != again[2].cluster.spans.tobytes()


def test_a_pass_is_as_late_under_every_placement() -> None:
    requests = [(float(10 * at), 1 + at % 7, 0) for at in range(20)]
    durations = []
    for placement in ("round-robin", "least-completion"):
        played = run(requests, nodes=2, latency_error=0.3, config={"placement": placement})
        durations.append([round(end - start, 9) for task in range(20) for _, _, start, end in played.of(task)])
    assert durations[0] == durations[1]
