from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.records.places import Places

places = st.lists(st.integers(0, 40))


@given(places, places)
def test_they_are_a_set_in_as_few_stretches_as_there_are_gaps(first: list[int], more: list[int]) -> None:
    some = Places().with_all(first)
    both = some.with_all(more)
    for found, wanted in ((some, set(first)), (both, {*first, *more})):
        assert [place for place in range(42) if place in found] == sorted(wanted)
        assert len(found) == len(wanted)
        assert found.first_gap == min(set(range(42)) - wanted)
        assert len(found.starts) == len(found.ends) == len(wanted - {place + 1 for place in wanted})


def test_requests_that_end_about_in_order_need_no_more_room_for_more_of_them() -> None:
    over, most = Places(), 0
    for place in range(10_000):
        over.add(place ^ 5)
        most = max(most, len(over.starts))
    assert (over.starts, over.ends) == ([0], [10_000]) and most < 5
