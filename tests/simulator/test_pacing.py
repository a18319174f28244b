"""A paced node: a pass takes 1 s on each of two stages, a training backward 2 s, in four pieces."""

import math
from typing import Any

import pytest

from lemix_hpc.policy.execution_rules import SERVE
from lemix_hpc.policy.pacing import FIRST_MARGIN, PASS_SHARE, Pace
from tests.simulator.cluster import SimulationResult, run

PACE = Pace(ttft=40.0, tpot=12.0)
MARGIN = FIRST_MARGIN * PACE.tpot
PIECE = 0.5
"""What a batch waits for at most, on a stage that trains."""


def begins(result: SimulationResult, task: int) -> list[float]:
    """When its passes began on the first stage."""
    return [start for stage, _, start, _ in result.of(task) if stage == 0]


def test_requests_wait_for_their_time_and_go_together_while_training_has_the_stages() -> None:
    result = run([(3.0, 4, 4), (5.0, 4, 4)], [[4]] * 60, paced=True, pace=PACE, max_requests=8)
    first, second = begins(result, 0), begins(result, 1)
    assert first == second, "all that are here join the pass that is due"
    due = 3.0 + PACE.ttft - 2.0 - MARGIN
    assert due <= first[0] <= due + PIECE
    answered = first[0] + 2.0
    # The second token is aimed at so early that it comes at once; the third has credit.
    assert answered <= first[1] <= answered + 2 * PIECE
    due = answered + 2 * PACE.tpot - 2.0 - MARGIN
    assert due <= first[2] <= due + 3 * PIECE


def test_every_token_comes_before_its_deadline() -> None:
    result = run([(3.0, 4, 9), (5.0, 4, 6), (21.0, 4, 9)], [[4]] * 80, paced=True, pace=PACE, max_requests=8)
    for task, arrival in enumerate((3.0, 5.0, 21.0)):
        ends = [end for stage, _, _, end in result.of(task) if stage == 1]
        assert ends[0] <= arrival + PACE.ttft
        assert all(end <= ends[0] + k * PACE.tpot for k, end in enumerate(ends))


def test_where_nothing_trains_nothing_waits_but_for_a_moment() -> None:
    result = run([(3.0, 4, 3)], paced=True, pace=PACE)
    assert begins(result, 0) == pytest.approx([3.0, 5.0, 7.0])


def test_what_is_late_goes_as_soon_as_possible() -> None:
    tight = Pace(ttft=0.1, tpot=0.1)
    # One batch for each stage: without a pace there might be another one.
    requests = [(second, 4, 3) for second in (0.0, 1.0, 10.0, 11.0, 20.0)]
    paced = run(requests, [[4]] * 20, paced=True, pace=tight, max_requests=8)
    assert paced.log == run(requests, [[4]] * 20, max_requests=8).log


def test_a_long_prompt_is_cut_while_the_node_trains() -> None:
    """A token takes a tenth of a second more on each stage: 60 of them in a batch would hold it up for 12 s."""
    result = run([(3.0, 60, 2)], [[4]] * 30, per_token=0.1, paced=True, pace=PACE, max_requests=8)
    prompt = [end - start for stage, _, start, end in result.of(0) if stage == 0][:-1]
    assert len(prompt) > 1
    assert max(prompt) <= PASS_SHARE * PACE.tpot / 2 + 1e-9
    assert sum(prompt) == pytest.approx(len(prompt) * 1.0 + 60 * 0.1)
    request = result.cluster.requests[0]
    assert request["first_token"] <= 3.0 + PACE.ttft, "it was begun early enough for its parts"
    assert request["first_token"] == max(end for stage, _, _, end in result.of(0)[: 2 * len(prompt)] if stage == 1)
    assert math.isfinite(request["finished"])


def test_a_prompt_that_would_be_late_in_parts_is_whole() -> None:
    """It takes 12 s, or 16 in two parts."""
    result = run([(3.0, 60, 2)], [[4]] * 30, per_token=0.1, paced=True, pace=PACE._replace(ttft=16.0), max_requests=8)
    assert len([stage for stage, *_ in result.of(0) if stage == 0]) == 2, "its prompt, and its second token"
    assert result.cluster.requests[0]["first_token"] <= 19.0
    late = run([(3.0, 60, 2)], [[4]] * 30, per_token=0.1, paced=True, pace=PACE._replace(ttft=13.0), max_requests=8)
    assert len([stage for stage, *_ in late.of(0) if stage == 0]) > 2, "nothing is won by it"


def test_no_more_batches_are_under_way_than_there_are_stages() -> None:
    result = run([(float(second), 4, 9) for second in range(9)], [[4]] * 60, paced=True, pace=Pace(0.1, 0.1))
    spans = [span for span in result.records if span["kind"] == SERVE]
    begun = {span["batch"]: span["start"] for span in spans if span["stage"] == 0}
    ended = {span["batch"]: span["end"] for span in spans if span["stage"] == 1}
    for start in begun.values():
        assert sum(begun[batch] <= start < ended[batch] for batch in begun) <= 2


def test_nodes_that_only_serve_are_not_paced() -> None:
    requests = [(float(second), 4, 3) for second in range(8)]
    apart: dict[str, Any] = {"nodes": 2, "servers": 1, "max_requests": 8}
    config = {"placement": "separate", "training_nodes": 1}
    paced = run(requests, [[4]] * 20, config=config, paced=True, pace=PACE, **apart)
    assert paced.log == run(requests, [[4]] * 20, config=config, **apart).log
