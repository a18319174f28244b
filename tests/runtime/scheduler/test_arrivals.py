from collections.abc import Iterator

from lemix_hpc.runtime.scheduler.arrivals import Arrivals
from lemix_hpc.workload.tasks import Request

OPENING = Request("first", 1.0, 8, 0)
TURN = Request("second", 0.5, 16, 0, after="first", think_s=2.0)
OTHER = Request("other", 4.0, 8, 0)


def test_a_turn_comes_when_its_author_has_thought() -> None:
    arrivals = Arrivals([OPENING, TURN, OTHER], 3)
    assert (arrivals.next, arrivals.left) == (1.0, 3)
    assert [r.id for r in arrivals.until(1.5)] == ["first"]
    assert arrivals.next == 4.0
    arrivals.answered("first", 3.0)
    assert [(r.id, r.arrival) for r in arrivals.until(6.0)] == [("other", 4.0), ("second", 5.0)]
    assert (arrivals.next, arrivals.left) == (float("inf"), 0)


def test_a_turn_after_one_that_was_turned_away_comes_by_itself() -> None:
    arrivals = Arrivals([OPENING, TURN], 2)
    assert [r.id for r in arrivals.until(2.0)] == ["first"]
    arrivals.turned_away("first", 2.0)
    assert [(r.id, r.arrival) for r in arrivals.until(2.0)] == [("second", 2.0)]


def test_answers_that_nobody_waits_for_change_nothing() -> None:
    arrivals = Arrivals([OTHER], 1)
    arrivals.answered("unknown", 0.0)
    arrivals.turned_away("unknown", 0.0)
    assert (arrivals.next, arrivals.left) == (4.0, 1)


def test_requests_are_made_no_sooner_than_they_are_due_and_conversations_as_a_whole() -> None:
    made: list[str] = []

    def source() -> Iterator[Request]:
        for request in (OPENING, TURN, OTHER, Request("last", 5.0, 8, 0)):
            made.append(request.id)
            yield request

    arrivals = Arrivals(source(), 4)
    assert made == ["first"]
    assert [r.id for r in arrivals.until(1.0)] == ["first"] and made == ["first", "second", "other"]
    arrivals.answered("first", 1.5)
    assert [r.id for r in arrivals.until(3.5)] == ["second"], "before a request behind it in the order"
    assert [r.id for r in arrivals.until(4.0)] == ["other"] and made[-1] == "last"
    assert (arrivals.next, arrivals.left, arrivals.over) == (5.0, 1, False)
    arrivals.close()
    assert (arrivals.next, arrivals.over) == (float("inf"), True)
