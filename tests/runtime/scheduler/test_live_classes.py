"""The live figures of each class of requests."""

import pytest

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.policy.latency import Shape
from lemix_hpc.records.schema import ServedTask
from lemix_hpc.records.tally import Tally
from lemix_hpc.runtime.scheduler.live_classes import LiveClasses
from lemix_hpc.runtime.scheduler.task_table import ServingTask
from lemix_hpc.runtime.transport.messages import BatchRan
from lemix_hpc.workload.tasks import Request


def token(end: float, *tasks: int, partial: tuple[int, ...] = ()) -> BatchRan:
    times = [end - 0.2, end - 0.1], [end - 0.1, end], [0.1, 0.1]
    return BatchRan(1, list(tasks), list(partial), 0, Shape.of((1,)), *times)


def done(number: int, service: ServiceClass, arrival: float, finished: float) -> ServedTask:
    return ServedTask(
        f"r{number}",
        "finished",
        arrival,
        4,
        first_token=arrival + 0.5,
        finished=finished,
        output=[1, 2, 3],
        number=number,
        service=service,
    )


def test_each_class_is_told_by_itself() -> None:
    live = LiveClasses({"ttft": 600.0, "tpot": 400.0}, window_s=10.0, nodes=5, tally=Tally())
    assert live.figures({}) == {}
    serving = {
        0: ServingTask(Request("r0", 0.0, 4, 3)),
        1: ServingTask(Request("r1", 0.0, 4, 3, service="batch")),
    }
    for node, ran in (
        (0, token(0.4, 0, 1, partial=(1,))),
        (0, token(0.5, 0, 1)),
        (1, token(0.9, 0)),  # a node that nobody looks at
        (0, token(1.0, 0, 1)),
        (4, token(1.4, 0, 7)),
    ):
        live.served(node, ran)
    live.ended(done(0, "interactive", 0.0, 1.5))
    live.ended(done(1, "batch", 0.0, 12.0))
    live.ended(ServedTask("r2", "aborted", 0.0, 4, number=2))
    del serving[0]
    found = live.figures(serving)
    assert [found[name].received for name in ("interactive", "batch")] == [2, 1]
    assert found["interactive"].finished == 1
    assert found["interactive"].attainment == {"ttft": 0.5, "tpot": 0.0, "all": 0.0}
    assert found["interactive"].inter_token_ms["p50"] == pytest.approx(400.0)
    assert found["batch"].attainment == {"window": 0.0}
    assert found["batch"].inter_token_ms["p50"] == pytest.approx(500.0)
