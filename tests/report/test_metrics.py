"""Every metric on cases small enough to compute by hand, and the properties that hold for all runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.records.schema import ServedTask, Span, TrainedTask
from lemix_hpc.report import metrics
from lemix_hpc.report.distribution import Distribution
from lemix_hpc.report.stage_time import (
    ServingBatches,
    StageTime,
    StageTimes,
    bubble_rate,
    per_active_node,
    per_makespan,
    training_share,
)
from tests.report.work import work


def request(arrival: float = 0.0, finished: float = 1.0, **fields: object) -> ServedTask:
    return ServedTask("r", "finished", arrival, 4, finished=finished, **fields)  # type: ignore[arg-type]


def micro_batch(finished: float, loss: float | None = None, tokens: int = 0) -> TrainedTask:
    return TrainedTask("m", "finished", 0.0, tokens, placed=0.0, finished=finished, loss=loss)


REJECTED = ServedTask("x", "rejected", 0.0, 4)
LOST = ServedTask("y", "lost", 0.0, 4, node=0, placed=0.0, first_token=0.5)


def test_response_runs_from_arrival_to_finish() -> None:
    assert metrics.response(request(2.0, 5.0)) == 5.0 - 2.0
    assert metrics.response(REJECTED) is None


def test_first_token_of_a_lost_request_is_not_counted() -> None:
    assert metrics.time_to_first_token(request(2.0, 5.0, first_token=3.0)) == 3.0 - 2.0
    assert metrics.time_to_first_token(LOST) is None


def test_scoring_has_first_token_at_the_response() -> None:
    scored = request(2.0, 5.0, first_token=5.0)
    assert metrics.time_to_first_token(scored) == metrics.response(scored)


def test_time_per_output_token_spreads_the_rest_over_n_minus_one() -> None:
    task = request(1.0, 4.0, first_token=2.0, output=[1, 2, 3])
    assert metrics.time_per_output_token(task) == ((4.0 - 1.0) - (2.0 - 1.0)) / (3 - 1)
    several = request(1.0, 4.0, first_token=2.0, output=[1, 2, 3, 1, 2], answers=2)
    assert metrics.time_per_output_token(several) == 1.0, "side by side"


@pytest.mark.parametrize("output", [[], [5]])
def test_time_per_output_token_needs_two_tokens(output: list[int]) -> None:
    assert metrics.time_per_output_token(request(1.0, 4.0, first_token=2.0, output=output)) is None


def test_attainment_counts_rejected_and_lost_as_misses() -> None:
    served = [request(0.0, 1.0), request(0.0, 2.0), request(0.0, 3.0), REJECTED, LOST]
    assert metrics.attainment(served, 2.0) == 2 / 5
    assert metrics.attainment([REJECTED], 2.0) == 0.0
    assert metrics.attainment([], 2.0) is None


def test_limits_in_milliseconds_hold_one_by_one_and_at_once() -> None:
    fast = request(0.0, 1.0, first_token=0.1, output=[1] * 10)
    slow_start = request(0.0, 1.5, first_token=1.0, output=[1] * 6)
    single = request(0.0, 0.5, first_token=0.5, output=[1])
    limits = {"ttft": 600.0, "tpot": 150.0}
    shares = metrics.attainments([fast, slow_start, single, REJECTED], limits)
    assert shares == {"ttft": 2 / 4, "tpot": 3 / 4, "all": 2 / 4}
    assert metrics.attainments([fast], {"response": 999.0}) == {"response": 0.0}
    assert metrics.attainments([], limits) == {"ttft": None, "tpot": None}


def test_nll_is_weighted_by_tokens() -> None:
    nll = metrics.MeanNll()
    nll.add(request())
    assert nll.mean is None
    for task in [request(nll=30.0, scored_tokens=10), request(nll=2.0, scored_tokens=2), REJECTED]:
        nll.add(task)
    assert nll.mean == (30.0 + 2.0) / (10 + 2)


def test_forecast_errors_are_in_units_of_t0() -> None:
    served = [
        request(0.0, 2.0, predicted_response_s=1.0),
        request(0.0, 1.0, predicted_response_s=3.0),
        request(0.0, 9.0),
        REJECTED,
    ]
    errors = [metrics.forecast_error(task, 0.5) for task in served]
    assert errors == [abs(1.0 - 2.0) / 0.5, abs(3.0 - 1.0) / 0.5, None, None]
    assert metrics.forecast_error(served[0], 0.0) is None


def test_forecast_errors_of_tokens_are_those_of_requests_that_have_the_forecasts() -> None:
    expected = {"predicted_ttft_s": 0.5, "predicted_tpot_s": 0.25}
    served = [
        request(0.0, 3.0, first_token=1.0, output=[1, 2, 3], **expected),
        request(0.0, 3.0, first_token=2.0, output=[1], **expected),
        request(0.0, 9.0, first_token=1.0, output=[1, 2]),
        LOST,
    ]
    assert [metrics.first_token_forecast_error(task) for task in served] == [1.0 - 0.5, 2.0 - 0.5, None, None]
    assert [metrics.token_forecast_error(task) for task in served] == [(3.0 - 1.0) / 2 - 0.25, None, None, None]


def test_values_are_ordered_by_their_times() -> None:
    ordered = metrics.Ordered()
    for time, value in ((2.0, 1.0), (1.0, 2.0), (2.0, 3.0), (0.0, 4.0)):
        ordered.add(time, value)
    assert ordered.values().tolist() == [4.0, 2.0, 1.0, 3.0]


def test_distribution_leaves_out_what_is_undefined() -> None:
    # p95 of four values lies at position 0.95 * 3 = 2.85, between the third and the fourth.
    figures = Distribution([4.0, None, 1.0, 3.0, 2.0]).figures([50, 95], scale=1e3)
    assert figures == pytest.approx({"mean": 2500.0, "p50": 2500.0, "p95": 3000 + 0.85 * 1000})
    assert Distribution([None]).figures([50]) == {"mean": None, "p50": None}
    assert Distribution([2.0]).figures([99]) == {"mean": 2.0, "p99": 2.0}


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1), st.integers(1, 30))
def test_of_more_values_than_are_kept_percentiles_are_nearly_the_same(values: list[float], exact: int) -> None:
    near, true = Distribution(values, exact).figures([1, 50, 99]), Distribution(values).figures([1, 50, 99])
    # Between two values that are rounded, what is left is their rounding, not that of what lies between them.
    largest = max(map(abs, values))
    assert near["mean"] == pytest.approx(true["mean"], rel=1e-9, abs=1e-9 * largest)
    assert near == pytest.approx(true, rel=3e-4, abs=3e-4 * largest)


# Node 0 works on two stages over [1, 5]; node 2 on its first stage only over [2, 4]; node 1 is never started.
SPANS = [
    Span(0, 0, "a", "serve", 1.0, 2.0, 0, 1),
    Span(0, 0, "b", "serve", 1.0, 2.0, 0, 1),
    Span(0, 1, "a", "serve", 2.0, 3.0, 0, 1),
    Span(0, 1, "b", "serve", 2.0, 3.0, 0, 1),
    Span(0, 1, "m", "backward", 3.5, 5.0, 0),
    Span(2, 0, "", "copy", 2.0, 2.5, 0),
    Span(2, 0, "", "step", 3.0, 4.0, 0),
]


def stage_time(spans: list[Span]) -> StageTime:
    return stage_times(spans).so_far()


def stage_times(spans: list[Span]) -> StageTimes:
    times = StageTimes()
    for stretch in work(spans):
        times.add(stretch)
    return times


def test_stage_time_counts_a_batch_once() -> None:
    time = stage_time(SPANS)
    assert time.window == (1.0, 5.0)
    assert time.makespan == 5.0 - 1.0
    assert time.node_spans == {0: 5.0 - 1.0, 2: 4.0 - 2.0}
    assert time.busy == {(0, 0): 1.0, (0, 1): 1.0 + 1.5, (2, 0): 0.5 + 1.0}
    assert time.training == {(0, 1): 1.5, (2, 0): 1.0}


def test_bubble_rate_is_idle_time_of_started_nodes() -> None:
    # Idle: node 0 (4 - 1) + (4 - 2.5), node 2 (2 - 1.5) + (2 - 0); available: 2 stages x (4 + 2).
    idle = (4 - 1) + (4 - 2.5) + (2 - 1.5) + (2 - 0)
    assert bubble_rate(stage_time(SPANS), stages=2) == pytest.approx(idle / (2 * (4 + 2)))


def test_training_share_is_of_all_nodes_over_the_makespan() -> None:
    assert training_share(stage_time(SPANS), nodes=3, stages=2) == (1.5 + 1.0) / (3 * 2 * 4.0)


def test_throughput_by_makespan_and_by_active_node() -> None:
    time = stage_time(SPANS)
    assert per_makespan(3, time) == 3 / (5.0 - 1.0)
    assert per_active_node(3, time) == 3 / ((5.0 - 1.0) + (4.0 - 2.0))


def test_nothing_ran() -> None:
    time = stage_time([])
    assert time.window is None
    assert bubble_rate(time, 2) is None
    assert training_share(time, 1, 2) is None
    assert per_makespan(0, time) is None
    assert per_active_node(0, time) is None
    assert stage_times([]).training_window is None and stage_times([]).last_version is None
    assert (ServingBatches().mean_size, ServingBatches().mixed) == (None, 0)


def test_training_lasts_from_its_first_start_to_its_last_end() -> None:
    """The copy from 2 and the serving from 1 do not count."""
    assert stage_times(SPANS).training_window == (3.0, 5.0)
    assert stage_times([Span(0, 0, "", "save", 0.0, 9.0, 4)]).so_far() == StageTime(None, {}, {}, {})


def losses(trained: list[TrainedTask]) -> tuple[float | None, float | None]:
    found = metrics.Losses()
    for task in trained:
        found.add(task)
    return found.first_and_last()


def test_losses_are_those_of_the_first_and_last_tenth_by_finish() -> None:
    # 20 micro-batches, loss = 20 - finish, given in reverse: the tenths hold 2 each.
    trained = [micro_batch(float(t), 20.0 - t) for t in reversed(range(20))]
    assert losses(trained) == ((20 + 19) / 2, (2 + 1) / 2)
    assert losses([micro_batch(1.0, 3.0)]) == (3.0, 3.0)
    assert losses([]) == (None, None)


def test_a_missing_loss_is_not_hidden() -> None:
    assert losses([micro_batch(1.0, 3.0), micro_batch(2.0, None)]) == (3.0, None)


def test_hold_is_from_eligible_to_placed() -> None:
    trained = [TrainedTask("m", "lost", 1.0, 8, 0, placed=1.5), TrainedTask("n", "lost", 2.0, 8)]
    assert [metrics.hold(task) for task in trained] == [1.5 - 1.0, None]


def test_mixed_batches_are_those_with_two_versions_on_one_node() -> None:
    spans = [
        Span(0, 0, "a", "serve", 0.0, 1.0, 3, 1),
        Span(0, 0, "b", "serve", 0.0, 1.0, 3, 1),
        Span(0, 1, "a", "serve", 1.0, 2.0, 4, 1),
        Span(0, 1, "b", "serve", 1.0, 2.0, 4, 1),
        Span(1, 0, "c", "serve", 0.0, 1.0, 5, 1),
        Span(1, 1, "c", "serve", 1.0, 2.0, 5, 1),
        Span(1, 1, "m", "forward", 2.0, 3.0, 6, 1),
    ]
    batches = ServingBatches()
    for stretch in work(spans):
        batches.add(stretch)
    assert (batches.mean_size, batches.mixed) == ((2 + 1) / 2, 1)


STAGES = 2
times = st.integers(0, 1000).map(lambda milliseconds: milliseconds / 1000)
spans_of_a_run = st.lists(
    st.builds(
        lambda node, stage, kind, start, length: Span(node, stage, "t", kind, start, start + length, 0),
        st.integers(0, 2),
        st.integers(0, STAGES - 1),
        st.sampled_from(["serve", "forward", "backward", "step", "copy"]),
        times,
        times,
    )
)


@given(spans_of_a_run)
def test_busy_is_within_the_span_of_the_node(spans: list[Span]) -> None:
    time = stage_time(spans)
    for (node, stage), busy in time.busy.items():
        assert 0 <= time.training.get((node, stage), 0.0) <= busy + 1e-9
        assert busy <= time.node_spans[node] + 1e-9


@given(spans_of_a_run)
def test_bubble_rate_is_a_fraction(spans: list[Span]) -> None:
    time = stage_time(spans)
    rate = bubble_rate(time, STAGES)
    assert (rate is None) == (sum(time.node_spans.values()) == 0)
    assert rate is None or 0 <= rate <= 1


@given(spans_of_a_run, st.integers(2, 4))
def test_more_requests_in_a_batch_do_not_change_busy_time(spans: list[Span], requests: int) -> None:
    assert stage_time(spans * requests) == stage_time(spans)


@given(st.lists(st.one_of(times.map(lambda end: request(0.0, end)), st.just(REJECTED)), min_size=1), times, times)
def test_attainment_grows_with_the_limit(served: list[ServedTask], one: float, other: float) -> None:
    low, high = metrics.attainment(served, min(one, other)), metrics.attainment(served, max(one, other))
    assert low is not None and high is not None
    assert 0 <= low <= high <= 1
