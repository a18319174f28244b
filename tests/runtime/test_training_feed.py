import itertools

import pytest

from lemix_hpc.runtime.training_feed import TrainingFeed, amount
from lemix_hpc.workload.tasks import TrainingBatch


def feed(total: int | None, per_group: int = 3) -> TrainingFeed:
    stream = (TrainingBatch(f"t{i}", 2, 16) for i in itertools.count())
    numbers = itertools.count(100)
    return TrainingFeed(stream, per_group=per_group, total=total, number=lambda: next(numbers))


def test_groups_share_out_the_stream_and_the_last_one_is_smaller() -> None:
    source = feed(total=7)
    groups = []
    while not source.exhausted:
        groups.append(source.next_group())
    assert [len(group.micro_batches) for group in groups] == [3, 3, 1]
    assert [task for group in groups for task in group.ids] == [f"t{i}" for i in range(7)]
    last = groups[2].micro_batches[0]
    assert (last.id, last.group, last.index, last.group_size) == (106, 2, 0, 1)


def test_without_a_total_it_never_ends() -> None:
    source = feed(total=None)
    assert [source.next_group().number for _ in range(50)] == list(range(50))
    assert not source.exhausted


@pytest.mark.parametrize(
    ("requests", "share", "micro_batches", "expected"),
    [(960, 0.5, None, 960), (90, 0.1, None, 10), (10, 0.9, None, 90), (10, None, 7, 7), (10, None, None, None)],
)
def test_amount(requests: int, share: float | None, micro_batches: int | None, expected: int | None) -> None:
    assert amount(requests, share, micro_batches) == expected
