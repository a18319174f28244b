"""What is kept up of requests that wait, against looking through all of them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pytest

pytest.importorskip("vllm")

from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.core.sched.request_queue import PriorityRequestQueue

from lemix_hpc.engines.vllm.class_queue import ClassedQueue
from lemix_hpc.engines.vllm.engine_pace import EnginePace
from lemix_hpc.engines.vllm.ordered_queue import OrderedQueue
from lemix_hpc.engines.vllm.paced_requests import Batch, Paced, Queues
from lemix_hpc.engines.vllm.priority import is_batch, priority_of, promoted
from lemix_hpc.engines.vllm.step_plan import StepPlan
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.pacer import Waiting
from tests.runtime.leader.test_pacer import TPOT, keep_pace

RUN_BEGAN, LIMIT = 90.0, 60


@dataclass(eq=False, slots=True)
class Made:
    """What of vLLM's request matters here; ordered as those are."""

    request_id: str
    priority: int
    num_tokens: int
    max_tokens: int = 6
    arrival_time: float = 0.0
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_in_flight_tokens: int = 0

    def __lt__(self, other: Made) -> bool:
        mine, others = (each.priority for each in (self, other))
        return (mine, self.arrival_time, self.request_id) < (others, other.arrival_time, other.request_id)


def shape_of(requests: Iterable[Made]) -> Shape:
    return Shape.of([request.num_tokens for request in requests])


@given(data=st.data())
def test_it_is_vllms_own_queue_with_sums(data: st.DataObject) -> None:
    queue, expected, came = OrderedQueue(), PriorityRequestQueue(), 0
    for _ in range(data.draw(st.integers(0, 40))):
        move = data.draw(st.sampled_from(["add", "add", "add", "pop", "remove", "several"]))
        if move == "add":
            request = Made(f"{came:02}", data.draw(st.integers(0, 3)), data.draw(st.integers(1, 9)))
            request.num_output_tokens = data.draw(st.sampled_from([0, 0, 1]))
            request.num_in_flight_tokens = data.draw(st.sampled_from([0, 0, 1]))
            came += 1
            queue.add_request(request)
            expected.add_request(request)
        elif not expected:
            with pytest.raises(IndexError):
                queue.pop_request()
        elif move == "pop":
            assert queue.peek_request() is expected.peek_request()
            assert queue.pop_request() is expected.pop_request()
        else:
            gone = data.draw(st.lists(st.sampled_from(list(expected)), min_size=1, max_size=5, unique=True))
            if move == "remove":
                queue.remove_request(gone[0])
                expected.remove_request(gone[0])
            else:
                queue.remove_requests([*gone, Made("unknown", 0, 1)])
                expected.remove_requests(gone)
                for back in gone[:2]:  # a request may come back under the same name
                    queue.prepend_request(back)
                    expected.prepend_request(back)
        assert list(queue) == list(expected)
        assert list(islice(queue, 3)) == list(islice(expected, 3))
        assert (len(queue), bool(queue)) == (len(expected), bool(expected))
        changing = {request for request in expected if request.num_output_tokens or request.num_in_flight_tokens}
        assert set(queue.changing) == changing
        assert queue.shape == shape_of([request for request in expected if request not in changing])


def test_whoever_does_not_wait_cannot_be_removed() -> None:
    queue = OrderedQueue()
    queue.add_request(Made("a", 1, 5))
    with pytest.raises(KeyError):
        queue.remove_request(Made("b", 1, 5))


@dataclass(frozen=True, slots=True)
class Walked:
    """Interactive requests, all of which are looked at."""

    running: list[Paced]
    queued: list[Paced]

    @property
    def ready(self) -> list[Paced]:
        return [*self.running, *(paced for paced in self.queued if paced.produced)]

    @property
    def waiting(self) -> Waiting:
        return Waiting.of([paced for paced in self.queued if not paced.produced])

    @property
    def first(self) -> Paced | None:
        return next(chain(self.running, self.queued), None)


class WalkingPace(EnginePace):
    """Looks through all that wait, at every question."""

    def _queues(
        self, running: Sequence[Any], holding: Iterable[Any], waiting: Iterable[Any], batch: Iterable[Any], now: float
    ) -> Queues:
        parts: dict[bool, list[Paced]] = {True: [], False: []}
        for paced in self._of(running):
            parts[self._waits(paced, now)].append(paced)
        interactive: Any = Walked(parts[False], list(self._of([*holding, *sorted(waiting)])))
        return Queues(interactive, Batch(parts[True], list(self._of(sorted(batch)))))


class Scheduler:
    """The requests of an engine, as vLLM moves them, with a pace by sums and one that walks: both say the same."""

    def __init__(self, stages: int, per_token: float) -> None:
        self.time = 100.0
        self.running: list[Made] = []
        self.holding: list[Made] = []
        self.waiting = ClassedQueue()
        self.in_flight: deque[dict[Made, tuple[int, bool]]] = deque()
        self.paces = [kind(stages, lambda: self.time) for kind in (EnginePace, WalkingPace)]
        order = keep_pace(per_token, stages)
        self.tell("run_began", RUN_BEGAN)
        self.tell("keep_pace", order.ttft, order.tpot, order.coefficients, 0.5)
        self.came = 0

    def tell(self, what: str, *arguments: Any) -> None:
        for pace in self.paces:
            getattr(pace, what)(*arguments)

    def asks(self, *, cuts: bool) -> tuple[float, StepPlan]:
        """How long the next batch is held, and what it would take now."""
        self.waiting.promote(self.paces[0].nearly_over)
        for request in self.running:
            if self.paces[0].nearly_over(request):
                request.priority = promoted(request.priority)
        queues = self.running, self.holding, self.waiting.interactive, self.waiting.batch
        held = [pace.until_due(*queues) for pace in self.paces]
        plans = [pace.plan(*queues, LIMIT, cuts=cuts) for pace in self.paces]
        assert held[0] == held[1]
        plan = plans[0]
        assert plan == plans[1] and plan is not None
        return held[0], plan

    def arrives(self, prompt: int, ago: float, key: float, patient: bool) -> None:
        request = Made(f"{self.came:03}", priority_of(key, patient=patient), prompt)
        request.arrival_time = time.time() - ago
        self.came += 1
        self.tell("arrived", request)
        for pace in self.paces:  # their clocks are read one after the other
            pace._requests[request.request_id].arrival = self.time - ago
        self.waiting.add_request(request)

    def steps(self, plan: StepPlan) -> None:
        """Form the batch of a plan, as vLLM does with what it is shown."""
        self.waiting.show(interactive=not plan.alone, batch=plan.batch)
        left = plan.tokens
        taken: dict[Made, tuple[int, bool]] = {}
        self.running.sort(key=lambda request: (missing(request) != 1, is_batch(request.priority)))
        for request in [each for each in self.running if each.request_id in plan.members and missing(each)]:
            left -= self._takes(taken, request, left)
        while left > 0 and self.holding:
            left -= self._takes(taken, self.holding[0], left)
            self.running.append(self.holding.pop(0))
        while left > 0 and self.waiting:
            self.running.append(self.waiting.pop_request())
            left -= self._takes(taken, self.running[-1], left)
        self.waiting.show()
        if taken:
            self.in_flight.append(taken)
            self.tell("formed", {request.request_id: tokens for request, (tokens, _) in taken.items()})

    def _takes(self, taken: dict[Made, tuple[int, bool]], request: Made, left: int) -> int:
        tokens = min(missing(request), left)
        if tokens:
            request.num_computed_tokens += tokens
            request.num_in_flight_tokens += tokens
            taken[request] = tokens, missing(request) == 0
        return tokens

    def comes_back(self) -> None:
        """The oldest batch; what it has of those that lost their cache since comes as well."""
        taken = self.in_flight.popleft()
        names = {request.request_id: tokens for request, (tokens, _) in taken.items()}
        self.tell("passed", names)
        for request, (tokens, answers) in taken.items():
            request.num_in_flight_tokens -= tokens
            request.num_tokens += answers
            request.num_output_tokens += answers
        self.tell("counted", names)
        for request in [each for each in taken if each.num_output_tokens >= each.max_tokens]:
            self.ends(request)

    def preempts(self, request: Made) -> None:
        """Takes its cache."""
        self.running.remove(request)
        request.num_computed_tokens = 0
        self.waiting.prepend_request(request)

    def ends(self, request: Made) -> None:
        """It is finished, or was aborted."""
        self.running = [each for each in self.running if each is not request]
        self.holding = [each for each in self.holding if each is not request]
        self.waiting.remove_requests([request])
        self.tell("forget", request.request_id)


def missing(request: Made) -> int:
    return request.num_tokens - request.num_computed_tokens


MOVES = [
    "arrive",
    "arrive",
    "step",
    "step",
    "come back",
    "come back",
    "preempt",
    "hold",
    "abort",
    "time",
    "time",
    "idle",
]


@settings(deadline=None)
@given(stages=st.integers(1, 2), per_token=st.sampled_from([0.0, 1e-3]), cuts=st.booleans(), data=st.data())
def test_decisions_are_those_of_looking_at_all_requests_in_each_step(
    stages: int, per_token: float, cuts: bool, data: st.DataObject
) -> None:
    node = Scheduler(stages, per_token)
    for move in data.draw(st.lists(st.sampled_from(MOVES), min_size=8, max_size=60)):
        held, _ = node.asks(cuts=cuts)
        if move == "arrive":
            patient = data.draw(st.booleans())
            key = node.time - RUN_BEGAN + data.draw(st.sampled_from([0.0, 0.3, 2.0])) * (1 + 9 * patient)
            node.arrives(data.draw(st.integers(1, 50)), data.draw(st.sampled_from([0.0, 0.5, 0.99])), key, patient)
        elif move == "step" and held < math.inf:
            node.time += held
            node.steps(node.asks(cuts=cuts)[1])
        elif move == "come back" and node.in_flight:
            node.comes_back()
        elif move in ("preempt", "hold") and node.running:
            request = data.draw(st.sampled_from(node.running))
            if move == "preempt":
                node.preempts(request)
            elif missing(request):
                node.running.remove(request)
                node.holding.append(request)
        elif move == "abort" and (all_there := [*node.running, *node.holding, *node.waiting]):
            node.ends(data.draw(st.sampled_from(all_there)))
        elif move == "time":
            node.time += data.draw(st.sampled_from([0.1, 1.0, 20.0])) * TPOT
            node.tell("trained", data.draw(st.sampled_from([0.0, 0.05])))
        elif move == "idle":
            node.tell("first_stage_idle", data.draw(st.sampled_from([node.time, math.inf])))
            node.tell("left_first_stage")
    node.asks(cuts=cuts)
