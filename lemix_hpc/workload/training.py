"""Training text as micro-batches of token rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import LengthTable
from lemix_hpc.workload.labels import NO_LABEL, Labelled, has_labels, labelled
from lemix_hpc.workload.lengths import sample_lengths
from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.texts import Conversation, Document, read_documents
from lemix_hpc.workload.tokenizer import Tokenizer

# Lengths are drawn in blocks of this many.
_BLOCK = 1024
# How many conversations are tried before a run.
_TRIED = 16
# Spawn key of the lengths' seed; requests have 0 to 2, and equal draws would tie micro-batches to requests.
_LENGTHS_KEY = 3


def stream(training: Training, tokenizer: Tokenizer | None, seed: int) -> MicroBatchStream:
    """Endless micro-batches "t0", "t1", ... over as many epochs as it takes. Raises UserError as `MicroBatchStream` does."""
    return MicroBatchStream(training, tokenizer, seed)


def index_of(name: str) -> int | None:
    """Which micro-batch of the text has this id; None for those of clients' samples."""
    return int(name[1:]) if name.startswith("t") else None


class MicroBatchStream(Iterator[TrainingBatch]):
    """Micro-batches over endless epochs, each with its own seeded order of documents.

    The whole file is read at the start, so that its mistakes show before a run: UserError for a missing, unreadable or
    empty file and for one without a valid line, `malformed` for other lines. A document is tokenised when it is first needed.
    An epoch without a micro-batch is a UserError when it is reached. Without a tokenizer only sizes matter, and the data are
    not read: all micro-batches have `sequence_length`, or each a length of its own, drawn from the table `lengths`.
    """

    def __init__(self, training: Training, tokenizer: Tokenizer | None, seed: int) -> None:
        findings = Findings()
        self._training = training
        self._tokenizer = tokenizer
        self._seed = seed
        self._documents = [] if tokenizer is None else _documents(training, findings)
        self._tokenised: dict[int, Labelled | None] = {}
        drawn = None if training.lengths is None or tokenizer is not None else _drawn_lengths(training.lengths, seed)
        self._lengths = drawn
        self._endless = self._epochs(0, 0) if drawn is None else self._drawn(drawn)
        if tokenizer is not None and any(isinstance(each, Conversation) for each in self._documents[:_TRIED]):
            self._refuse_if_untold(tokenizer)
        self.malformed = tuple(findings.malformed)
        self.documents = len(self._documents)

    def __next__(self) -> TrainingBatch:
        return next(self._endless)

    def go_to(self, index: int, epoch: tuple[int, int] = (0, 0)) -> None:
        """Go on with the micro-batch of this index. `epoch`: one that is not later, as in `TrainingBatch.epoch`.

        Only once, and before the first micro-batch was taken.
        """
        if self._lengths is None:
            self._endless = self._epochs(*epoch)
            skipped = index - epoch[1]
        else:
            skipped = index
        for _ in range(skipped):
            next(self._endless)

    def _epochs(self, number: int, index: int) -> Iterator[TrainingBatch]:
        while True:
            first = index
            for rows in self._groups(number):
                yield self._batch(index, rows, (number, first))
                index += 1
            number += 1

    def _drawn(self, lengths: Iterable[int]) -> Iterator[TrainingBatch]:
        for index, length in enumerate(lengths):
            yield TrainingBatch(f"t{index}", self._training.micro_batch_size, length)

    def _groups(self, epoch: int) -> Iterator[list[Labelled]]:
        """The rows of each micro-batch of an epoch; those with no label to learn from are left out."""
        if self._tokenizer is None:
            yield []
            return
        length, size = self._training.sequence_length, self._training.micro_batch_size
        documents = self._shuffled(self._tokenizer, epoch)
        if self._training.packing == "packed":
            rows = packed(documents, length)
        else:
            rows = (padded(document, length, self._tokenizer.eos) for document in documents)
        some, made, group = False, 0, []
        for row in rows:
            made += 1
            group.append(row)
            if len(group) == size:
                if any(has_labels(row) for row in group):
                    some = True
                    yield group
                group = []
        if not some:
            raise UserError(self._nothing_left(made))

    def _shuffled(self, tokenizer: Tokenizer, epoch: int) -> Iterator[Labelled]:
        for at in np.random.default_rng([self._seed, epoch]).permutation(len(self._documents)).tolist():
            if at not in self._tokenised:
                self._tokenised[at] = self._labelled(at, tokenizer)
            tokens = self._tokenised[at]
            if tokens is not None:
                yield tokens

    def _labelled(self, at: int, tokenizer: Tokenizer) -> Labelled | None:
        try:
            return labelled(self._documents[at], tokenizer)
        except ValueError as error:  # only trying tells what a chat template refuses
            print(f"left out: document {at + 1} of {self._where}: {error}", flush=True)
            return None

    def _batch(self, index: int, rows: list[Labelled], epoch: tuple[int, int]) -> TrainingBatch:
        size, length = self._training.micro_batch_size, self._training.sequence_length
        if not rows:
            return TrainingBatch(f"t{index}", size, length, epoch=epoch)
        both = np.stack(rows, axis=1).astype("<i4")
        return TrainingBatch(f"t{index}", size, length, both[0].tobytes(), both[1].tobytes(), epoch=epoch)

    @property
    def _where(self) -> str:
        return str(self._training.data.path) if self._training.data is not None else "training.data"

    def _refuse_if_untold(self, tokenizer: Tokenizer) -> None:
        """Raises UserError if what is to be learnt cannot be told of any of the first conversations."""
        refused = ""
        for document in self._documents[:_TRIED]:
            try:
                labelled(document, tokenizer)
            except ValueError as error:
                refused = refused or str(error)
            else:
                return
        raise UserError(
            f"{self._where}: none of the first {_TRIED} conversations can be trained on. The first: {refused}."
        )

    def _nothing_left(self, rows: int) -> str:
        training = self._training
        tokens = sum(document.shape[1] for document in self._tokenised.values() if document is not None)
        found = (
            f"{self._where}: {self.documents} documents with {tokens} tokens make {rows} full rows of "
            f"sequence_length {training.sequence_length}"
        )
        if rows < training.micro_batch_size:
            return (
                f"{found}, fewer than the {training.micro_batch_size} of one micro-batch (training.micro_batch_size). "
                "Give more text, or lower sequence_length or micro_batch_size."
            )
        return (
            f"{found}, and none has a token to learn from: prompts and the first token of a row are not learnt. "
            "Raise sequence_length."
        )


def _drawn_lengths(table: LengthTable, seed: int) -> Iterator[int]:
    """Prompt lengths of a table in tokens, without end."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_LENGTHS_KEY,)))
    while True:
        yield from sample_lengths(table, _BLOCK, rng)[:, 0].tolist()


def packed(documents: Iterable[Labelled], length: int) -> Iterator[Labelled]:
    """The documents as one sequence, cut into rows of shape (2, length). An incomplete last row is dropped."""
    rest = np.empty((2, 0), np.int32)
    for document in documents:
        rest = np.concatenate([rest, document], axis=1)
        full = rest.shape[1] // length
        for index in range(full):
            yield rest[:, index * length : (index + 1) * length]
        rest = rest[:, full * length :]


def padded(document: Labelled, length: int, eos: int) -> Labelled:
    """One document as one row of shape (2, length): cut, or padded with `eos` tokens that have no label."""
    row = np.empty((2, length), np.int32)
    row[0], row[1] = eos, NO_LABEL
    kept = min(length, document.shape[1])
    row[:, :kept] = document[:, :kept]
    return row


def _documents(training: Training, findings: Findings) -> list[Document | Conversation]:
    if training.data is None:
        raise UserError(
            "training.data is missing, but this engine computes and needs text to train on. "
            "Give training.data.path, or use the emulated engine."
        )
    return read_documents(training.data, findings)
