import itertools

import pytest

from lemix_hpc.config.training_section import Training
from lemix_hpc.run_setup.training_feed import TrainingFeed, amount
from lemix_hpc.workload.samples import Sample, SampleQueue
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer


def feed(
    total: int | None, per_group: int = 3, *, samples: SampleQueue | None = None, alone: bool = False
) -> TrainingFeed:
    stream = None if alone else (TrainingBatch(f"t{i}", 2, 16) for i in itertools.count())
    numbers = itertools.count(100)
    return TrainingFeed(stream, per_group=per_group, total=total, number=lambda: next(numbers), samples=samples)


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


def test_what_clients_send_goes_first() -> None:
    waiting = SampleQueue(Training(sequence_length=4), ByteTokenizer())
    source = feed(total=None, samples=waiting)
    assert source.next_group().ids == ("t0", "t1", "t2")
    waiting.add([Sample(name, waiting.tokenised(Document("abc"))) for name in "xy"])
    group = source.next_group()
    assert (group.ids, group.samples) == (("posted0", "posted1", "t3"), (("x",), ("y",), ()))
    assert [m.group_size for m in group.micro_batches] == [3, 3, 3]
    source.close()
    assert waiting.closed


def test_without_text_of_its_own_it_waits_for_clients() -> None:
    waiting = SampleQueue(Training(sequence_length=4), ByteTokenizer())
    source = feed(total=5, samples=waiting, alone=True)
    assert source.next_group() is None and source.lasts_with_serving and not feed(total=5).lasts_with_serving
    waiting.add([Sample(name, waiting.tokenised(Document("abc"))) for name in "uvwxyz"])
    assert [source.next_group().ids for _ in range(2)] == [("posted0", "posted1", "posted2"), ("posted3", "posted4")]
    assert source.exhausted and source.samples_waiting == 1
