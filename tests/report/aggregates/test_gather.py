"""What the figures of a run are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.reader import stream_run
from lemix_hpc.records.schema import ServedTask, Span, TrainedTask
from lemix_hpc.report.aggregates import requests as of_requests
from lemix_hpc.report.aggregates import work as of_work
from lemix_hpc.report.aggregates.gather import gather
from lemix_hpc.report.aggregates.schema import WORK, RunAggregates
from tests.records.conftest import EXAMPLE_FACTS, EXAMPLE_SPANS, EXAMPLE_TASKS

RunBuilder = Callable[..., Path]


def aggregates(run: Path) -> RunAggregates:
    return gather(stream_run(run))


@pytest.fixture
def example(example_run: Path) -> RunAggregates:
    return aggregates(example_run)


def test_distributions_of_the_example(example: RunAggregates) -> None:
    """Responses are 1, 1.5 and 3 s, and request c has two further tokens in 0.5 s."""
    curves = example.curves["interactive"]
    assert curves["response"].count == 3
    assert np.interp([0.0, 0.5, 1.0], curves["response"].shares, curves["response"].values) == pytest.approx(
        [1000, 1500, 3000], rel=0.02
    )
    assert curves["tpot"].values == pytest.approx(250.0)


def test_the_load_of_the_example(example: RunAggregates) -> None:
    """Arrivals at 0.5, 1, 3 and 6 s; the limit is the middle factor, 5 x 0.5 s, which c and d miss."""
    load = example.load
    assert load.limit == "response within 5 T0"
    width = load.edges[1]
    assert (load.arrived * width).sum() == 4 and (load.finished * width).sum() == 3
    by_arrival = {int(at / width): met for at, met in ((0.5, 1.0), (1.0, 1.0), (3.0, 0.0), (6.0, 0.0))}
    there = np.flatnonzero(np.isfinite(load.attainment))
    assert {int(cell): float(load.attainment[cell]) for cell in there} == by_arrival
    assert load.waiting[int(1.5 / width)] == 2 and load.waiting[-1] == 0
    medians = load.latencies["response"].p50
    assert medians[int(6.0 / width)] == pytest.approx(3000, rel=0.011)


def test_work_of_the_example(example: RunAggregates) -> None:
    lanes = example.lanes
    assert lanes.bars_are_all and len(lanes.bars.what) == 10
    assert lanes.seconds[0, 0] == {"prefill": 0.5, "forward": 1.0, "backward": 2.0, "step": 0.5, "decode": 0.25}
    for place, shares in lanes.shares.items():
        for kind, share in shares.items():
            assert share.sum() * lanes.edges[1] == pytest.approx(lanes.seconds[place][kind])
    first = [WORK[lanes.bars.kind[0]], lanes.bars.start[0], lanes.bars.end[0], lanes.bars.what[0]]
    assert first == ["prefill", 1.0, 1.5, "batch 1, 2 requests"]
    assert (example.versions.times.tolist(), example.versions.versions.tolist()) == ([1.0, 8.5], [0, 1])


def test_training_of_the_example(example: RunAggregates) -> None:
    training = example.training
    assert np.nanmax(training.loss) == 3.5 and np.isfinite(training.loss).sum() == 1
    assert (training.tokens_per_s * training.edges[1]).sum() == pytest.approx(260)
    assert training.steps[-2] <= 1 < training.steps[-1] and training.step_loss[-1] == 3.5


def test_where_requests_of_the_example_waited(example: RunAggregates) -> None:
    """Placed at once: a had its first pass at once and b after 0.5 s, each 1 s of passes. c waited for training 2.5 s, and its
    first token counts from 8.5 s: so both of its passes are for further tokens."""
    found = example.waits["all requests"]
    assert found.count == 3
    assert found.seconds == pytest.approx((0.0, (0 + 0.5 + 2.5) / 3, 2 / 3, 0.0, 0.5 / 3, 0.0))
    assert example.waits["slowest tenth"].count == 1
    assert sum(example.waits["slowest tenth"].seconds) == pytest.approx(3.0)


def test_forecasts_and_placement_of_the_example(example: RunAggregates) -> None:
    assert example.forecasts.every == 1
    assert (example.forecasts.predicted.tolist(), example.forecasts.measured.tolist()) == ([1250, 1000], [1000, 1500])
    assert example.placement.lengths == [7, 15, 31]
    assert example.placement.requests.tolist() == [[1, 1, 1]]
    assert example.placement.micro_batches.tolist() == [1]


def test_a_run_without_anything(empty_run: Path) -> None:
    empty = aggregates(empty_run)
    assert (empty.load, empty.lanes, empty.training, empty.forecasts, empty.versions) == (None,) * 5
    assert empty.curves == {} and empty.waits == {}


def long_run(count: int) -> tuple[list[Span], list[ServedTask | TrainedTask]]:
    """A request and a micro-batch each second."""
    spans: list[Span] = []
    tasks: list[ServedTask | TrainedTask] = []
    for number in range(count):
        at = float(number)
        spans += [
            Span(0, 0, f"r{number}", "serve", at, at + 0.25, number, number),
            Span(0, 0, f"m{number}", "forward", at + 0.5, at + 0.75, number),
        ]
        tasks.append(ServedTask(f"r{number}", "finished", at, 100, 0, at, at + 0.3, at + 0.3))
        tasks.append(TrainedTask(f"m{number}", "finished", at, 10, 0, at, at + 0.75, 1.0, number + 1))
    return spans, tasks


def test_a_long_run_takes_no_more_than_a_shorter_one(write_run: RunBuilder) -> None:
    facts = msgspec.structs.replace(EXAMPLE_FACTS, stages=1, duration_s=2000.0)
    run = aggregates(write_run(facts, *long_run(2000)))
    lanes = run.lanes
    assert not lanes.bars_are_all and len(lanes.bars.what) == of_work.CLOSE_UP
    assert 1000.0 <= lanes.bars.start[0] < 1001.0, "the middle of the run"
    assert len(lanes.edges) - 1 <= of_work.MOST_SHARES
    assert sum(share.sum() for share in lanes.shares[0, 0].values()) * lanes.edges[1] == pytest.approx(1000.0)
    assert len(run.load.edges) - 1 <= of_requests.MOST_CELLS
    assert len(run.versions.times) <= of_work.MOST_VERSIONS + 1
    assert run.versions.versions[-1] == 1999
    assert run.waits["all requests"].seconds == pytest.approx((0.0, 0.0, 0.25, 0.05, 0.0, 0.0), abs=1e-9)


def test_of_many_stages_the_first_are_shown(write_run: RunBuilder) -> None:
    facts = msgspec.structs.replace(EXAMPLE_FACTS, nodes=100, stages=2)
    spans = [Span(node, stage, "", "step", 0.0, 1.0, 0) for node in range(100) for stage in range(2)]
    run = aggregates(write_run(facts, spans, EXAMPLE_TASKS))
    assert len(run.lanes.shares) == of_work.MOST_LANES and run.lanes.left_out == 200 - of_work.MOST_LANES
    assert len(run.placement.requests) == of_requests.MOST_NODES
    assert run.placement.left_out == 100 - of_requests.MOST_NODES


@pytest.mark.parametrize("spans", ["sampled", "off"])
def test_where_work_was_left_out_nobody_knows_where_requests_waited(write_run: RunBuilder, spans: str) -> None:
    facts = msgspec.structs.replace(EXAMPLE_FACTS, spans=spans)
    kept: Sequence[Span] = EXAMPLE_SPANS if spans == "sampled" else ()
    run = aggregates(write_run(facts, kept, EXAMPLE_TASKS))
    assert run.waits == {} and run.spans == spans
    assert (run.lanes is None) == (spans == "off")


def test_limits_in_ms_come_before_those_in_t0(write_run: RunBuilder) -> None:
    facts = msgspec.structs.replace(EXAMPLE_FACTS, slo_ms={"ttft": 1200.0})
    load = aggregates(write_run(facts, EXAMPLE_SPANS, EXAMPLE_TASKS)).load
    assert load.limit == "ttft within 1200 ms"
    assert np.nansum(load.attainment) == 1, "only a had its first token in time"


def test_broken_records(example_run: Path) -> None:
    (example_run / "spans.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match=r"spans\.jsonl, line 1"):
        aggregates(example_run)


def test_batch_requests_are_a_class_of_their_own(write_run: RunBuilder) -> None:
    patient = [msgspec.structs.replace(EXAMPLE_TASKS[0], service="batch"), *EXAMPLE_TASKS[1:]]
    run = aggregates(write_run(EXAMPLE_FACTS, EXAMPLE_SPANS, patient))
    assert run.curves["batch"]["response"].count == 1 and run.curves["interactive"]["response"].count == 2
    assert run.waits["all requests"].count == 2
    assert replace(run, spans="off").spans == "off", "plain data"
