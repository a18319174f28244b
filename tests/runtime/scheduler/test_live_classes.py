"""The live figures of each class of requests."""

import random
from collections import Counter

import pytest

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.policy.latency import Shape
from lemix_hpc.records.schema import ServedTask
from lemix_hpc.records.tally import Tally
from lemix_hpc.runtime.scheduler import live_classes
from lemix_hpc.runtime.scheduler.live_classes import LiveClasses
from lemix_hpc.runtime.transport.messages import BatchRan


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
        node=0,
        number=number,
        service=service,
    )


def test_each_class_is_told_by_itself() -> None:
    live = LiveClasses({"ttft": 600.0, "tpot": 400.0}, window_s=10.0, tally=Tally())
    assert live.figures() == {}
    live.placed(0, "interactive")
    live.placed(1, "batch")
    for ran in (token(0.4, 0, 1, partial=(1,)), token(0.5, 0, 1), token(1.0, 0, 1), token(1.4, 0, 7)):
        live.served(ran)
    live.ended(done(0, "interactive", 0.0, 1.5))
    live.ended(done(1, "batch", 0.0, 12.0))
    live.ended(ServedTask("r2", "aborted", 0.0, 4, number=2))
    live.served(token(9.0, 0, 1))  # reported late
    found = live.figures()
    assert [found[name].received for name in ("interactive", "batch")] == [2, 1]
    assert found["interactive"].finished == 1
    assert found["interactive"].attainment == {"ttft": 0.5, "tpot": 0.0, "all": 0.0}
    assert found["interactive"].inter_token_ms["p50"] == pytest.approx(400.0)
    assert found["batch"].attainment == {"window": 0.0}
    assert found["batch"].inter_token_ms["p50"] == pytest.approx(500.0)


def test_times_between_tokens_are_of_all_nodes_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty nodes of two places each; node K has a token every K + 1 seconds. About twenty requests at a time are watched."""
    monkeypatch.setattr(live_classes, "WATCHED", 20)
    nodes, tokens = 40, 5
    live, seen = LiveClasses({}, window_s=10.0, tally=Tally()), Counter[int]()
    draw = random.Random(1)
    running: list[list[int]] = [[] for _ in range(nodes)]
    for number in range(60 * nodes):  # one ends somewhere, and another one comes
        node = draw.randrange(nodes)
        if len(running[node]) == 2:
            over = running[node].pop(0)
            before = len(live._gaps["interactive"])
            for at in range(tokens):
                live.served(token(at * (node + 1.0), over))
            seen[node] += len(live._gaps["interactive"]) > before
            live.ended(done(over, "interactive", 0.0, 99.0))
        live.placed(number, "interactive")
        running[node].append(number)
    assert min(seen[node] for node in range(nodes)) >= 5
    assert 10 * min(seen.values()) > max(seen.values())
    assert 10 <= len(live._watched["interactive"]) <= 40
    figures = live.figures()["interactive"].inter_token_ms
    assert figures["p50"] == pytest.approx(1e3 * nodes / 2, rel=0.25)
    assert figures["p99"] == pytest.approx(1e3 * nodes, rel=0.1)


def test_a_flood_of_one_class_hides_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_classes, "WATCHED", 2)
    live = LiveClasses({}, window_s=10.0, tally=Tally())
    for number in range(500):
        live.placed(number, "batch")
    live.placed(500, "interactive")
    for end in (1.0, 1.25):
        live.served(token(end, *range(501)))
    live.ended(done(500, "interactive", 0.0, 2.0))
    assert live.figures()["interactive"].inter_token_ms["mean"] == pytest.approx(250.0)
    assert 2 <= len(live._gaps["batch"]) <= 2 * 8, "the first ones came when there were few"
