"""Passes that rest on a thread of their own until what they ask for is there."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lemix_hpc.engines.vllm.pass_thread import PassThread


@pytest.fixture
def thread() -> Iterator[PassThread]:
    thread = PassThread(lambda: None)
    yield thread
    thread.close()


def test_a_pass_rests_where_it_asks_and_goes_on_with_what_it_gets(thread: PassThread) -> None:
    for number in range(3):
        steps: list[str] = []

        def run(arrive: Callable[[], Any], steps: list[str] = steps) -> int:
            steps.append("prepared")
            got: int = arrive()
            steps.append("run")
            return 10 * got

        thread.start(run)
        assert steps == ["prepared"]
        assert thread.finish(number) == 10 * number
        assert steps == ["prepared", "run"]


def test_a_pass_that_asks_for_nothing_has_ended_before(thread: PassThread) -> None:
    thread.start(lambda _: "output")
    assert thread.finish(None) == "output"


def test_what_a_pass_raises_in_either_part_is_raised_and_the_next_one_runs(thread: PassThread) -> None:
    def broken(_: Callable[[], Any]) -> None:
        raise ValueError("in preparation")

    def breaks(arrive: Callable[[], Any]) -> None:
        raise KeyError(arrive())

    with pytest.raises(ValueError, match="in preparation"):
        thread.start(broken)
    thread.start(breaks)
    with pytest.raises(KeyError, match="activations"):
        thread.finish("activations")
    thread.start(lambda arrive: arrive())
    assert thread.finish(1) == 1


def test_inference_mode_of_a_pass_that_rests_is_not_that_of_the_loop(thread: PassThread) -> None:
    @torch.inference_mode()
    def run(arrive: Callable[[], Any]) -> bool:
        arrive()
        return torch.is_inference_mode_enabled()

    thread.start(run)
    weight = torch.ones(2, requires_grad=True)
    assert (2 * weight).requires_grad
    assert thread.finish(None)


def test_it_enters_first_and_closing_ends_a_pass_that_rests() -> None:
    entered: list[str] = []
    cleaned: list[bool] = []

    def run(arrive: Callable[[], Any]) -> None:
        try:
            arrive()
        finally:
            cleaned.append(True)

    thread = PassThread(lambda: entered.append(threading.current_thread().name))
    thread.start(run)
    assert entered == ["passes"]
    thread.close()
    assert cleaned == [True]
    assert not [each for each in threading.enumerate() if each.name == "passes"]
