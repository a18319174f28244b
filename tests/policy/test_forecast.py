import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lemix_hpc.policy.forecast import NodeForecast
from lemix_hpc.policy.forecast import Path as Forecast

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("LEMIX_GOLDEN", REPOSITORY.parent / "shared" / "golden")) / "policy_cases.json"


@dataclass(frozen=True)
class Job:
    """A task as the forecast sees it: release and seconds per stage. Serving has no backward."""

    release: float
    forward: tuple[float, ...]
    backward: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """One forward or backward on a stage, as predicted or as it was."""

    task: int
    stage: int
    backward: bool
    begin: float
    end: float


def forecast_of(stages: int, jobs: list[Job]) -> NodeForecast:
    """A node that was given these tasks, numbered from 0."""
    node = NodeForecast(stages)
    for task, job in enumerate(jobs):
        node.assign(task, node.predict(job.release, job.forward, job.backward), job.forward, job.backward)
    return node


def paths_of(node: NodeForecast, count: int) -> list[Forecast]:
    paths = [node.path(task) for task in range(count)]
    assert all(path is not None for path in paths)
    return [path for path in paths if path is not None]


def runs_of(paths: list[Forecast]) -> list[Run]:
    forwards = [
        Run(task, stage, False, *span)
        for task, path in enumerate(paths)
        for stage, span in enumerate(zip(path.fb, path.fe, strict=True))
    ]
    backwards = [
        Run(task, stage, True, *span)
        for task, path in enumerate(paths)
        for stage, span in enumerate(zip(path.bb, path.be, strict=True))
    ]
    return forwards + backwards


def observe(node: NodeForecast, run: Run) -> None:
    node.observe(run.task, run.stage, run.begin, run.end, backward=run.backward)


def overlapping(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Pairs on the same stage that share more than a rounding error of time."""
    return [
        (a, b)
        for i, a in enumerate(runs)
        for b in runs[i + 1 :]
        if a.stage == b.stage and min(a.end, b.end) - max(a.begin, b.begin) > 1e-9
    ]


# Whole numbers of seconds: sums are exact, so that properties can be stated without tolerances.
seconds = st.integers(1, 9).map(float)
STAGES = st.integers(1, 4)


@st.composite
def jobs(draw: st.DrawFn, stages: int, *, training: bool = True, at_most: int = 7) -> list[Job]:
    """Tasks in the order of their release."""
    times = st.tuples(*[seconds] * stages)
    kind = st.builds(Job, st.just(0.0), times, st.one_of(st.just(()), times) if training else st.just(()))
    drawn = draw(st.lists(kind, min_size=1, max_size=at_most))
    gaps = draw(st.lists(st.integers(0, 12), min_size=len(drawn), max_size=len(drawn)))
    releases = [float(sum(gaps[: i + 1])) for i in range(len(gaps))]
    return [Job(release, job.forward, job.backward) for release, job in zip(releases, drawn, strict=True)]


nodes = STAGES.flatmap(lambda stages: st.tuples(st.just(stages), jobs(stages)))
serving_nodes = STAGES.flatmap(lambda stages: st.tuples(st.just(stages), jobs(stages, training=False)))


# Four cases worked out by hand from the equations of docs/policy.md.


@pytest.mark.parametrize(
    ("history", "query", "fb", "fe", "idleness", "response"),
    [
        pytest.param(
            [],
            Job(0.0, (1.0, 2.0)),
            # fb_0 is the release and fb_1 = fe_0; nothing is idle because the node was never used.
            (0.0, 1.0),
            (1.0, 3.0),
            0.0,
            3.0,
            id="empty node",
        ),
        pytest.param(
            [Job(0.0, (1.0, 1.0))],
            Job(0.5, (2.0, 1.0)),
            # The first request leaves the stages at 1 and 2; stage 1 then waits one second for the longer second one.
            (1.0, 3.0),
            (3.0, 4.0),
            1.0,
            3.5,
            id="serving behind serving",
        ),
        pytest.param(
            [Job(0.0, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0))],
            Job(2.0, (1.0, 1.0, 1.0)),
            # Backward: [3, 5] on stage 2, [5, 7] on 1, [7, 9] on 0. The forward fits in front of it on stages 0 and 1 and waits
            # for it on stage 2. Idle: 1 s on stage 0, 1 s on stage 1, nothing on stage 2, where the backward ran.
            (2.0, 3.0, 5.0),
            (3.0, 4.0, 6.0),
            2.0,
            4.0,
            id="far dependency on the last stage",
        ),
        pytest.param(
            [Job(19.0, (10.0, 10.0))],
            Job(20.0, (1.0, 1.0)),
            # The stages are busy until 29 and 39.
            (29.0, 39.0),
            (30.0, 40.0),
            0.0,
            20.0,
            id="busy node",
        ),
    ],
)
def test_forecast_worked_out_by_hand(
    history: list[Job], query: Job, fb: tuple[float, ...], fe: tuple[float, ...], idleness: float, response: float
) -> None:
    path = forecast_of(len(query.forward), history).predict(query.release, query.forward, query.backward)
    assert (path.fb, path.fe, path.idleness, path.response) == (fb, fe, idleness, response)


def test_forecasts_of_the_golden_file(subtests: pytest.Subtests) -> None:
    if not GOLDEN.is_file():
        pytest.skip(f"no golden cases in {GOLDEN}; set LEMIX_GOLDEN to the directory of policy_cases.json")
    cases = [case for case in json.loads(GOLDEN.read_text())["cases"] if case["kind"] == "alg1"]
    assert cases
    for case in cases:
        with subtests.test(msg=f"{case['name']}: {case['why']}"):
            given_, expect = case["input"], case["expect"]
            query = golden_job(given_["query"])
            node = forecast_of(given_["S"], [golden_job(task) for task in given_["history"]])
            path = node.predict(query.release, query.forward, query.backward)
            assert path.fb == pytest.approx(expect["fb"])
            assert path.fe == pytest.approx(expect["fe"])
            assert path.idleness == pytest.approx(expect["II"])
            assert path.response == pytest.approx(expect["R"])


def golden_job(task: dict[str, Any]) -> Job:
    return Job(task["release"], tuple(task["F"]), tuple(task["B"]) if task["train"] else ())


# What every forecast holds to.


@given(nodes)
def test_paths_are_ordered(node: tuple[int, list[Job]]) -> None:
    stages, tasks = node
    for job, path in zip(tasks, paths_of(forecast_of(stages, tasks), len(tasks)), strict=True):
        assert path.fb[0] >= job.release
        assert all(path.fb[s + 1] >= path.fe[s] for s in range(stages - 1))
        assert [e - b for b, e in zip(path.fb, path.fe, strict=True)] == list(job.forward)
        assert path.response >= sum(job.forward)
        assert path.idleness >= 0
        if job.backward:
            assert path.bb[-1] == path.fe[-1]
            assert all(path.bb[s] == path.be[s + 1] for s in range(stages - 1))
            assert [e - b for b, e in zip(path.bb, path.be, strict=True)] == list(job.backward)
            assert path.completion == path.be[0]
        else:
            assert (path.bb, path.be, path.completion) == ((), (), path.fe[-1])


@given(nodes)
def test_no_forward_overlaps_a_forward_or_a_backward(node: tuple[int, list[Job]]) -> None:
    stages, tasks = node
    runs = runs_of(paths_of(forecast_of(stages, tasks), len(tasks)))
    assert not [(a, b) for a, b in overlapping(runs) if not (a.backward and b.backward)]


def test_backwards_that_overtook_one_another_are_passed_in_the_order_of_time() -> None:
    """On stage 0 the second backward is expected at [7, 8], before the first one's [14, 17]."""
    tasks = [Job(0.0, (1.0, 1.0, 1.0), (3.0, 11.0, 1.0)), Job(0.0, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))]
    node = forecast_of(3, tasks)
    first, second = paths_of(node, 2)
    assert (first.bb[0], first.be[0]) == (15.0, 18.0)
    assert (second.bb[0], second.be[0]) == (7.0, 8.0)
    # Eight seconds fit neither in front of the second backward nor between the two.
    assert node.predict(2.0, (8.0, 1.0, 1.0)).fb[0] == 18.0
    assert node.predict(2.0, (7.0, 1.0, 1.0)).fb[0] == 8.0


@given(nodes)
def test_the_same_tasks_give_the_same_forecast(node: tuple[int, list[Job]]) -> None:
    stages, tasks = node
    assert paths_of(forecast_of(stages, tasks), len(tasks)) == paths_of(forecast_of(stages, tasks), len(tasks))


# What reports change.


@given(nodes, st.data())
def test_reports_of_what_was_predicted_move_nothing(node: tuple[int, list[Job]], data: st.DataObject) -> None:
    stages, tasks = node
    reported = forecast_of(stages, tasks)
    before = paths_of(reported, len(tasks))
    runs = sorted(runs_of(before), key=lambda run: (run.end, run.begin))
    assume(not overlapping(runs))  # a device cannot run two backwards at once
    for run in runs[: data.draw(st.integers(0, len(runs)))]:
        observe(reported, run)
    for task, path in enumerate(before):
        now = reported.path(task)
        assert now is None or (now.fb, now.fe, now.bb, now.be) == (path.fb, path.fe, path.bb, path.be)


@given(nodes)
def test_a_task_that_has_run_everywhere_is_expected_no_more(node: tuple[int, list[Job]]) -> None:
    stages, tasks = node
    reported = forecast_of(stages, tasks)
    runs = runs_of(paths_of(reported, len(tasks)))
    for run in runs:
        observe(reported, run)
    assert [reported.path(task) for task in range(len(tasks))] == [None] * len(tasks)
    ends = [max(run.end for run in runs if run.stage == stage) for stage in range(stages)]
    path = reported.predict(0.0, (1.0,) * stages)
    assert all(begin >= end for begin, end in zip(path.fb, ends, strict=True))


@given(serving_nodes, st.data())
def test_a_late_request_makes_nothing_behind_it_earlier(node: tuple[int, list[Job]], data: st.DataObject) -> None:
    stages, tasks = node
    reported = forecast_of(stages, tasks)
    before = paths_of(reported, len(tasks))
    late = data.draw(st.sampled_from(runs_of(before)))
    observe(reported, Run(late.task, late.stage, False, late.begin, late.end + data.draw(seconds)))
    for task in range(late.task + 1, len(tasks)):
        now = reported.path(task)
        assert now is not None
        assert all(new >= old for new, old in zip(now.fb + now.fe, before[task].fb + before[task].fe, strict=True))


def test_a_late_training_forward_opens_room_in_front_of_its_backward() -> None:
    """Why the property above is one of serving alone."""
    node = forecast_of(2, [Job(0.0, (2.0, 1.0), (2.0, 2.0)), Job(0.0, (4.0, 1.0))])
    assert paths_of(node, 2)[1].fb == (7.0, 11.0)  # 4 s do not fit in front of the backward [5, 7]
    node.observe(0, 0, 0.0, 2.0, backward=False)
    node.observe(0, 1, 2.0, 4.0, backward=False)
    assert paths_of(node, 2)[1].fb == (2.0, 6.0)  # the backward is expected at [6, 8] now


@given(nodes, st.data())
def test_a_forecast_brought_up_to_date_equals_one_built_from_the_reports(
    node: tuple[int, list[Job]], data: st.DataObject
) -> None:
    """Whatever the reports say and in whatever order they come, what is kept is what would be forecast from scratch."""
    stages, tasks = node
    reports = data.draw(
        st.lists(reports_on(stages, tasks), max_size=8, unique_by=lambda r: (r.task, r.stage, r.backward))
    )
    step_by_step, at_once = forecast_of(stages, tasks), NodeForecast(stages)
    for report in reports:
        observe(step_by_step, report)
        step_by_step.path(0)
    for task, job in enumerate(tasks):
        at_once.assign(task, at_once.predict(job.release, job.forward, job.backward), job.forward, job.backward)
        for report in reports:
            if report.task == task:
                observe(at_once, report)
    for task in range(len(tasks)):
        assert step_by_step.path(task) == at_once.path(task)


@st.composite
def reports_on(draw: st.DrawFn, stages: int, tasks: list[Job]) -> Run:
    task = draw(st.integers(0, len(tasks) - 1))
    begin = float(draw(st.integers(0, 40)))
    backward = bool(tasks[task].backward) and draw(st.booleans())
    return Run(task, draw(st.integers(0, stages - 1)), backward, begin, begin + draw(seconds))


@given(nodes, st.data())
def test_a_forward_that_has_not_run_begins_after_all_that_has(node: tuple[int, list[Job]], data: st.DataObject) -> None:
    stages, tasks = node
    reported = forecast_of(stages, tasks)
    reports = data.draw(
        st.lists(reports_on(stages, tasks), max_size=8, unique_by=lambda r: (r.task, r.stage, r.backward))
    )
    for report in reports:
        observe(reported, report)
    ran = {(r.task, r.stage) for r in reports if not r.backward}
    for task in range(len(tasks)):
        path = reported.path(task)
        for stage, begin in enumerate(path.fb if path else ()):
            if (task, stage) not in ran:
                assert begin >= max((r.end for r in reports if r.stage == stage), default=0.0)


def test_a_backward_that_rests_for_serving_is_expected_where_it_was() -> None:
    node = forecast_of(2, [Job(0.0, (1.0, 1.0), (4.0, 4.0))])
    node.observe(0, 0, 0.0, 1.0, backward=False)
    node.observe(0, 1, 1.0, 2.0, backward=False)
    node.observe(5, 1, 3.0, 3.5, backward=False)  # a request that was placed and forgotten meanwhile
    assert paths_of(node, 1)[0].bb == (6.0, 2.0)


def test_requests_may_finish_in_another_order_than_they_were_assigned() -> None:
    node = forecast_of(1, [Job(0.0, (5.0,)), Job(0.0, (1.0,)), Job(0.0, (1.0,))])
    node.observe(1, 0, 0.0, 1.5, backward=False)
    assert node.path(1) is None
    assert node.path(0) == Forecast(0.0, (1.5,), (6.5,), idleness=0.0)
    assert node.predict(0.0, (1.0,)).fb == (7.5,)


def test_a_report_that_comes_after_its_task_was_forgotten_still_counts() -> None:
    """The last stage's report of a request may be overtaken by the request's outcome."""
    node = forecast_of(1, [Job(0.0, (1.0,))])
    node.forget(0)
    node.observe(0, 0, 0.0, 3.0, backward=False)
    assert node.predict(2.0, (1.0,)).fb == (3.0,)


def test_a_lost_task_is_waited_for_no_longer() -> None:
    node = forecast_of(2, [Job(0.0, (9.0, 9.0), (9.0, 9.0)), Job(1.0, (1.0, 1.0))])
    node.forget(0)
    node.forget(0)
    assert node.path(0) is None
    assert paths_of_one(node, 1).fb == (1.0, 2.0)


def paths_of_one(node: NodeForecast, task: int) -> Forecast:
    path = node.path(task)
    assert path is not None
    return path


def test_a_stage_that_was_never_used_has_no_idle_time() -> None:
    node = NodeForecast(2)
    assert node.predict(10.0, (1.0, 1.0)).idleness == 0.0
    node.observe(7, 0, 0.0, 4.0, backward=False)
    assert node.predict(10.0, (1.0, 1.0)).idleness == 6.0
