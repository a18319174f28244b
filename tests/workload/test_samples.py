from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextFields
from lemix_hpc.workload.samples import Sample, SampleQueue, parse_samples
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer

EOS = 256


def queue(**training: Any) -> SampleQueue:
    return SampleQueue(Training(**{"sequence_length": 8, "micro_batch_size": 2} | training), ByteTokenizer())


def filled(waiting: SampleQueue, *documents: Document) -> SampleQueue:
    waiting.add([Sample(f"s{number}", waiting.tokenised(document)) for number, document in enumerate(documents)])
    return waiting


def rows(batch: TrainingBatch | None) -> tuple[list[list[int]], list[list[int]]]:
    assert batch is not None
    tokens, labels = (
        np.frombuffer(part, "<i4").reshape(batch.rows, batch.length) for part in (batch.tokens, batch.labels)
    )
    return tokens.tolist(), labels.tolist()


def test_one_object_or_one_in_each_line() -> None:
    pretty = b'\n{\n "prompt": "a",\n "completion": "b"\n}\n'
    assert parse_samples(pretty, TextFields()) == [(2, Document("b", prompt="a"))]
    lines = b'{"text": "x"}\r\n\r\n{"prompt": "", "completion": "y"}'
    assert parse_samples(lines, TextFields()) == [(1, Document("x")), (3, Document("y"))]
    mapped = TextFields(prompt="q", completion="a")
    assert parse_samples(b'{"q": "1", "a": "2"}', mapped) == [(1, Document("2", prompt="1"))]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b"", "there is no sample"),
        (b" \n ", "there is no sample"),
        (b'{"text": "x"}\n{"text": ""}', "line 2: `text` is empty"),
        (
            b'{"text": "x"}\n\n{"txt": "x"}',
            "line 3: expected `text`, or `messages`, or `prompt` and `completion`, found `txt`",
        ),
        (b'{"text": 1}', "line 1: `text` is int"),
        (b'[{"text": "x"}]', "line 1: Expected `object`"),
        (b'{"text": "x"}\n{"text": ', "line 2: not valid JSON"),
        (b'{"text": "\xff"}', "line 1: "),
        (b"[" * 100_000, "line 1: "),
    ],
)
def test_the_line_that_is_wrong_is_named(body: bytes, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong[:12]) as raised:
        parse_samples(body, TextFields())
    assert str(raised.value).startswith(wrong)


def test_packed_samples_follow_each_other_and_the_rest_is_not_learnt() -> None:
    waiting = filled(queue(), Document("abc"), Document("defgh", prompt="?"))
    assert waiting.pending == 2
    batch = waiting.next()
    tokens, labels = rows(batch)
    assert tokens == [[97, 98, 99, EOS, 63, 100, 101, 102], [103, 104, EOS] + [EOS] * 5]
    assert labels == [[97, 98, 99, EOS, -100, 100, 101, 102], [103, 104, EOS] + [-100] * 5]
    assert batch is not None and (batch.id, batch.samples) == ("posted0", ("s0", "s1"))
    assert waiting.next() is None and waiting.pending == 0


def test_a_long_sample_is_in_several_micro_batches_and_prompts_alone_in_none() -> None:
    waiting = filled(queue(micro_batch_size=1), Document("x" * 20), Document("yes", prompt="?" * 30))
    batches = list(iter(waiting.next, None))
    assert [batch.samples for batch in batches] == [("s0",), ("s0",), ("s0", "s1"), ("s1",)]
    assert [batch.id for batch in batches] == ["posted0", "posted1", "posted2", "posted3"]
    for batch in batches:
        _, labels = rows(batch)
        assert any(label != -100 for row in labels for label in row[1:])


def test_padded_samples_have_rows_of_their_own() -> None:
    waiting = filled(queue(packing="padded"), Document("abc"), Document("d" * 20), Document("e"))
    tokens, _ = rows(waiting.next())
    assert tokens == [[97, 98, 99] + [EOS] * 5, [100] * 8]
    tokens, labels = rows(waiting.next())
    assert tokens == [[101] + [EOS] * 7, [EOS] * 8]
    assert labels == [[101, EOS] + [-100] * 6, [-100] * 8]
    with pytest.raises(ValueError, match=r"leaves no room for its completion in training\.sequence_length"):
        waiting.tokenised(Document("x", prompt="?" * 8))


@given(
    texts=st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=40), max_size=12),
    size=st.integers(1, 3),
    length=st.integers(2, 16),
)
def test_nothing_is_lost_and_the_order_is_kept(texts: list[str], size: int, length: int) -> None:
    waiting = filled(queue(micro_batch_size=size, sequence_length=length), *map(Document, texts))
    learnt: list[int] = []
    named: list[str] = []
    while (batch := waiting.next()) is not None:
        _, labels = rows(batch)
        learnt += [label for row in labels for label in row if label != -100]
        named += batch.samples
    written = [token for text in texts for token in [*text.encode(), EOS]]
    # A last row of one token has nothing to learn, and is left out.
    assert learnt == written or (learnt == written[:-1] and written[-1] == EOS)
    assert list(dict.fromkeys(named)) == [f"s{number}" for number in range(len(texts))]
