"""What is known of the requests that wait, however they come and go."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.latency import Shape
from lemix_hpc.runtime.leader.request_queues import NodeRequest, Queue, RequestQueues

moves = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(1, 9), st.integers(0, 3), st.floats(0, 9)),
        st.just(("take",)),
        st.tuples(st.just("withdraw"), st.sets(st.integers(0, 30), max_size=5)),
    ),
    max_size=30,
)


@given(moves)
def test_the_shape_of_all_is_kept_up_to_date(drawn: list[tuple[Any, ...]]) -> None:
    """It is the sum over all of them, without a walk along them: a queue may have grown long, and is asked at every turn."""
    queue, came = Queue(), 0
    for kind, *arguments in drawn:
        if kind == "come":
            length, cached, key = arguments
            queue.wait(NodeRequest(came, key, 4, length, [], 0.0, cached=cached))
            came += 1
        elif kind == "take" and queue:
            first = queue.first
            assert queue.take() is first
        elif kind == "withdraw":
            [tasks] = arguments
            begun = {request.task for request in queue if request.cached}
            assert set(queue.withdraw(tasks)).isdisjoint(begun)
        here = list(queue)
        assert queue.waiting.shape == Shape.of([r.next_length for r in here], [r.cached for r in here])
        assert queue.waiting.first is queue.first
        assert all(queue.first.key <= request.key for request in here)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.sets(st.integers(0, 10)))
def test_when_requests_are_promoted_does_not_hang_on_when_somebody_looks(keys: list[int], looks: set[int]) -> None:
    """Batch requests that generate already, each with the time of its promotion; the last look is after all of them."""

    def order(times: list[float]) -> list[int]:
        queues = RequestQueues()
        for task, key in enumerate(keys):
            queues.go_on(NodeRequest(task, float(key), 4, 1, [], 0.0, patient=True), -1.0)
        for time in times:
            queues.promote(time)
        return [request.task for request in queues.interactive.ready]

    assert order([*sorted(looks), 10.0]) == order([0.5 * step for step in range(21)]) == order([10.0])
