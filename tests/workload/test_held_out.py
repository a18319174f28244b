"""Held-out documents: none is ever trained on, and scores of prefixes make the loss on what would be learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import HeldOut as Section
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData
from lemix_hpc.workload.held_out import HeldOut, prefixes
from lemix_hpc.workload.labels import NO_LABEL
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.training import MicroBatchStream, stream

BYTES = ByteTokenizer()
WORDS = [f"word{number:03}" for number in range(200)]
WriteLines = Callable[..., Path]


def opened(path: Path, held_out: Section, **training: Any) -> MicroBatchStream:
    return stream(Training(data=TextData(path=path), held_out=held_out, sequence_length=16, **training), BYTES, 0)


def trained_text(batches: MicroBatchStream, count: int) -> str:
    """Of the first micro-batches."""
    tokens = b"".join(next(batches).tokens for _ in range(count))
    return bytes(token for token in np.frombuffer(tokens, "<i4") if token < 256).decode()


def held_out(share: float) -> set[str]:
    held = HeldOut(Training(data=TextData(path=Path("any")), held_out=Section(share=share)))
    return {word for word in WORDS if held.has(Document(word))}


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_what_is_held_out_is_never_trained_on_and_all_else_is(write_jsonl: WriteLines, packing: str) -> None:
    kept_out = held_out(0.2)
    assert 20 < len(kept_out) < 60
    path = write_jsonl(*({"text": word} for word in WORDS * 2))  # copies are held out, too
    # More than two epochs.
    text = trained_text(opened(path, Section(share=0.2), packing=packing), 1000)
    assert {word for word in WORDS if word in text} == set(WORDS) - kept_out


def test_a_larger_share_keeps_out_what_a_smaller_one_does() -> None:
    assert held_out(0.1) < held_out(0.3)


def test_what_is_in_the_file_of_held_out_samples_is_left_out_of_training(write_jsonl: WriteLines) -> None:
    path = write_jsonl(*({"text": word} for word in WORDS))
    few = write_jsonl({"text": WORDS[3]}, {"text": "other"}, name="few.jsonl")
    batches = opened(path, Section(path=few))
    text = trained_text(batches, 300)
    assert {word for word in WORDS if word not in text} == {WORDS[3]}
    assert batches.held_out is not None
    samples = batches.held_out.samples(batches.first_window, BYTES, 16)
    assert samples is not None
    assert [bytes(each.tokens[:-1]).decode() for each in samples.prefixes] == [WORDS[3], "other"]
    assert (samples.documents, samples.tokens) == (2, 7 + 5)  # each with its end, without its first byte


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_scores_of_prefixes_make_the_loss_on_what_is_learnt(learnt: list[bool], seed: int) -> None:
    tokens = np.arange(len(learnt), dtype=np.int32)
    row = np.stack([tokens, np.where(learnt, tokens, NO_LABEL).astype(np.int32)])
    nll = np.random.default_rng(seed).random(len(learnt))
    nll[0] = 0.0  # nothing precedes the first token
    scored = sum(each.sign * nll[: len(each.tokens)].sum() for each in prefixes(0, row))
    assert scored == pytest.approx(nll[np.array(learnt)].sum())


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_long_documents_are_cut_as_in_training(write_jsonl: WriteLines, packing: Any) -> None:
    path = write_jsonl({"text": "a" * 40})
    held = HeldOut(Training(held_out=Section(path=path), sequence_length=16, packing=packing))
    samples = held.samples(None, BYTES, 1000)
    assert samples is not None
    assert [len(each.tokens) for each in samples.prefixes] == ([16, 16, 9] if packing == "packed" else [16])


def test_a_share_of_nothing_is_refused(write_jsonl: WriteLines) -> None:
    batches = opened(write_jsonl({"text": "only"}), Section(share=1e-9))
    assert batches.held_out is not None
    with pytest.raises(UserError, match=r"nothing to take the loss on.*Raise its `share`"):
        batches.held_out.samples(batches.first_window, BYTES, 16)
