"""Stage times of compiled code are those of the forms that they are made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.candidates import request_row, training_rows
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape, StageTime
from lemix_hpc.policy.latency_forms import Interpolated, Quadratic, Roofline, Together
from lemix_hpc.policy.latency_tables import (
    BACKWARD_PASS,
    FORWARD_PASS,
    SERVE_PASS,
    TABLE,
    Times,
    kind_seconds,
    make_times,
    stage_seconds,
)
from lemix_hpc.policy.rules import SchedulerConfig, make_rules
from lemix_hpc.policy.state import State, make_state

LARGEST = 1024
"""Tokens that the tables of these tests reach, so that many lengths lie beyond."""

ONE_NODE = np.zeros(1, dtype=np.int64)

constants = st.floats(1e-5, 1e-2)
per_token = st.floats(1e-5, 1e-3)
per_square = st.floats(0.0, 1e-8)
rooflines = st.builds(
    Roofline, constants, per_token, st.floats(2.0, 8.0), per_square, st.floats(0.0, 1e-6), st.floats(0.0, 1e-3)
)


@st.composite
def curves(draw: st.DrawFn) -> Interpolated:
    """Their last knots lie on both sides of the end of the table."""
    knots = sorted(draw(st.sets(st.integers(1, 3 * LARGEST), min_size=2, max_size=6)))
    rises = draw(st.lists(st.floats(1e-4, 1e-2), min_size=len(knots), max_size=len(knots)))
    return Interpolated(tuple(knots), tuple(np.cumsum(rises).tolist()), draw(rooflines))


straight: st.SearchStrategy[StageTime] = st.one_of(
    st.builds(Affine, constants, per_token, per_square, st.floats(0.0, 1e-6)), st.builds(Quadratic, per_square)
)
alone: st.SearchStrategy[StageTime] = st.one_of(straight, rooflines, curves())
forms = st.one_of(alone, st.builds(Together, alone, alone))


@st.composite
def models(draw: st.DrawFn) -> LatencyModel:
    each = st.tuples(*[forms] * draw(st.integers(1, 3)))
    return LatencyModel(draw(each), draw(each))


shapes = st.builds(Shape, st.integers(1, LARGEST), st.integers(1, 10**8), st.floats(0.0, 1e6), st.integers(0, 9))


def seconds(times: Times, node: int, direction: int, stage: int, shape: Shape) -> float:
    return stage_seconds(times, node, direction, stage, shape.tokens, shape.squares, shape.cached, shape.prefills)


@given(st.lists(models(), min_size=1, max_size=2), shapes)
def test_within_the_table_seconds_are_those_of_the_form(latencies: list[LatencyModel], shape: Shape) -> None:
    latencies = [latency for latency in latencies if latency.stages == latencies[0].stages]
    kind_of = np.array([kind for kind in range(len(latencies)) for _ in range(2)])
    times = make_times(latencies, kind_of, table=LARGEST)
    for node, kind in enumerate(kind_of):
        forward, backward = latencies[kind].forward, latencies[kind].backward
        for direction, side in ((FORWARD_PASS, forward), (BACKWARD_PASS, backward), (SERVE_PASS, forward)):
            for stage, form in enumerate(side):
                assert seconds(times, node, direction, stage, shape) == pytest.approx(form.seconds(shape), rel=1e-12)


@given(straight, st.integers(LARGEST, 10**6))
def test_beyond_the_table_straight_forms_go_on_as_they_are(form: StageTime, tokens: int) -> None:
    times = make_times([LatencyModel((form,), (form,))], ONE_NODE, table=LARGEST)
    shape = Shape.of([tokens])
    assert seconds(times, 0, FORWARD_PASS, 0, shape) == pytest.approx(form.seconds(shape), rel=1e-9)


@given(st.floats(1e-3, 1e-2), st.floats(1e-5, 1e-4), st.floats(1.0, 8.0), st.integers(TABLE, 20 * TABLE))
def test_beyond_the_table_a_roofline_has_long_become_straight(a: float, b: float, p: float, tokens: int) -> None:
    """Up to a thousand tokens' time is hidden behind the weights; a sharper roof is straight sooner."""
    form = Roofline(a, b, p)
    times = make_times([LatencyModel((form,), (form,))], ONE_NODE)
    shape = Shape.of([tokens])
    assert seconds(times, 0, FORWARD_PASS, 0, shape) == pytest.approx(form.seconds(shape), rel=0.03)


@given(st.lists(st.floats(1e-4, 1e-2), min_size=4, max_size=4), st.integers(1, 65536))
def test_curves_are_followed_to_their_end_wherever_that_is(rises: list[float], tokens: int) -> None:
    form = Interpolated((16, 2048, 16384, 65536), tuple(np.cumsum(rises).tolist()), Roofline(1e-3, 1e-5, 4.0))
    times = make_times([LatencyModel((form,), (form,))], ONE_NODE)
    assert kind_seconds(times, 0, FORWARD_PASS, 0, tokens, 0.0, 0.0, 0) == pytest.approx(form.level(tokens))


def state_of(latency: LatencyModel) -> State:
    return make_state(make_times([latency], ONE_NODE, table=LARGEST), lanes=1, seed=0, expected_output=1.0, slots=1)


RULES = make_rules(SchedulerConfig(nodes=1, batch_requests=4))


@given(models(), st.integers(1, LARGEST), st.integers(0, 50))
def test_a_request_on_an_empty_node_takes_what_it_takes_alone(latency: LatencyModel, prompt: int, output: int) -> None:
    row = np.zeros(latency.stages)
    alone = request_row(state_of(latency), RULES, 0, prompt, output, row)
    expected = latency.request_times(prompt, output)
    assert row.tolist() == pytest.approx(expected, rel=1e-9)
    assert alone == pytest.approx(sum(expected), rel=1e-9)


@given(models(), st.integers(1, LARGEST), st.integers(2, 50), st.integers(0, 20))
def test_requests_that_generate_share_the_passes_of_their_batch(
    latency: LatencyModel, prompt: int, output: int, others: int
) -> None:
    state = state_of(latency)
    state.nodes[0]["generating"] = others
    row = np.zeros(latency.stages)
    alone = request_row(state, RULES, 0, prompt, output, row)
    batch = min(4, 1 + others // latency.stages)
    passes = output - 1
    decodes = latency.forward_times(Shape(batch, batch, batch * (prompt + (passes - 1) / 2)))
    first = latency.request_times(prompt, 0)
    assert row.tolist() == pytest.approx([f + passes * d / batch for f, d in zip(first, decodes, strict=True)])
    assert alone == pytest.approx(sum(first) + passes * sum(decodes))


@given(models(), st.integers(1, 4), st.integers(1, LARGEST // 4))
def test_a_micro_batch_takes_what_its_rows_take_together(latency: LatencyModel, rows: int, length: int) -> None:
    forward, backward = np.zeros(latency.stages), np.zeros(latency.stages)
    training_rows(state_of(latency), 0, rows, length, forward, backward)
    shape = Shape.of([length] * rows)
    assert forward.tolist() == pytest.approx(latency.forward_times(shape), rel=1e-9)
    assert backward.tolist() == pytest.approx(latency.backward_times(shape), rel=1e-9)
