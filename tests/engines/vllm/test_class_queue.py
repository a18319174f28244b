"""Requests that wait in vLLM's scheduler, and what a step sees of them."""

from dataclasses import dataclass

import pytest

pytest.importorskip("vllm")

from lemix_hpc.engines.vllm.class_queue import ClassedQueue
from lemix_hpc.engines.vllm.priority import is_batch, priority_of, promoted, promotion


@dataclass(eq=False)
class Waiting:
    priority: int
    name: str = ""
    arrival_time: float = 0.0
    num_tokens: int = 5
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_in_flight_tokens: int = 0

    @property
    def request_id(self) -> str:
        return self.name


def queue_of(**keys: float) -> ClassedQueue:
    """Requests by name; batch requests begin with a p."""
    queue = ClassedQueue()
    for name, key in keys.items():
        queue.add_request(Waiting(priority_of(key, patient=name.startswith("p")), name))
    return queue


def taken(queue: ClassedQueue) -> list[str]:
    names = []
    while queue:
        assert queue.peek_request().name not in names
        names.append(queue.pop_request().name)
    return names


def test_a_priority_tells_the_class_and_when_it_is_over() -> None:
    first, late = priority_of(2.0), priority_of(1e9)
    patient = priority_of(1.5, patient=True)
    assert first < late < patient
    assert [is_batch(priority) for priority in (first, late, patient)] == [False, False, True]
    assert promotion(patient) == 1.5 and promoted(patient) == priority_of(1.5)


def test_batch_requests_come_behind_the_others_and_the_first_to_be_promoted_first() -> None:
    assert taken(queue_of(p2=0.5, p1=0.25, b=9.0, a=1.0)) == ["a", "b", "p1", "p2"]


def test_a_step_sees_what_it_is_shown_and_all_are_counted() -> None:
    queue = queue_of(a=1.0, p1=1.0, p2=2.0, p3=3.0)
    queue.show(interactive=False, batch=2)
    assert taken(queue) == ["p1", "p2"]
    with pytest.raises(IndexError):
        queue.peek_request()
    assert [request.name for request in queue] == ["a", "p3"] and len(queue) == 2
    queue.show(batch=0)
    assert taken(queue) == ["a"]
    assert not queue and len(queue) == 1
    queue.show()
    assert taken(queue) == ["p3"]


def test_whose_window_is_nearly_over_goes_with_the_others() -> None:
    queue = queue_of(a=1.0, b=3.0, p1=2.0, p2=9.0)
    queue.promote(lambda request: promotion(request.priority) < 5.0)
    assert taken(queue) == ["a", "p1", "b", "p2"]


def test_what_is_put_back_or_ends_is_found_in_its_class() -> None:
    queue = queue_of(a=1.0, p1=2.0, p2=9.0, p3=10.0)
    skipped = [queue.pop_request(), queue.pop_request()]
    queue.prepend_requests(skipped)
    queue.prepend_request(Waiting(priority_of(0.0), "first"))
    queue.remove_request(skipped[1])
    queue.remove_requests(list(queue)[-1:])
    assert taken(queue) == ["first", "a", "p2"]
