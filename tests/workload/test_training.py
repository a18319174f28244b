import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.workload.labels import labelled
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.training import MicroBatchStream, packed, padded, stream

EOS = ByteTokenizer.eos
BYTES = ByteTokenizer()
ALPHABET = [chr(code) for code in range(ord("a"), ord("z") + 1)]

documents = st.lists(
    st.builds(Document, text=st.text(min_size=1, max_size=30), prompt=st.text(max_size=10)), max_size=20
)


def arrays(batch: TrainingBatch) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    shape = (batch.rows, batch.length)
    return np.frombuffer(batch.tokens, "<i4").reshape(shape), np.frombuffer(batch.labels, "<i4").reshape(shape)


def opened(path: Path, *, seed: int = 0, **training: Any) -> MicroBatchStream:
    return stream(Training(data=TextData(path=path), **training), BYTES, seed)


@given(documents, st.integers(1, 40))
def test_packing_loses_nothing_but_the_tail(texts: list[Document], length: int) -> None:
    all_labelled = [labelled(document, BYTES) for document in texts]
    rows = list(packed(all_labelled, length))
    whole = np.concatenate([np.empty((2, 0), np.int32), *all_labelled], axis=1)
    assert len(rows) == whole.shape[1] // length
    assert all(row.shape == (2, length) for row in rows)
    if rows:
        assert np.array_equal(np.concatenate(rows, axis=1), whole[:, : len(rows) * length])


@given(st.builds(Document, text=st.text(min_size=1, max_size=30), prompt=st.text(max_size=10)), st.integers(1, 60))
def test_padding_keeps_the_beginning(document: Document, length: int) -> None:
    source = labelled(document, BYTES)
    row = padded(source, length, EOS)
    kept = min(length, source.shape[1])
    assert row.shape == (2, length)
    assert np.array_equal(row[:, :kept], source[:, :kept])
    assert (row[0, kept:] == EOS).all() and (row[1, kept:] == -100).all()


def test_labels_are_the_text_and_its_end_alone() -> None:
    pair = labelled(Document("ans", prompt="ask "), BYTES)
    assert pair[0].tolist() == [*b"ask ans", EOS]
    assert pair[1].tolist() == [-100] * 4 + [*b"ans", EOS]
    assert np.array_equal(*labelled(Document("text"), BYTES))


def test_packed_epoch(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(*({"text": letter * 3} for letter in ALPHABET))
    data = opened(path, sequence_length=8, micro_batch_size=3)
    batches = list(itertools.islice(data, 4))
    # 26 documents of 4 tokens are 13 rows of 8; the 13th does not fill a micro-batch of 3.
    assert [(b.id, b.rows, b.length) for b in batches] == [(f"t{n}", 3, 8) for n in range(4)]
    assert data.malformed == ()
    tokens, labels = arrays(batches[0])
    assert np.array_equal(tokens, labels)
    assert (tokens[:, 3::4] == EOS).all()
    used = np.concatenate([arrays(batch)[0][:, ::4].ravel() for batch in batches]).tolist()
    assert len(set(used)) == len(used) == 24 and used != sorted(used)


def test_padded_epoch(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"prompt": "ab", "completion": "c"}, {"text": "a long text to cut"})
    tokens, labels = arrays(next(opened(path, sequence_length=6, micro_batch_size=2, packing="padded")))
    rows = sorted(zip(tokens.tolist(), labels.tolist(), strict=True))
    assert rows[0] == ([*b"a long"], [*b"a long"])
    assert rows[1] == ([*b"abc", EOS, EOS, EOS], [-100, -100, ord("c"), EOS, -100, -100])


def test_stream_reshuffles_each_epoch_and_counts_on(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(*({"text": letter * 3} for letter in ALPHABET))
    training = Training(data=TextData(path=path), sequence_length=4, micro_batch_size=2)
    batches = list(itertools.islice(stream(training, BYTES, seed=5), 39))
    assert [batch.id for batch in batches] == [f"t{n}" for n in range(39)]
    epochs = [[bytes(arrays(batch)[0][:, 0].tolist()) for batch in batches[at : at + 13]] for at in (0, 13, 26)]
    assert all(sorted(b"".join(epoch)) == [ord(letter) for letter in ALPHABET] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert batches == list(itertools.islice(stream(training, BYTES, seed=5), 39))
    assert batches != list(itertools.islice(stream(training, BYTES, seed=6), 39))


def test_documents_are_tokenised_once_and_when_needed(write_jsonl: Callable[..., Path]) -> None:
    class Counting(ByteTokenizer):
        texts: list[str]

        def encode(self, text: str) -> list[int]:
            self.texts.append(text)
            return super().encode(text)

    tokenizer = Counting()
    tokenizer.texts = []
    training = Training(
        data=TextData(path=write_jsonl({"text": "abc"}, {"text": "def"}, {"text": "ghi"})), sequence_length=4
    )
    batches = stream(training, tokenizer, seed=0)
    assert tokenizer.texts == []
    next(batches)
    assert len([text for text in tokenizer.texts if text]) == 1
    list(itertools.islice(batches, 8))
    assert sorted(text for text in tokenizer.texts if text) == ["abc", "def", "ghi"]


def test_micro_batches_without_labels_are_left_out(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"prompt": "a long prompt", "completion": "x"}, {"prompt": "a", "completion": "x"})
    for batch in itertools.islice(opened(path, sequence_length=4, packing="padded"), 3):
        assert arrays(batch)[1].tolist() == [[-100, ord("x"), EOS, -100]], "one in each epoch"
    with pytest.raises(UserError, match=r"none has a token to learn from: prompts .* Raise sequence_length"):
        next(opened(write_jsonl({"prompt": "a long prompt", "completion": "x"}), sequence_length=4, packing="padded"))


def test_a_first_token_has_nothing_to_be_predicted_from(write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="none has a token to learn from"):
        next(opened(write_jsonl({"text": "abc"}), sequence_length=1))


def test_too_little_text(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"text": "short"})
    with pytest.raises(
        UserError, match="1 documents with 6 tokens make 0 full rows of sequence_length 128, fewer than"
    ):
        next(opened(path))
    with pytest.raises(UserError, match="make 1 full rows of sequence_length 6, fewer than the 2 of one micro-batch"):
        next(opened(path, sequence_length=6, micro_batch_size=2))
    with pytest.raises(UserError, match="fewer than the 2"):
        next(opened(path, micro_batch_size=2, packing="padded"))


def test_bad_lines_are_reported_and_data_are_needed(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"text": "abc"}, "nonsense", {"text": "def"})
    data = opened(path, sequence_length=4)
    texts = [bytes(arrays(batch)[0][0, :3].tolist()) for batch in itertools.islice(data, 2)]
    assert sorted(texts) == [b"abc", b"def"]
    assert len(data.malformed) == 1 and data.malformed[0].startswith(f"{path}, line 2: ")
    with pytest.raises(UserError, match=r"training.data is missing"):
        stream(Training(), BYTES, seed=0)


def test_without_a_tokenizer_only_sizes_matter() -> None:
    training = Training(sequence_length=64, micro_batch_size=4)
    endless = list(itertools.islice(stream(training, None, seed=0), 100))
    assert endless == [TrainingBatch(f"t{n}", 4, 64, window=(n, n)) for n in range(100)]


@pytest.mark.trial_data
def test_gsm8k(trial_data: Path) -> None:
    fields = TextFields(prompt="question", completion="answer")
    training = Training(data=TextData(path=trial_data / "gsm8k" / "test.jsonl", fields=fields), micro_batch_size=4)
    data = stream(training, BYTES, seed=0)
    assert data.malformed == ()
    batches = list(itertools.islice(data, 1000))  # more than an epoch has
    tokens, labels = arrays(batches[0])
    learnt = labels != -100
    assert 0 < learnt.mean() < 1 and np.array_equal(tokens[learnt], labels[learnt])
    row_bytes = b"".join(bytes(row[row < EOS].tolist()) for batch in batches for row in arrays(batch)[0])
    assert b"Janet" in row_bytes and b"#### " in row_bytes


def test_lengths_are_drawn_from_a_table_and_by_seed() -> None:
    training = Training(lengths="lmsys-chat", sequence_length=7, micro_batch_size=2)

    def drawn(seed: int, count: int) -> list[int]:
        batches = list(itertools.islice(stream(training, None, seed), count))
        assert [batch.id for batch in batches] == [f"t{index}" for index in range(count)]
        assert {batch.rows for batch in batches} == {2}
        return [batch.length for batch in batches]

    lengths = drawn(0, 3000)
    assert lengths[:2000] == drawn(0, 2000)
    assert lengths != drawn(1, 3000)
    assert min(lengths) >= 4
    assert max(lengths) <= 4096
    assert 340 < np.median(lengths) < 420


def test_conversations_beside_text(write_jsonl: Callable[..., Path]) -> None:
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write_jsonl(talk, {"text": "abc"}, {"prompt": "p", "completion": "c"})
    tokens, labels = arrays(next(opened(path, sequence_length=24, micro_batch_size=3, packing="padded")))
    rows = {
        bytes(t for t in row if t != EOS): label for row, label in zip(tokens.tolist(), labels.tolist(), strict=True)
    }
    prompt = b"user: a\nassistant: "
    assert rows[prompt + b"b\n"] == [-100] * len(prompt) + [*b"b\n"] + [-100] * (22 - len(prompt))
    assert rows[b"abc"] == [*b"abc", EOS] + [-100] * 20


def test_conversations_that_the_template_refuses(
    write_jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    class Picky(ByteTokenizer):
        def encode_conversation(self, messages: Any, tools: Any) -> tuple[list[int], list[bool]]:  # noqa: ARG002
            if messages[0]["content"] == "no":
                raise ValueError("not this")
            return [1, 2], [False, True]

    def talk(said: str) -> dict[str, Any]:
        return {"messages": [{"role": "assistant", "content": said}]}

    def of(path: Path) -> MicroBatchStream:
        return stream(Training(data=TextData(path=path), sequence_length=2), Picky(), 0)

    some = of(write_jsonl(talk("no"), talk("yes"), talk("no")))
    assert [arrays(next(some))[1].tolist() for _ in range(3)] == [[[-100, 2]]] * 3
    left_out = capsys.readouterr().out.splitlines()
    assert sorted(line.rsplit(", ")[-1] for line in left_out) == ["line 1: not this", "line 3: not this"]
    with pytest.raises(UserError, match=r"None of .* conversations can be trained on. .*lines.jsonl, line 1: not this"):
        of(write_jsonl(talk("no"), talk("no")))
