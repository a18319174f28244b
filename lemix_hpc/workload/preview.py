"""Rows of training data taken apart, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from lemix_hpc.workload.labels import NO_LABEL
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.tokenizer import Tokenizer

Kind = Literal["learnt", "context", "padding"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of one kind, and the text that they are."""

    kind: Kind
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence as the model gets it: row `row` of a micro-batch."""

    micro_batch: str
    row: int
    stretches: tuple[Stretch, ...]


def rows_of(batches: Iterable[TrainingBatch], tokenizer: Tokenizer) -> Iterator[Row]:
    """The rows of micro-batches, in order. The first token of a row is never learnt, since nothing precedes it."""
    for batch in batches:
        shape = batch.rows, batch.length
        tokens = np.frombuffer(batch.tokens, "<i4").reshape(shape).tolist()
        labels = np.frombuffer(batch.labels, "<i4").reshape(shape).tolist()
        for number in range(batch.rows):
            yield Row(batch.id, number, tuple(_stretches(tokens[number], labels[number], tokenizer)))


def _stretches(tokens: list[int], labels: list[int], tokenizer: Tokenizer) -> Iterator[Stretch]:
    kinds: list[Kind] = ["context", *("context" if label == NO_LABEL else "learnt" for label in labels[1:])]
    filled = len(tokens)
    while filled and tokens[filled - 1] == tokenizer.eos and kinds[filled - 1] == "context":
        filled -= 1
    kinds[filled:] = ["padding"] * (len(kinds) - filled)
    for kind, stretch in groupby(zip(kinds, tokens, strict=True), key=lambda pair: pair[0]):
        ids = tuple(token for _, token in stretch)
        yield Stretch(kind, ids, tokenizer.decode(ids))
