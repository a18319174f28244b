"""Training samples that clients send during a run, cut into micro-batches when training asks for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Lock

import msgspec
import numpy as np

from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextFields
from lemix_hpc.workload.labels import Labelled, has_labels, labelled
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.texts import Conversation, Document, parse_document
from lemix_hpc.workload.tokenizer import Tokenizer
from lemix_hpc.workload.training import padded


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample. `tokens`: tokens and labels, int32, shape (2, number of tokens)."""

    id: str
    tokens: Labelled


def parse_samples(body: bytes, fields: TextFields) -> list[tuple[int, Document | Conversation]]:
    """(line number from 1, document) of one JSON object over any number of lines, or of one object per line.

    Raises ValueError if a line is invalid, naming the line and what is wrong with it, and if there is no sample.
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


def _at(number: int, text: bytes, fields: TextFields) -> Document | Conversation:
    try:
        return parse_document(text, fields)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


class SampleQueue:
    """Samples are added from any thread and come out in order as micro-batches, in the scheduler loop alone.

    Rows are cut as the recipe's `packing` says. A micro-batch with too little text is padded with end-of-text tokens that
    are not learnt, so that no sample waits for others.
    """

    def __init__(self, training: Training, tokenizer: Tokenizer) -> None:
        self._training = training
        self._tokenizer = tokenizer
        self._pending: deque[Sample] = deque()
        self._batches = 0
        self._came = 0
        # What a micro-batch is cut from must be told apart from what came while it was cut.
        self._lock = Lock()
        self.closed = False
        """Whether training has ended, so that no more micro-batches will be asked for."""

    def tokenised(self, document: Document | Conversation) -> Labelled:
        """Tokens and labels of a document, int32, shape (2, tokens). Raises ValueError if no token of it would be learnt."""
        tokens = labelled(document, self._tokenizer)
        length = self._training.sequence_length
        if self._training.packing == "padded" and not has_labels(padded(tokens, length, self._tokenizer.eos)):
            raise ValueError(
                f"the prompt leaves no room for its completion in training.sequence_length, which is {length} tokens"
            )
        return tokens

    def add(self, samples: Sequence[Sample]) -> None:
        """Append samples, in the order in which they are to be learnt."""
        with self._lock:
            self._pending.extend(samples)
            self._came += len(samples)

    def again(self, samples: Sequence[Sample], came: Sequence[int]) -> list[TrainingBatch]:
        """Cut the first micro-batches of an earlier attempt again, and keep what was not in them.

        `samples`: all that have come, in order; `came`: how many of them had when each micro-batch was cut.
        """
        cut: list[TrainingBatch] = []
        for count in came:
            self.add(samples[self._came : count])
            batch = self.next()
            assert batch is not None, "it was cut from these samples before"
            cut.append(batch)
        self.add(samples[self._came :])
        return cut

    @property
    def pending(self) -> int:
        """The number of samples that are not yet completely in micro-batches."""
        return len(self._pending)

    def next(self) -> TrainingBatch | None:
        """The next micro-batch, "posted0", "posted1", ...; None if no sample is left."""
        with self._lock:
            return self._cut()

    def _cut(self) -> TrainingBatch | None:
        size, length = self._training.micro_batch_size, self._training.sequence_length
        # The first token of a row is not learnt: the last one of a sample waits until there are others to go with it.
        while sum(sample.tokens.shape[1] for sample in islice(self._pending, 2)) > 1:
            cut = list(self._rows(size))
            rows = [row for row, _ in cut] + [self._empty()] * (size - len(cut))
            if not any(has_labels(row) for row in rows):
                continue  # only prompts: their completions come next
            ids = dict.fromkeys(name for _, names in cut for name in names)
            both = np.stack(rows, axis=1).astype("<i4")
            self._batches += 1
            name = f"posted{self._batches - 1}"
            content = both[0].tobytes(), both[1].tobytes()
            return TrainingBatch(name, size, length, *content, tuple(ids), came=self._came)
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
            rest = sample.tokens[:, taken.shape[1] :]
            if rest.size:
                self._pending[0] = Sample(sample.id, rest)
            else:
                self._pending.popleft()
        return row, ids

    def _empty(self) -> Labelled:
        return padded(np.empty((2, 0), np.int32), self._training.sequence_length, self._tokenizer.eos)
