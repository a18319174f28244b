"""What vLLM's scheduler asks about the pace of its node, on made-up requests and a clock of our own."""

import math
import queue
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from lemix_hpc.engines.vllm.engine_loop import wait_until_due
from lemix_hpc.engines.vllm.engine_pace import EnginePace
from lemix_hpc.policy.pacing import FIRST_MARGIN, LEAST_PART, PASS_SHARE, PATIENCE
from tests.runtime.leader.test_pacer import PASS, TPOT, TTFT, keep_pace

MARGIN = FIRST_MARGIN * TPOT


@dataclass
class Engine:
    """The queues of a scheduler, and its pace."""

    time: float = 100.0
    running: list[Any] = field(default_factory=list)
    waiting: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pace = EnginePace(1, lambda: self.time)

    def start(self, per_token: float = 0.0) -> None:
        order = keep_pace(per_token)
        self.pace.keep_pace(order.ttft, order.tpot, order.coefficients)

    def comes(self, name: str, prompt: int = 5, ago: float = 0.0) -> Any:
        request = SimpleNamespace(
            request_id=name,
            arrival_time=time.time() - ago,
            num_tokens=prompt,
            num_computed_tokens=0,
            num_output_tokens=0,
        )
        self.waiting.append(request)
        self.pace.arrived(request)
        return request

    def held(self) -> float:
        return self.pace.until_due(self.running, self.waiting)

    def budget(self, limit: int = 1000) -> int:
        return self.pace.most_tokens(self.running, self.waiting, limit)

    def batch(self, tokens: dict[str, int], took: float) -> None:
        """These requests get that many tokens computed, and one more where nothing is missing then."""
        members = [request for request in [*self.running, *self.waiting] if request.request_id in tokens]
        self.running += [request for request in members if request not in self.running]
        self.waiting = [request for request in self.waiting if request not in members]
        for request in members:
            request.num_computed_tokens += tokens[request.request_id]
        self.time += took
        self.pace.passed(tokens)
        for request in members:
            if request.num_computed_tokens == request.num_tokens:
                request.num_tokens += 1
                request.num_output_tokens += 1
        self.pace.counted(tokens)


@pytest.fixture
def engine() -> Engine:
    made = Engine()
    made.start()
    return made


def test_nothing_is_held_before_there_is_a_pace_to_keep() -> None:
    unpaced = Engine()
    unpaced.pace.first_stage_idle(1.0)
    unpaced.comes("a")
    assert unpaced.held() == 0.0
    assert unpaced.budget() == 1000


def test_requests_wait_until_the_first_of_them_is_due_and_then_have_credit(engine: Engine) -> None:
    assert engine.held() == 0.0, "there is nothing to hold"
    engine.comes("a", ago=0.25)
    due = TTFT - PASS - MARGIN
    assert engine.held() == pytest.approx(due - 0.25, abs=0.01)
    engine.comes("b")
    engine.time += 0.1
    assert engine.held() == pytest.approx(due - 0.35, abs=0.01), "the first deadline among them"
    engine.batch({"a": 5, "b": 5}, PASS)
    first = engine.time
    assert engine.held() == 0.0, "the next token is aimed at a margin before its deadline"
    engine.batch({"a": 1, "b": 1}, PASS)
    assert engine.held() == pytest.approx(first + 2 * TPOT - PASS - MARGIN - engine.time, abs=0.1 * MARGIN)


def test_what_is_on_its_way_needs_no_other_batch(engine: Engine) -> None:
    request = engine.comes("a")
    engine.waiting, engine.running = [], [request]
    request.num_computed_tokens = request.num_tokens
    assert engine.held() == 0.0


def test_a_request_whose_cache_was_taken_keeps_its_deadline(engine: Engine) -> None:
    request = engine.comes("a")
    engine.batch({"a": 5}, PASS)
    for _ in range(3):
        engine.batch({"a": 1}, PASS)
    held = engine.held()
    assert held > 0.0
    engine.comes("first in order")
    engine.running.remove(request)
    engine.waiting.append(request)
    request.num_computed_tokens = 0
    assert engine.held() == pytest.approx(held)


def test_nothing_waits_where_there_is_no_training(engine: Engine) -> None:
    engine.comes("a")
    engine.pace.first_stage_idle(engine.time)
    assert engine.held() == pytest.approx(PATIENCE * TPOT)
    engine.time += 2 * PATIENCE * TPOT
    assert engine.held() == 0.0
    engine.pace.first_stage_idle(math.inf)
    assert engine.held() > 0.0


def test_prompts_take_what_keeps_nobody_waiting_for_long() -> None:
    paced = Engine()
    paced.start(per_token=1e-3)
    most = round((PASS_SHARE * TPOT - PASS) / 1e-3)
    paced.comes("a", most + 30)
    assert paced.budget() == most
    assert paced.budget(limit=20) == 20, "and never more than vLLM allows"
    paced.batch({"a": most}, PASS)
    paced.comes("b", 60)
    assert paced.budget() == most, "the rest of the first prompt, and of the second what fits"
    paced.batch({"a": 30, "b": most - 30}, PASS)
    assert paced.budget() == 1 + 60 - (most - 30), "a token of the first, and all that is left"
    paced.comes("c", 10 * most)
    paced.pace.first_stage_idle(0.0)
    assert paced.budget() == 1000, "whole, where there is no training"


def test_a_prompt_goes_on_however_slow_it_is() -> None:
    paced = Engine()
    paced.start(per_token=1.0)
    paced.comes("a", 90)
    assert paced.budget() == LEAST_PART


def test_what_is_over_is_forgotten(engine: Engine) -> None:
    engine.comes("a")
    engine.pace.forget("a")
    engine.pace.passed({"a": 5})
    engine.pace.counted({"a": 5})
    assert engine.held() == 0.0


@dataclass
class Loop:
    """A stand-in for vLLM's: it has work when its scheduler holds nothing, and waits for ever while it has none."""

    held: list[float]
    input_queue: "queue.Queue[tuple[str, str]]" = field(default_factory=queue.Queue)
    done: list[Any] = field(default_factory=list)
    running: bool = True

    def __post_init__(self) -> None:
        self.scheduler = SimpleNamespace(held_for=lambda: self.held[0])

    def is_running(self) -> bool:
        return self.running

    def has_work(self) -> bool:
        return self.held[0] == 0.0

    def _handle_client_request(self, kind: str, what: str) -> None:
        self.done.append((kind, what))
        self.held.pop(0)

    def _process_input_queue(self) -> None:
        self.done.append("stock")


@pytest.fixture
def loop_class() -> type[Loop]:
    class Waiting(Loop):
        pass

    wait_until_due(Waiting)
    return Waiting


def test_the_loop_takes_in_what_comes_while_a_batch_is_held(loop_class: type[Loop]) -> None:
    loop = loop_class([1000.0, 1000.0, 0.0])
    loop.input_queue.put(("add", "a"))
    loop.input_queue.put(("abort", "b"))
    loop._process_input_queue()
    assert loop.done == [("add", "a"), ("abort", "b"), "stock"]


def test_the_loop_waits_no_longer_than_for_the_batch(loop_class: type[Loop]) -> None:
    class Due(loop_class):  # type: ignore[valid-type, misc]
        def has_work(self) -> bool:
            self.held.pop(0)
            return bool(super().has_work())

    loop = Due([0.0, 1e-6, 1e-9, 0.0])
    loop._process_input_queue()
    assert loop.done == ["stock"]


def test_the_loop_does_not_wait_when_it_is_to_end(loop_class: type[Loop]) -> None:
    loop = loop_class([1000.0], running=False)
    loop._process_input_queue()
    assert loop.done == ["stock"]
