"""What a report keeps of a run while it reads on."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.records.schema import ServedTask, Stretch
from lemix_hpc.report import recent
from lemix_hpc.report.recent import LATE_S, AtHand, Recent, in_order

starts = st.lists(st.integers(0, 50).map(float), max_size=200)


def work(start: float) -> Stretch:
    return Stretch(0, 0, "serve", start, start + 1.0, 0, 1)


@given(starts, st.integers(1, 20))
def test_work_that_comes_too_late_by_less_than_the_room_there_is_comes_in_order(starts: list[float], most: int) -> None:
    # Each is at most `most` places behind its own: sorted in blocks, and those turned around.
    blocks = [sorted(starts)[at : at + most] for at in range(0, len(starts), most)]
    given = [start for block in blocks for start in reversed(block)]
    assert [stretch.start for stretch in in_order(map(work, given), most)] == sorted(starts)


@given(starts)
def test_nothing_is_lost_in_any_order(starts: list[float]) -> None:
    assert sorted(stretch.start for stretch in in_order(map(work, starts), 3)) == sorted(starts)


def test_the_keys_that_were_set_last_are_kept() -> None:
    kept: Recent[int, None] = Recent()
    for number in range(recent.MOST + 5):
        kept[number] = kept[0] = None
    assert (len(kept), sorted(kept)[:2]) == (recent.MOST, [0, 6])


def requests(count: int, read: list[int]) -> Iterator[ServedTask]:
    for number in range(count):
        read.append(number)
        yield ServedTask(f"r{number}", "finished", float(number), 1, first_token=number + 0.5, finished=number + 1.0)


def test_requests_are_read_on_as_they_are_asked_for_and_forgotten_when_they_are_over() -> None:
    read: list[int] = []
    served = AtHand(requests(1_000, read), most=100)
    for number in range(1_000):
        known = served.get(f"r{number}", float(number))
        assert known is not None and known.first_token == number + 0.5
        assert len(read) == number + 1
    assert served.get("r0", 1_000.0) is None, "nobody asks for it so long after its end"


def test_for_a_request_that_was_lost_no_more_than_so_many_are_read() -> None:
    read: list[int] = []
    served = AtHand(requests(1_000, read), most=100)
    assert served.get("lost", 0.0) is None and len(read) == 100
    assert served.get("lost", 50.0 + LATE_S) is None and 100 < len(read) < 200
    assert served.get("r150", 140.0 + LATE_S) is not None
