"""Training text as micro-batches of token rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import LengthTable
from lemix_hpc.workload.data_identity import DataIdentity, identity_of
from lemix_hpc.workload.data_set import BLOCK, DataSet, Window
from lemix_hpc.workload.held_out import HeldOut
from lemix_hpc.workload.labels import NO_LABEL, Labelled, has_labels, labelled
from lemix_hpc.workload.lengths import sample_lengths
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.texts import Conversation
from lemix_hpc.workload.tokenizer import Tokenizer

# Lengths are drawn in blocks of this many.
_BLOCK = 1024
# How many conversations are tried before a run.
_TRIED = 16
# How many of the documents that are left out during a run are told of.
_TOLD = 100
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

    The data are read window by window. Mistakes in the first one, which are all data unless they are large, show before a run:
    UserError for files that `DataSet` refuses, and where none of the first conversations can be trained on; `malformed` for
    other lines. What is left out later is told in the log. A document is tokenised when it is first needed. An epoch without a
    micro-batch is a UserError when it is reached. Without a tokenizer only sizes matter, and the data are not read: all
    micro-batches have `sequence_length`, or each a length of its own, drawn from the table `lengths`.
    """

    def __init__(self, training: Training, tokenizer: Tokenizer | None, seed: int, *, block: int = BLOCK) -> None:
        """`block`: bytes of text that are shuffled as one, where the data are large."""
        self._training = training
        self._tokenizer = tokenizer
        self._seed = seed
        self.held_out = None if tokenizer is None else HeldOut(training)
        self._data = None if tokenizer is None else _data(training, seed, block)
        self._tokenised: dict[int, Labelled | None] = {}
        drawn = None if training.lengths is None or tokenizer is not None else _drawn_lengths(training.lengths, seed)
        self._lengths = drawn
        self._endless = self._windows(0, 0) if drawn is None else self._drawn(drawn)
        self.malformed = self._data.first.malformed if self._data is not None else ()
        self.left_out = len(self.malformed)
        """How many documents were left out so far."""
        if self._data is not None and tokenizer is not None:
            _refuse_if_untold(self._data.first, tokenizer)

    def __next__(self) -> TrainingBatch:
        return next(self._endless)

    @property
    def first_window(self) -> Window | None:
        """The documents that are read first, None if no data are read."""
        return None if self._data is None else self._data.first

    def identity(self) -> DataIdentity | None:
        """Of the data, None if none are read. Raises OSError for a file that cannot be read any more."""
        if self._data is None or self._tokenizer is None:
            return None
        training, tokenizer = self._training, self._tokenizer
        assert training.data is not None, "there are data"
        sizes = (training.micro_batch_size, training.sequence_length, training.packing, self._seed)
        probe = tokenizer.encode("The quick brown fox: 1 + 1 = 2, \u00e4\u4e2d.")
        left_out = () if training.held_out is None else (training.held_out.model_dump_json(),)
        cut = (*sizes, training.data.fields.model_dump_json(), tokenizer.vocab_size, tokenizer.eos, probe, *left_out)
        return identity_of([file.path for file in self._data.files], cut)

    def go_to(self, index: int, window: tuple[int, int] = (0, 0)) -> None:
        """Go on with the micro-batch of this index. `window`: one that is not later, as in `TrainingBatch.window`.

        Only once, and before the first micro-batch was taken.
        """
        if self._lengths is None:
            self._endless = self._windows(*window)
            skipped = index - window[1]
        else:
            skipped = index
        for _ in range(skipped):
            next(self._endless)

    def _windows(self, number: int, index: int) -> Iterator[TrainingBatch]:
        barren = 0
        while True:
            first = index
            for rows in self._groups(number):
                yield self._batch(index, rows, (number, first))
                index += 1
            barren = 0 if index > first else barren + 1
            if self._data is not None and barren == 2 * self._data.windows - 1:  # a whole epoch is among them
                raise UserError(self._nothing_left(self._data, number))
            number += 1

    def _drawn(self, lengths: Iterable[int]) -> Iterator[TrainingBatch]:
        for index, length in enumerate(lengths):
            yield TrainingBatch(f"t{index}", self._training.micro_batch_size, length)

    def _groups(self, number: int) -> Iterator[list[Labelled]]:
        """The rows of each micro-batch of a window; those with no label to learn from are left out."""
        if self._data is None:
            yield []
            return
        size, group = self._training.micro_batch_size, []
        for row in self._rows(self._data, number):
            group.append(row)
            if len(group) == size:
                if any(has_labels(row) for row in group):
                    yield group
                group = []

    def _rows(self, data: DataSet, number: int) -> Iterator[Labelled]:
        documents, length = self._shuffled(data, number), self._training.sequence_length
        if self._training.packing == "packed":
            return packed(documents, length)
        assert self._tokenizer is not None, "there are data"
        eos = self._tokenizer.eos
        return (padded(document, length, eos) for document in documents)

    def _shuffled(self, data: DataSet, number: int) -> Iterator[Labelled]:
        window, first_time = data.window(number), number < data.windows
        if first_time and number != data.first_number:
            for message in window.malformed:
                self._leave_out(message)
        for at in np.random.default_rng([self._seed, number]).permutation(len(window)).tolist():
            if at in self._tokenised:
                tokens = self._tokenised[at]
            else:
                tokens = self._labelled(window, at, tell=first_time)
                if data.windows == 1:
                    self._tokenised[at] = tokens
            if tokens is not None:
                yield tokens

    def _labelled(self, window: Window, at: int, *, tell: bool) -> Labelled | None:
        assert self._tokenizer is not None and self.held_out is not None, "there are data"
        document = window.document(at)
        if self.held_out.has(document):
            return None
        try:
            return labelled(document, self._tokenizer)
        except ValueError as error:  # only trying tells what a chat template refuses
            if tell:
                self._leave_out(f"{window.place(at)}: {error}")
            return None

    def _leave_out(self, message: str) -> None:
        self.left_out += 1
        told = self.left_out - len(self.malformed)
        if told <= _TOLD:
            more = "; others are counted only" if told == _TOLD else ""
            print(f"left out: {message}{more}", flush=True)

    def _batch(self, index: int, rows: list[Labelled], window: tuple[int, int]) -> TrainingBatch:
        size, length = self._training.micro_batch_size, self._training.sequence_length
        if not rows:
            return TrainingBatch(f"t{index}", size, length, window=window)
        both = np.stack(rows, axis=1).astype("<i4")
        return TrainingBatch(f"t{index}", size, length, both[0].tobytes(), both[1].tobytes(), window=window)

    def _nothing_left(self, data: DataSet, number: int) -> str:
        training = self._training
        tokens = sum(document.shape[1] for document in self._shuffled(data, number))
        rows = sum(1 for _ in self._rows(data, number))
        assert training.data is not None, "there are data"
        of = "" if data.windows == 1 else f" of the last of {data.windows} parts"
        found = (
            f"{training.data.where}: {len(data.window(number))} documents{of} with {tokens} tokens make {rows} full rows of "
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


def _data(training: Training, seed: int, block: int) -> DataSet:
    if training.data is None:
        raise UserError(
            "training.data is missing, but this engine computes and needs text to train on. "
            "Give training.data.path, or use the emulated engine."
        )
    return DataSet(training.data, seed, block=block)


def _refuse_if_untold(window: Window, tokenizer: Tokenizer) -> None:
    """Raises UserError if of none of the first documents it can be told what is to be learnt: all are conversations then."""
    refused = ""
    for index in range(min(len(window), _TRIED)):
        document = window.document(index)
        if not isinstance(document, Conversation):
            return
        try:
            labelled(document, tokenizer)
        except ValueError as error:
            refused = refused or f"{window.place(index)}: {error}"
        else:
            return
    raise UserError(f"None of the first conversations can be trained on. {refused}.")
