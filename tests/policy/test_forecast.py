"""The compiled forecast: the golden cases, situations worked out by hand, and agreement with the forecast from scratch."""

import math
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.policy.candidates import Candidate, request_candidate
from lemix_hpc.policy.estimates import note_assigned
from lemix_hpc.policy.forecast import ALL, assign, expect, forget, observe
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.latency_tables import make_times
from lemix_hpc.policy.placement_rules import length_consistency, length_density, score
from lemix_hpc.policy.rules import OrderName, SchedulerConfig, make_rules
from lemix_hpc.policy.state import NONE, State, make_state
from lemix_hpc.policy.task_slots import slot_of, take_slot
from tests.golden.cases import golden_cases
from tests.policy.mirror import Arrive, Finish, Mirror, Offer, Report, Step, paths_of

FIFO = make_rules(SchedulerConfig(nodes=1, serving_first=False))


@dataclass(frozen=True)
class Job:
    """A task as the forecast sees it: release and seconds per stage. Serving has no backward."""

    release: float
    forward: tuple[float, ...]
    backward: tuple[float, ...] = ()


def node_with(stages: int, jobs: list[Job]) -> State:
    """A node that runs these tasks, numbered from 0, in this order."""
    form = (Affine(1, 0, 0),) * stages
    state = make_state(
        make_times([LatencyModel(form, form)], np.zeros(1, dtype=np.int64), table=1),
        lanes=1,
        seed=0,
        expected_output=1.0,
        slots=16,
    )
    for task, job in enumerate(jobs):
        slot = take_slot(state, task)
        work = state.slots[slot]
        work["training"], work["release"], work["sequence"] = bool(job.backward), job.release, task + 1
        work["rows"], work["prompt"] = 1, 8
        state.forward[slot], state.backward[slot] = job.forward, job.backward or (0.0,) * stages
        assign(state, 0, slot, state.nodes[0]["tail"])
        note_assigned(state, FIFO, 0, slot, job.release)
    return state


def expected(state: State, job: Job) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Begins, ends and idleness of one more task, behind all others."""
    forward = np.array(job.forward)
    _, _, idleness = expect(state, 0, state.nodes[0]["tail"], ALL, job.release, forward)
    number = int(np.sum(state.table != NONE)) + 1
    slot = take_slot(state, number)
    state.slots[slot]["training"], state.slots[slot]["release"] = False, job.release
    state.slots[slot]["sequence"], state.forward[slot] = number, forward
    assign(state, 0, slot, state.nodes[0]["tail"])
    fb, fe = (tuple(state.paths[slot][name].tolist()) for name in ("fb", "fe"))
    forget(state, slot)
    return fb, fe, idleness


def begins(state: State, task: int) -> tuple[float, ...]:
    return tuple(state.paths[slot_of(state, task)]["fb"].tolist())


def saw(state: State, task: int, stage: int, start: float, end: float, *, backward: bool = False) -> None:
    observe(state, 0, stage, slot_of(state, task) if task >= 0 else NONE, start, end, backward)


# Golden cases


@pytest.mark.parametrize("case", golden_cases("alg1"), ids=itemgetter("name"))
def test_golden_forecasts_and_scores(case: dict[str, Any]) -> None:
    given_, expect_ = case["input"], case["expect"]
    query = golden_job(given_["query"])
    state = node_with(given_["S"], [golden_job(task) for task in given_["history"]])
    fb, fe, idleness = expected(state, query)
    assert (fb, fe) == (tuple(expect_["fb"]), tuple(expect_["fe"]))
    assert idleness == pytest.approx(expect_["II"])

    alone = sum(query.forward)
    length = 200
    lengths_of(state, length, density=given_.get("LC", 0.0), unit=given_.get("LCu", 0.0))
    forward, now = np.array(query.forward), query.release
    alpha, beta, tau = given_["abt"]
    paper = SchedulerConfig(
        1, "lemix-paper", serving_first=False, knobs={"lambda1": alpha, "lambda2": beta, "tau": tau}
    )
    t0, lambda1, lambda2, tau, keep = given_["fix"]
    fixed = SchedulerConfig(
        1,
        "lemix",
        serving_first=False,
        knobs={"lambda1": lambda1, "lambda2": lambda2, "tau": tau, "keep": keep},
        t0=t0,
    )
    rules = make_rules(paper)
    by_paper = request_candidate(state, rules, 0, now, alone, length, forward)
    assert by_paper.response == pytest.approx(expect_["R"])
    assert by_paper.response - alone == pytest.approx(expect_["W"])
    assert by_paper.idleness == pytest.approx(expect_["II"])
    assert score(state, rules, 0, by_paper) == pytest.approx(expect_["score_code"])
    rules = make_rules(fixed)
    by_fixed = request_candidate(state, rules, 0, now, alone, length, forward)
    assert score(state, rules, 0, by_fixed) == pytest.approx(expect_["score_fix"])

    # The two terms that the paper's score is made of, where a score is nothing but the one.
    last = state.nodes[0]["last_release"]
    gap = now - last if last > -math.inf else 0.0
    assert gap == pytest.approx(expect_["gap"])
    profit = make_rules(replace(paper, knobs={"lambda1": 1.0, "lambda2": 0.0, "tau": paper.knobs["tau"]}))
    assert score(state, profit, 0, Candidate(now, alone, length, 1.0, 0.0, idleness, False)) == pytest.approx(
        expect_["IP"]
    )


def golden_job(task: dict[str, Any]) -> Job:
    return Job(task["release"], tuple(task["F"]), tuple(task["B"]) if task["train"] else ())


def lengths_of(state: State, length: int, *, density: float, unit: float) -> None:
    """Let lengths of tasks on node 0 be such that this one is as consistent with them."""
    node = state.nodes[0]
    if unit == 0.0:
        node["squared_lengths"] = 0.0
        return
    std = unit / (density * math.sqrt(2 * math.pi))
    node["lengths"], node["squared_lengths"] = 7, 7 * std**2
    node["mean_length"] = length - std * math.sqrt(-2 * math.log(unit))


@pytest.mark.parametrize("case", golden_cases("lc"), ids=itemgetter("name"))
def test_golden_length_consistency(case: dict[str, Any]) -> None:
    given_, expect_ = case["input"], case["expect"]
    state = node_with(1, [])
    for task, length in enumerate(given_["lengths"]):
        slot = take_slot(state, task)
        state.slots[slot]["rows"], state.slots[slot]["prompt"] = 1, length
        note_assigned(state, FIFO, 0, slot, 0.0)
    here = state.nodes[0]
    assert here["mean_length"] == pytest.approx(expect_["mean"])
    assert math.sqrt(here["squared_lengths"] / here["lengths"]) == pytest.approx(expect_["std"])
    assert length_consistency(state, 0, given_["l"]) == pytest.approx(expect_["unit"])
    assert length_density(state, 0, given_["l"]) == pytest.approx(expect_["pdf"])


def test_lengths_that_are_all_equal_are_consistent_with_nothing() -> None:
    state = node_with(1, [Job(0.0, (1.0,))] * 3)
    assert length_consistency(state, 0, 8) == 0.0


# Worked out by hand


def test_backwards_that_overtook_one_another_are_passed_in_the_order_of_time() -> None:
    """On stage 0 the second backward is expected at [7, 8], before the first one's [15, 18]."""
    state = node_with(3, [Job(0.0, (1.0,) * 3, (3.0, 11.0, 1.0)), Job(0.0, (1.0,) * 3, (1.0,) * 3)])
    (_, _, _, first, first_end, _), (_, _, _, second, second_end, _) = paths_of(state, 0)
    assert (first[0], first_end[0]) == (15.0, 18.0)
    assert (second[0], second_end[0]) == (7.0, 8.0)
    # Eight seconds fit neither in front of the second backward nor between the two.
    assert expected(state, Job(2.0, (8.0, 1.0, 1.0)))[0][0] == 18.0
    assert expected(state, Job(2.0, (7.0, 1.0, 1.0)))[0][0] == 8.0


def test_a_late_training_forward_opens_room_in_front_of_its_backward() -> None:
    state = node_with(2, [Job(0.0, (2.0, 1.0), (2.0, 2.0)), Job(0.0, (4.0, 1.0))])
    assert begins(state, 1) == (7.0, 11.0)  # 4 s do not fit in front of the backward [5, 7]
    saw(state, 0, 0, 0.0, 2.0)
    saw(state, 0, 1, 2.0, 4.0)
    assert begins(state, 1) == (2.0, 6.0)  # the backward is expected at [6, 8] now


def test_a_backward_that_rests_for_serving_is_expected_where_it_was() -> None:
    state = node_with(2, [Job(0.0, (1.0, 1.0), (4.0, 4.0))])
    saw(state, 0, 0, 0.0, 1.0)
    saw(state, 0, 1, 1.0, 2.0)
    saw(state, NONE, 1, 3.0, 3.5)  # a request that was placed and forgotten meanwhile
    assert state.paths[slot_of(state, 0)]["bb"].tolist() == [6.0, 2.0]


def test_requests_may_run_in_another_order_than_they_were_assigned() -> None:
    state = node_with(1, [Job(0.0, (5.0,)), Job(0.0, (1.0,)), Job(0.0, (1.0,))])
    saw(state, 1, 0, 0.0, 1.5)
    assert [begins(state, task) for task in range(3)] == [(1.5,), (0.0,), (6.5,)]
    assert expected(state, Job(0.0, (1.0,)))[0] == (7.5,)


def test_a_report_that_comes_after_its_task_was_forgotten_still_counts() -> None:
    """The last stage's report of a request may be overtaken by the request's outcome."""
    state = node_with(1, [Job(0.0, (1.0,))])
    forget(state, slot_of(state, 0))
    saw(state, NONE, 0, 0.0, 3.0)
    assert expected(state, Job(2.0, (1.0,)))[0] == (3.0,)


def test_a_lost_task_is_waited_for_no_longer() -> None:
    state = node_with(2, [Job(0.0, (9.0, 9.0), (9.0, 9.0)), Job(1.0, (1.0, 1.0))])
    forget(state, slot_of(state, 0))
    assert begins(state, 1) == (1.0, 2.0)


def test_a_stage_that_was_never_used_has_no_idle_time() -> None:
    state = node_with(2, [])
    assert expected(state, Job(10.0, (1.0, 1.0)))[2] == 0.0
    saw(state, NONE, 0, 0.0, 4.0)
    assert expected(state, Job(10.0, (1.0, 1.0)))[2] == 6.0


# What every forecast holds to


seconds = st.integers(1, 9).map(float)  # whole numbers: sums are exact


@st.composite
def nodes(draw: st.DrawFn) -> tuple[int, list[Job]]:
    """Tasks in the order of their release."""
    stages = draw(st.integers(1, 4))
    times = st.tuples(*[seconds] * stages)
    drawn = draw(st.lists(st.tuples(st.integers(0, 12), times, st.one_of(st.just(()), times)), min_size=1, max_size=7))
    release, jobs = 0.0, []
    for gap, forward, backward in drawn:
        release += gap
        jobs.append(Job(release, forward, backward))
    return stages, jobs


@given(nodes())
def test_paths_follow_the_equations_and_no_forward_overlaps_anything(node: tuple[int, list[Job]]) -> None:
    stages, jobs = node
    forwards: list[list[tuple[float, float]]] = [[] for _ in range(stages)]
    backwards: list[list[tuple[float, float]]] = [[] for _ in range(stages)]
    for job, (_, fb, fe, bb, be, _) in zip(jobs, paths_of(node_with(stages, jobs), 0), strict=True):
        assert fb[0] >= job.release
        assert all(fb[stage + 1] >= fe[stage] for stage in range(stages - 1))
        assert [end - begin for begin, end in zip(fb, fe, strict=True)] == list(job.forward)
        assert [end - begin for begin, end in zip(bb, be, strict=True)] == list(job.backward)
        if job.backward:
            assert bb[-1] == fe[-1]
            assert all(bb[stage] == be[stage + 1] for stage in range(stages - 1))
        for stage in range(stages):
            assert all(fe[stage] <= b or e <= fb[stage] for b, e in forwards[stage] + backwards[stage])
            forwards[stage].append((fb[stage], fe[stage]))
            if job.backward:
                assert all(be[stage] <= b or e <= bb[stage] for b, e in forwards[stage])
                backwards[stage].append((bb[stage], be[stage]))


# Incremental as from scratch


gap = st.sampled_from([0.0, 0.0, 0.1, 0.7, 2.5, 9.0])
length = st.integers(1, 300)
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(Arrive, gap, length, st.sampled_from([0, 0, 1, 2, 9])),
    st.builds(Offer, gap, st.integers(1, 3), st.lists(length, min_size=1, max_size=4).map(tuple)),
    # What is expected first is reported first, mostly, and about when it was expected to end.
    st.builds(Report, gap, st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([0.0, 0.3]), st.floats(0.5, 2.0)),
    st.builds(Report, gap, st.integers(0, 99), st.floats(0.0, 20.0), st.floats(0.0, 20.0)),
    st.builds(Finish, gap, st.integers(0, 99)),
)
coefficient = st.sampled_from([0.0, 0.1, 0.5, 1.3, 3.0])
forms = st.builds(Affine, coefficient.filter(bool), st.sampled_from([0.0, 0.01, 0.05]), st.just(0.0), st.just(1e-3))


@st.composite
def latencies(draw: st.DrawFn) -> LatencyModel:
    stages = draw(st.integers(1, 4))
    each = st.tuples(*[forms] * stages)
    return LatencyModel(draw(each), draw(each))


configs = st.builds(
    SchedulerConfig,
    nodes=st.integers(1, 3),
    placement=st.sampled_from(["least-completion", "round-robin", "lemix"]),
    release=st.sampled_from(["async", "sync"]),
    lanes=st.sampled_from([None, 1]),
    order=st.sampled_from(get_args(OrderName)),
    serving_first=st.booleans(),
    admission=st.sampled_from(["none", "none", "slack", "paper"]),
    t0=st.sampled_from([0.5, 5.0]),
)


@settings(max_examples=150)
@given(configs, latencies(), st.lists(steps, min_size=25, max_size=40))
def test_what_is_kept_is_what_would_be_forecast_from_scratch(
    config: SchedulerConfig, latency: LatencyModel, story: list[Step]
) -> None:
    """Whatever is reported, and in whatever order: begins, ends and what comes out of them are the same numbers."""
    mirror = Mirror(config, latency)
    candidate = np.linspace(0.4, 2.0, latency.stages)
    for step in story:
        mirror.take(step)
        mirror.check()
        mirror.check_candidates(candidate)
