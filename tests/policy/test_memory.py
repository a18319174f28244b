"""A scheduler that goes on from what another one has learned decides as that one would."""

import msgspec
import pytest

from lemix_hpc.policy.events import PassMeasured, RequestArrived, StageFinished, TaskFinished
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.memory import Memory
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.state import WINDOW

LATENCY = LatencyModel((Affine(1e-3, 1e-5, 1e-9),) * 2, (Affine(2e-3, 2e-5, 2e-9),) * 2)


def fresh(*, recalibrate: bool = True) -> Scheduler:
    return Scheduler(SchedulerConfig(nodes=2, recalibrate=recalibrate), LATENCY)


def taught(outputs: int, *, recalibrate: bool = True) -> Scheduler:
    """After passes that took three times as long as the file says, and so many answers."""
    scheduler = fresh(recalibrate=recalibrate)
    for n in range(60):
        shape = Shape.of((50 + 7 * (n % 11),))
        for stage, kind in ((0, "serve"), (1, "serve"), (1, "backward")):
            form = (LATENCY.backward if kind == "backward" else LATENCY.forward)[stage]
            seconds = (3.0 + 0.1 * (n % 3)) * form.seconds(shape)
            scheduler.handle(PassMeasured(float(n), n % 2, stage, kind, shape, seconds))  # type: ignore[arg-type]
    for task in range(outputs):
        now = 60.0 + task
        (place,) = scheduler.handle(RequestArrived(now, task, 10, 500))
        for stage in range(2):
            scheduler.handle(StageFinished(now + 0.5, place.node, stage, task, now, now + 0.5))
        scheduler.handle(TaskFinished(now + 0.9, place.node, task, 5 + task % 37))
    return scheduler


@pytest.mark.parametrize("outputs", [0, 40, WINDOW, WINDOW + 77])
def test_what_was_learned_goes_on(outputs: int) -> None:
    before, after = taught(outputs), fresh()
    memory = msgspec.json.decode(msgspec.json.encode(before.memory), type=Memory)
    after.recall(memory)
    assert after.memory == before.memory == memory
    assert (after.learned, after.drifts) == (before.learned, before.drifts)
    assert len(after.learned) == 3 and len(after.drifts) == 3
    assert (after.state.times.linear == before.state.times.linear).all()
    # Whatever comes, both learn the same from it.
    for n in range(30):
        event = PassMeasured(500.0 + n, 0, 0, "serve", Shape.of((64,)), 0.01 + 1e-4 * n)
        before.handle(event)
        after.handle(event)
    assert after.memory == before.memory
    first = RequestArrived(600.0, outputs, 77, 500)
    one, other = before.handle(first), after.handle(first)
    assert [(p.response, p.key) for p in one] == [(p.response, p.key) for p in other]
    assert before.state.counters[0]["expected_output"] == after.state.counters[0]["expected_output"]


def test_of_other_stage_times_only_the_lengths_of_answers_are_known() -> None:
    after = fresh()
    after.recall(Memory(outputs=taught(40).memory.outputs))
    assert after.learned == () and (after.state.times.linear == fresh().state.times.linear).all()
    assert after.state.counters[0]["expected_output"] != fresh().state.counters[0]["expected_output"]


def test_without_recalibration_forecasts_stay_the_files() -> None:
    after = fresh(recalibrate=False)
    after.recall(taught(0, recalibrate=False).memory)
    assert len(after.learned) == 3
    assert (after.state.times.linear == fresh().state.times.linear).all()
