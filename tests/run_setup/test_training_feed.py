import itertools
import json
from collections.abc import Iterable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData
from lemix_hpc.records.journal import Stepped
from lemix_hpc.records.schema import TrainedTask
from lemix_hpc.records.training_fold import TrainingFold
from lemix_hpc.run_setup.training_feed import FedGroup, TrainingFeed, amount
from lemix_hpc.workload.samples import Sample, SampleQueue
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.training import MicroBatchStream, stream


def feed(
    total: int | None, per_group: int = 3, *, samples: SampleQueue | None = None, alone: bool = False
) -> TrainingFeed:
    text = None if alone else stream(Training(micro_batch_size=2, sequence_length=16), None, 0)
    numbers = itertools.count(100)
    return TrainingFeed(text, per_group=per_group, total=total, number=lambda: next(numbers), samples=samples)


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
    assert group.ids == ("posted0", "posted1", "t3")
    assert [source.samples for source in group.sources] == [("x",), ("y",), ()]
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


def groups(source: TrainingFeed, count: int) -> list[FedGroup]:
    return [group for _ in range(count) if (group := source.next_group()) is not None]


def contents(groups: Iterable[FedGroup]) -> list[tuple[int, list[tuple[str, bytes, bytes, tuple[str, ...]]]]]:
    return [(g.number, [(b.id, b.tokens, b.labels, b.samples) for b in g.sources]) for g in groups]


TEXTS = st.lists(st.text("abc ", min_size=6, max_size=30), min_size=1, max_size=8)


@given(
    texts=TEXTS,
    packing=st.sampled_from(["packed", "padded"]),
    posts=st.lists(st.lists(st.text("xyz", min_size=1, max_size=12), max_size=3), min_size=4, max_size=4),
    done=st.sets(st.integers(0, 3)),
    total=st.none() | st.integers(7, 14),
    block=st.sampled_from([4, 20, 1 << 20]),
    forgets=st.booleans(),
)
def test_an_attempt_goes_on_with_the_very_groups(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    packing: Literal["packed", "padded"],
    posts: list[list[str]],
    done: set[int],
    total: int | None,
    block: int,
    *,
    forgets: bool,
) -> None:
    """Those that are not done come again, byte by byte, and then what would have come next; also if only sums are known of the
    first ones that are."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    training = Training(data=TextData(path=path), sequence_length=4, micro_batch_size=1, packing=packing)
    tokenizer = ByteTokenizer()

    def new() -> tuple[TrainingFeed, SampleQueue]:
        queue = SampleQueue(training, tokenizer)
        text = MicroBatchStream(training, tokenizer, 5, block=block)  # as of large data, or of one window
        return TrainingFeed(text, per_group=2, total=total, number=itertools.count().__next__, samples=queue), queue

    first, queue = new()
    came: list[Sample] = []
    cut: list[FedGroup] = []
    for post in posts:
        samples = [Sample(f"sample{len(came) + i}", queue.tokenised(Document(text))) for i, text in enumerate(post)]
        came += samples
        queue.add(samples)
        cut += groups(first, 1)
    again, other_queue = new()
    fold = TrainingFold({group.number: group.cut for group in cut})
    for version, number in enumerate(sorted(done & fold.cuts.keys()), 1):
        fold.steps.append(Stepped(0, (number,), version, 0.0))
        for id in fold.cuts[number].ids:
            fold.tell(TrainedTask(id, "finished", 0.0, 4, 0, finished=0.0, step=version))
    if forgets:
        fold.forget(fold.versions)
        assert not fold.cuts or min(fold.cuts) not in done, "the first ones are forgotten"
    assert fold.behind.micro_batches + len(fold.told) == sum(len(g.cut.ids) for g in cut if g.number in done)
    again.go_on(list(fold.cuts.values()), done, came, behind=fold.behind)
    assert other_queue.pending == queue.pending
    left = [group for group in cut if group.number not in done]
    assert contents(groups(again, len(left))) == contents(left)
    assert contents(groups(again, 3)) == contents(groups(first, 3))
    assert again.exhausted == first.exhausted
