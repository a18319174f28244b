"""Documents that are never trained on, and how the loss on them follows from scores of prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec
import numpy as np

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.workload.data_set import Window, read_all
from lemix_hpc.workload.labels import NO_LABEL, Labelled, has_labels, labelled
from lemix_hpc.workload.texts import Conversation, Document
from lemix_hpc.workload.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prefix:
    """The negative log-likelihood of these tokens, as of a scored prompt, counts with this `sign`. All of one `document` have
    to be scored by the same weights."""

    document: int
    tokens: tuple[int, ...]
    sign: int


@dataclass(frozen=True, slots=True)
class HeldOutSamples:
    """What the loss is taken on: the scores of `prefixes`, added up, over the `tokens` of `documents` that have labels."""

    documents: int
    tokens: int
    prefixes: tuple[Prefix, ...]


class HeldOut:
    """Tells documents that are held out by their content alone, so that copies of one are all in or all out."""

    def __init__(self, training: Training) -> None:
        """Raises UserError if the file of `held_out.path` cannot be read, or has no valid line."""
        self._training = training
        self._section = section = training.held_out
        self._window: Window | None = None
        if section is not None and section.path is not None:
            fields = TextFields() if training.data is None else training.data.fields
            self._window = read_all(TextData(path=section.path, fields=fields))
        window = self._window
        self._known = frozenset() if window is None else frozenset(map(_digest, _documents(window)))

    def has(self, document: Document | Conversation) -> bool:
        """Whether it must not be trained on."""
        if self._section is None:
            return False
        if self._section.share is None:
            return _digest(document) in self._known
        return int.from_bytes(_digest(document)[:8]) < self._section.share * 2.0**64

    def samples(self, data: Window | None, tokenizer: Tokenizer, context: int) -> HeldOutSamples | None:
        """What the loss is taken on, None if nothing is held out. `data`: the training data, those that are read first;
        `context`: the longest sequence, in tokens.

        Raises UserError if nothing of them can be scored.
        """
        if self._section is None:
            return None
        window = self._window or data
        found = [] if window is None else filter(self.has, _documents(window))
        chosen = list(islice(_labelled(found, tokenizer), self._section.documents))
        rows = [(number, row) for number, each in enumerate(chosen) for row in self._rows(each, context)]
        tokens = sum(int((row[1, 1:] != NO_LABEL).sum()) for _, row in rows)
        if not tokens:
            raise UserError(
                "training.held_out: there is nothing to take the loss on. "
                + (
                    "Raise its `share`, or name a file by `path`."
                    if self._window is None
                    else "Give it other documents."
                )
            )
        return HeldOutSamples(len(chosen), tokens, tuple(each for row in rows for each in prefixes(*row)))

    def _rows(self, document: Labelled, context: int) -> list[Labelled]:
        """As training would cut it by itself."""
        length = min(self._training.sequence_length, context)
        ends = range(0, document.shape[1] if self._training.packing == "packed" else 1, length)
        return [row for start in ends if has_labels(row := document[:, start : start + length])]


def prefixes(document: int, row: Labelled) -> Iterator[Prefix]:
    """Scores are of whole prompts: that of a stretch with labels is the one of all up to its end less the one of all before."""
    learnt = np.concatenate([[False], row[1, 1:] != NO_LABEL, [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(learnt)) + 1
    for start, end in edges.reshape(-1, 2).tolist():
        yield Prefix(document, tuple(row[0, :end].tolist()), 1)
        if start > 1:
            yield Prefix(document, tuple(row[0, :start].tolist()), -1)


def _documents(window: Window) -> Iterator[Document | Conversation]:
    return map(window.document, range(len(window)))


def _labelled(documents: Iterable[Document | Conversation], tokenizer: Tokenizer) -> Iterator[Labelled]:
    """Those of which it can be told what is to be learnt; training leaves the others out, too."""
    for document in documents:
        try:
            yield labelled(document, tokenizer)
        except ValueError:
            continue


def _digest(document: Document | Conversation) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(document, order="sorted"), digest_size=16).digest()
