"""Training samples that clients send while a run lasts, cut into micro-batches as soon as training asks for some."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextFields
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.texts import Document, parse_document
from lemix_hpc.workload.tokenizer import Tokenizer
from lemix_hpc.workload.training import Labelled, has_labels, labelled, padded


@dataclass(frozen=True, slots=True)
class Sample:
    """`tokens`: tokens and labels, shape (2, number of tokens)."""

    id: str
    tokens: Labelled


def parse_samples(body: bytes, fields: TextFields) -> list[tuple[int, Document]]:
    """One JSON object over as many lines as it likes, or one in each line: (line, document).

    Raises ValueError naming the line and what is wrong with it; ValueError also when there is none.
    """
    lines = [(number, line) for number, line in enumerate(body.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError("there is no sample; send one JSON object, or one per line")
    if len(lines) > 1 and _is_one_object(body):
        return [(lines[0][0], _at(lines[0][0], body, fields))]
    return [(number, _at(number, line, fields)) for number, line in lines]


def _is_one_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


def _at(number: int, text: bytes, fields: TextFields) -> Document:
    try:
        return parse_document(text, fields)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


class SampleQueue:
    """Samples go in at one end, from any thread, and come out in order as micro-batches, for the scheduler's loop alone.

    Rows are cut as the recipe's `packing` says. A micro-batch that lacks text is filled with end-of-text tokens that are not
    learnt, so that nobody waits for other people's samples.
    """

    def __init__(self, training: Training, tokenizer: Tokenizer) -> None:
        self._training = training
        self._tokenizer = tokenizer
        self._pending: deque[Sample] = deque()
        self._batches = 0
        self.closed = False
        """Whether nobody will ask for more."""

    def tokenised(self, document: Document) -> Labelled:
        """A document as it will be learnt. Raises ValueError if nothing of it would be."""
        tokens = labelled(document, self._tokenizer)
        length = self._training.sequence_length
        if self._training.packing == "padded" and not has_labels(padded(tokens, length, self._tokenizer.eos)):
            raise ValueError(
                f"the prompt leaves no room for its completion in training.sequence_length, which is {length} tokens"
            )
        return tokens

    def add(self, samples: Sequence[Sample]) -> None:
        self._pending.extend(samples)

    @property
    def pending(self) -> int:
        """Samples of which something has not been handed out."""
        return len(self._pending)

    def next(self) -> TrainingBatch | None:
        """The next micro-batch, None when there is nothing left to learn."""
        size, length = self._training.micro_batch_size, self._training.sequence_length
        while self._pending:
            cut = list(self._rows(size))
            rows = [row for row, _ in cut] + [self._empty()] * (size - len(cut))
            if not any(has_labels(row) for row in rows):
                continue  # only prompts: their completions come next
            ids = dict.fromkeys(name for _, names in cut for name in names)
            both = np.stack(rows, axis=1).astype("<i4")
            self._batches += 1
            name = f"posted{self._batches - 1}"
            return TrainingBatch(name, size, length, both[0].tobytes(), both[1].tobytes(), tuple(ids))
        return None

    def _rows(self, most: int) -> Iterator[tuple[Labelled, list[str]]]:
        """Rows of shape (2, sequence length), each with the ids of the samples in it."""
        for _ in range(most):
            if not self._pending:
                return
            if self._training.packing == "packed":
                yield self._packed()
            else:
                sample = self._pending.popleft()
                yield padded(sample.tokens, self._training.sequence_length, self._tokenizer.eos), [sample.id]

    def _packed(self) -> tuple[Labelled, list[str]]:
        row, filled, ids = self._empty(), 0, []
        while filled < row.shape[1] and self._pending:
            sample = self._pending[0]
            taken = sample.tokens[:, : row.shape[1] - filled]
            row[:, filled : filled + taken.shape[1]] = taken
            filled += taken.shape[1]
            ids.append(sample.id)
            if taken.shape[1] < sample.tokens.shape[1]:
                self._pending[0] = Sample(sample.id, sample.tokens[:, taken.shape[1] :])
            else:
                self._pending.popleft()
        return row, ids

    def _empty(self) -> Labelled:
        return padded(np.empty((2, 0), np.int32), self._training.sequence_length, self._tokenizer.eos)
