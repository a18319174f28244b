"""What vLLM's scheduler asks about the pace of its node, on made-up requests and a clock of our own."""

import math
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from lemix_hpc.engines.vllm.engine_pace import EnginePace
from lemix_hpc.engines.vllm.priority import is_batch, priority_of
from lemix_hpc.engines.vllm.step_plan import StepPlan
from lemix_hpc.policy.classes import LARGEST_CLAIM
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.pacing import FIRST_MARGIN, LEAST_PART, NO_PATIENCE, PASS_SHARE, PATIENCE
from tests.runtime.leader.test_pacer import PASS, TPOT, TTFT, keep_pace

MARGIN = FIRST_MARGIN * TPOT
RUN_BEGAN, LATER = 90.0, 1e6


class Waiting(list[Any]):
    """Interactive requests that wait; each of them is looked at."""

    shape = Shape(0, 0)

    @property
    def changing(self) -> list[Any]:
        return self


@dataclass
class Engine:
    """The queues of a scheduler, and its pace."""

    time: float = 100.0
    stages: int = 1
    running: list[Any] = field(default_factory=list)
    waiting: list[Any] = field(default_factory=list)
    patient: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pace = EnginePace(self.stages, lambda: self.time)

    def start(self, per_token: float = 0.0, share: float = 0.5) -> None:
        order = keep_pace(per_token, self.stages)
        self.pace.run_began(RUN_BEGAN)
        self.pace.keep_pace(order.ttft, order.tpot, order.coefficients, share)

    def comes(self, name: str, prompt: int = 5, ago: float = 0.0, promoted: float | None = None) -> Any:
        """`promoted`: when, if it is a batch request [s of the run]."""
        request = SimpleNamespace(
            request_id=name,
            arrival_time=time.time() - ago,
            num_tokens=prompt,
            num_computed_tokens=0,
            num_output_tokens=0,
            max_tokens=100,
            priority=priority_of(promoted or 0.0, patient=promoted is not None),
        )
        (self.waiting if promoted is None else self.patient).append(request)
        self.pace.arrived(request)
        return request

    def held(self) -> float:
        return self.pace.until_due(self.running, [], Waiting(self.waiting), self.patient)

    def plan(self, limit: int = 1000, *, cuts: bool = True) -> StepPlan:
        plan = self.pace.plan(self.running, [], Waiting(self.waiting), self.patient, limit, cuts=cuts)
        assert plan is not None
        return plan

    def budget(self, limit: int = 1000) -> int:
        """Of the batch that is formed when it is due."""
        self.time += max(0.0, self.held())
        return self.plan(limit).tokens

    def send(self, tokens: dict[str, int]) -> None:
        """A batch with so many tokens of these requests is formed."""
        members = [request for request in self._all if request.request_id in tokens]
        self.running += [request for request in members if request not in self.running]
        self.waiting = [request for request in self.waiting if request not in members]
        self.patient = [request for request in self.patient if request not in members]
        for request in members:
            request.num_computed_tokens += tokens[request.request_id]
        self.pace.formed(tokens)

    @property
    def _all(self) -> list[Any]:
        return [*self.running, *self.waiting, *self.patient]

    def batch(self, tokens: dict[str, int], took: float) -> None:
        """These requests get that many tokens computed, and one more where nothing is missing then."""
        self.send(tokens)
        self.time += took
        self.comes_back(tokens)

    def comes_back(self, tokens: dict[str, int]) -> None:
        """The batch that was sent first is over."""
        members = [request for request in self._all if request.request_id in tokens]
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
    unpaced.comes("b", promoted=LATER)
    assert unpaced.held() == 0.0
    assert unpaced.pace.plan([], [], Waiting(unpaced.waiting), unpaced.patient, 1000, cuts=True) is None


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
    assert engine.held() == math.inf, "until it comes back"


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
    engine.pace.trained(0.01)
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
    paced.comes("a", most + 30, ago=TTFT)
    assert paced.budget() == most
    assert paced.budget(limit=20) == 20, "and never more than vLLM allows"
    paced.batch({"a": most}, PASS)
    paced.comes("b", 60, ago=TTFT)
    assert paced.budget() == most, "the rest of the first prompt, and of the second what fits"
    paced.batch({"a": 30, "b": most - 30}, PASS)
    assert paced.budget() == 1 + 60 - (most - 30), "a token of the first, and all that is left"
    paced.comes("c", 20 * most)
    paced.pace.first_stage_idle(0.0)
    assert paced.budget() == 1000, "whole, where there is no training"


def test_a_prompt_goes_on_however_slow_it_is() -> None:
    paced = Engine()
    paced.start(per_token=1.0)
    paced.comes("a", 90)
    assert paced.budget() == LEAST_PART


def test_what_is_over_is_forgotten(engine: Engine) -> None:
    engine.comes("a")
    engine.send({"a": 5})
    engine.running.clear()
    engine.pace.forget("a")
    engine.pace.passed({"a": 5})
    engine.pace.counted({"a": 5})
    assert engine.held() == 0.0


# Classes of requests


def test_batch_requests_wait_until_they_are_owed_time_and_pay_for_it(engine: Engine) -> None:
    engine.comes("a", promoted=LATER)
    engine.comes("b", promoted=LATER + 1.0)
    assert engine.held() == pytest.approx(RUN_BEGAN + LATER - engine.time), "until they are promoted"
    engine.pace.trained(0.01)
    assert engine.held() == 0.0, "half of that is theirs"
    assert engine.plan() == StepPlan(10, frozenset("ab"), True, [], 2)
    engine.batch({"a": 5, "b": 5}, PASS)
    assert engine.held() > 1.0, "a pass takes 10 ms, half of which they have to pay"
    engine.pace.trained(0.005)
    assert engine.held() == 0.0
    assert engine.plan() == StepPlan(2, frozenset("ab"), True, [], 0)


def test_batch_requests_join_what_is_due_and_make_nothing_due(engine: Engine) -> None:
    engine.comes("begun", promoted=LATER)
    engine.pace.trained(0.01)
    engine.batch({"begun": 5}, PASS)
    urgent = engine.comes("urgent")
    engine.comes("new", promoted=LATER)
    due = TTFT - PASS - MARGIN
    assert engine.held() == pytest.approx(due, abs=0.01), "as if they were not there"
    engine.time += due
    assert engine.plan() == StepPlan(6, frozenset(("begun", "urgent")), False, [urgent], 0), (
        "prompts while they are owed"
    )
    engine.pace.trained(1.0)
    assert engine.plan().batch == 1


def test_a_batch_of_batch_requests_ends_before_the_next_other_one_is_due(engine: Engine) -> None:
    engine.pace.trained(1.0)
    engine.comes("urgent")
    due = TTFT - PASS - MARGIN
    engine.time += due - PASS / 2
    engine.comes("patient", promoted=LATER)
    assert engine.held() == pytest.approx(PASS / 2, abs=0.005)
    engine.time += PASS
    assert engine.plan().members == {"urgent", "patient"}


def test_batches_of_batch_requests_leave_room_for_others() -> None:
    engine = Engine(stages=2)
    engine.start(share=1.0)
    engine.pace.trained(1.0)
    for name in "abc":
        engine.comes(name, promoted=LATER)
    engine.send({"a": 5})
    assert engine.held() > 1.0, "it is at the first stage"
    engine.pace.left_first_stage()
    assert engine.held() == 0.0, "they are owed that much"
    engine.send({"b": 5})
    engine.pace.left_first_stage()
    assert engine.held() > 1.0, "as many batches as stages are under way"
    engine.comes_back({"a": 5})
    assert engine.held() == 0.0


def test_batch_requests_are_never_owed_more_than_their_largest_claim() -> None:
    engine = Engine(stages=2)
    engine.start(per_token=TPOT, share=0.5)
    engine.pace.trained(1000.0)
    engine.comes("a", prompt=5, promoted=LATER)
    passes = 0
    while engine.held() == 0.0:
        missing = engine.plan().tokens
        engine.batch({"a": missing}, PASS)
        passes += 1
    assert LARGEST_CLAIM / 2 <= passes <= 2 * LARGEST_CLAIM, "each takes 2 x TPOT on two stages, of which they pay half"


def test_without_training_batch_requests_go_at_once(engine: Engine) -> None:
    engine.comes("a", promoted=LATER)
    engine.pace.first_stage_idle(engine.time)
    assert engine.held() == pytest.approx(NO_PATIENCE * TPOT), "none has run that more could follow"
    engine.time += 2 * PATIENCE * TPOT
    assert engine.held() == 0.0
    assert engine.plan().batch == 1


def test_a_batch_request_whose_window_is_nearly_over_is_due_at_once(engine: Engine) -> None:
    request = engine.comes("a", promoted=engine.time - RUN_BEGAN + 7.0)
    assert is_batch(request.priority) and not engine.pace.nearly_over(request)
    assert engine.held() == pytest.approx(7.0)
    engine.time += 7.0
    assert engine.pace.nearly_over(request)
    engine.waiting, engine.patient = engine.patient, []  # as the scheduler moves it
    assert engine.held() == 0.0
    assert engine.plan().prompts == [request]


def test_only_the_last_prompt_of_a_batch_is_cut() -> None:
    """vLLM gives running requests their tokens first."""
    engine = Engine()
    engine.start(per_token=1e-3)
    most = round((PASS_SHARE * TPOT - PASS) / 1e-3)
    engine.pace.trained(100.0)
    engine.comes("patient", most + 30, promoted=LATER)
    assert engine.plan() == StepPlan(most, frozenset(("patient",)), True, [], 1)
    engine.batch({"patient": most}, PASS)
    urgent = engine.comes("urgent", 20, ago=0.5 * TTFT)
    assert engine.held() == 0.0
    assert engine.plan() == StepPlan(30, frozenset(("patient",)), True, [], 0), "the rest of it"
    engine.time += TTFT - 0.5 * TTFT - PASS - 20e-3
    assert engine.plan() == StepPlan(20, frozenset(("urgent",)), False, [urgent], 0), "the other one rests"
    engine.batch({"urgent": 20}, PASS)
    engine.time += engine.held()
    assert engine.plan() == StepPlan(31, frozenset(("urgent", "patient")), False, [], 0)


def test_where_prompts_are_not_cut_batch_requests_join_whole(engine: Engine) -> None:
    engine.pace.trained(1.0)
    engine.comes("a", 90, promoted=LATER)
    engine.comes("b", 90, promoted=LATER)
    assert engine.plan(limit=100, cuts=False) == StepPlan(100, frozenset("a"), True, [], 1)
