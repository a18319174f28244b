"""How vLLM's loop waits in the engine process, on a stand-in for it."""

import os
import queue
import select
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from lemix_hpc.engines.vllm.engine_loop import ring_on_put, wait_until_due


@dataclass
class Loop:
    """A stand-in for vLLM's: it has work when its scheduler holds nothing, and waits for ever while it has none."""

    held: list[float]
    input_queue: "queue.Queue[tuple[str, str]]" = field(default_factory=queue.Queue)
    done: list[Any] = field(default_factory=list)
    running: bool = True

    batch_queue: deque[Any] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.scheduler = SimpleNamespace(held_for=lambda: self.held[0], has_requests=lambda: self.held[0] == 0.0)
        self.model_executor = SimpleNamespace(wait_for_stages=self.waits, patience_for=lambda _: 50.0)
        self.waited: list[float] = []

    def waits(self, bell: int, seconds: float) -> None:
        """A stand-in for the executor, whose stages say nothing."""
        self.waited.append(seconds)
        if select.select([bell], [], [], min(seconds, 60.0))[0]:
            os.eventfd_read(bell)

    def run_busy_loop(self) -> None:
        self._process_input_queue()

    def is_running(self) -> bool:
        return self.running

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

    def comes_later(bell: int, seconds: float) -> None:
        if not loop.waited:
            loop.input_queue.put_nowait(("add", "a"))
            loop.input_queue.put_nowait(("abort", "b"))
        Loop.waits(loop, bell, seconds)

    loop.model_executor.wait_for_stages = comes_later
    loop.run_busy_loop()
    assert loop.done == [("add", "a"), ("abort", "b"), "stock"]
    assert loop.waited == [1000.0]


def test_the_loop_waits_no_longer_than_for_the_batch(loop_class: type[Loop]) -> None:
    loop = loop_class([1e-6, 0.0])

    def then_due(bell: int, seconds: float) -> None:
        Loop.waits(loop, bell, seconds)
        loop.held.pop(0)

    loop.model_executor.wait_for_stages = then_due
    loop.run_busy_loop()
    assert loop.done == ["stock"] and loop.waited == [1e-6]


def test_while_batches_are_on_their_way_the_loop_waits_for_the_first_of_them_too(loop_class: type[Loop]) -> None:
    loop, answer = loop_class([1000.0]), Future[None]()
    loop.batch_queue.appendleft((answer, None, None))

    def answered(bell: int, seconds: float) -> None:  # noqa: ARG001
        loop.waited.append(seconds)
        answer.set_result(None)

    loop.model_executor.wait_for_stages = answered
    loop.run_busy_loop()
    assert loop.done == ["stock"] and loop.waited == [50.0], "and no longer than the stages may be silent"


def test_the_loop_does_not_wait_when_it_is_to_end(loop_class: type[Loop]) -> None:
    loop = loop_class([1000.0], running=False)
    loop.run_busy_loop()
    assert loop.done == ["stock"] and loop.waited == []


def test_a_bell_rings_for_whatever_comes() -> None:
    orders: queue.Queue[int] = queue.Queue()
    bell = ring_on_put(orders)
    assert select.select([bell], [], [], 0.0)[0] == []
    orders.put_nowait(7)
    assert select.select([bell], [], [], 0.0)[0] == [bell] and orders.get_nowait() == 7
    os.close(bell)
