"""Training micro-batches in groups of one optimizer step, numbered and ready to be sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.records.journal import GroupCut
from lemix_hpc.records.training_fold import Behind
from lemix_hpc.workload.load import Workload
from lemix_hpc.workload.samples import Sample, SampleQueue
from lemix_hpc.workload.tasks import TrainingBatch
from lemix_hpc.workload.training import index_of


class Text(Protocol):
    """Micro-batches of the training text, from any of them on."""

    def __next__(self) -> TrainingBatch: ...

    def go_to(self, index: int, window: tuple[int, int]) -> None: ...


class TextStart(NamedTuple):
    """A micro-batch of the text, and a position that is not later, as in `TrainingBatch.window`."""

    micro_batch: int
    position: tuple[int, int]


BEGINNING = TextStart(0, (0, 0))
NOWHERE = Behind()


class TextLeft(NamedTuple):
    """What is left of the text: from `start` on, some of it perhaps done; nothing from micro-batch `end` on was ever cut."""

    start: TextStart
    end: int


def text_left(cuts: Sequence[GroupCut], done: Iterable[int], behind: Behind = NOWHERE) -> TextLeft | None:
    """Behind these groups, of which those `done` are in the weights, and those `behind` them; None if no text was cut."""
    over = frozenset(done)
    if behind.text is not None:
        cuts, over = [behind.text, *cuts], over | {behind.text.group}
    text = [(index, cut) for cut in cuts for index in map(index_of, cut.ids) if index is not None]
    if not text:
        return None
    end, last = text[-1][0] + 1, text[-1][1]
    first, cut = min(((index, cut) for index, cut in text if cut.group not in over), default=(end, last), key=_index)
    return TextLeft(TextStart(first, cut.position), end)


def _index(one: tuple[int, GroupCut]) -> int:
    return one[0]


@dataclass(frozen=True, slots=True)
class FedGroup:
    """One group: its number, and of each micro-batch its content and where that comes from. `again`: cut by an earlier
    attempt."""

    number: int
    micro_batches: tuple[MicroBatch, ...]
    sources: tuple[TrainingBatch, ...]
    again: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Of its micro-batches."""
        return tuple(batch.id for batch in self.sources)

    @property
    def cut(self) -> GroupCut:
        """What to write down, so that the group can be cut again."""
        text = (batch.window for batch in self.sources if not batch.came)
        posted = tuple(batch.came for batch in self.sources if batch.came)
        tokens = tuple(batch.rows * batch.length for batch in self.sources)
        return GroupCut(self.number, self.ids, tokens, next(text, (0, 0)), posted)


class TrainingFeed:
    """Cuts a stream of micro-batches into groups. `total` None: there is no end but the end of serving.

    What clients send goes first. Without a `text` there is nothing else, and a group may be smaller.
    """

    def __init__(
        self,
        text: Text | None,
        *,
        per_group: int,
        total: int | None,
        number: Callable[[], int],
        samples: SampleQueue | None = None,
    ) -> None:
        self._text = text
        self._samples = samples
        self._per_group = per_group
        self._total = total
        self._number = number
        self._taken = 0
        self._groups = 0
        self._again: deque[tuple[int, list[TrainingBatch]]] = deque()

    def go_on(
        self,
        cuts: Sequence[GroupCut],
        done: Iterable[int],
        posted: Sequence[Sample] = (),
        start: TextStart = BEGINNING,
        behind: Behind = NOWHERE,
    ) -> None:
        """Go on behind the groups of earlier attempts, in order; those that are not `done` come again first. Others, `behind`
        them, are done.

        `posted`: all samples that clients have sent so far; `start`: where the run's text began. Before the first group.
        """
        over = frozenset(done)
        left = [cut for cut in cuts if cut.group not in over]
        counts = [*behind.posted, *(count for cut in cuts for count in cut.posted)]
        batches = {} if self._samples is None else {b.id: b for b in self._samples.again(posted, counts)}
        text = text_left(cuts, over, behind) or TextLeft(start, start.micro_batch)
        if self._text is not None and text.start != BEGINNING:
            self._text.go_to(*text.start)
        if self._text is not None:
            batches |= {
                batch.id: batch for batch in (next(self._text) for _ in range(text.start.micro_batch, text.end))
            }
        self._again.extend((cut.group, [batches[name] for name in cut.ids]) for cut in left)
        self._groups = cuts[-1].group + 1 if cuts else behind.groups
        self._taken = behind.micro_batches + sum(len(cut.ids) for cut in cuts)

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def lasts_with_serving(self) -> bool:
        """Whether it ends when no more requests come: there is no amount, or clients would have to bring it."""
        return self._total is None or self._text is None

    @property
    def exhausted(self) -> bool:
        return self._total is not None and self._taken >= self._total and not self._again

    @property
    def samples_waiting(self) -> int:
        """Samples of clients that have not been handed out."""
        return self._samples.pending if self._samples is not None else 0

    def close(self) -> None:
        """Nothing more will be trained on."""
        if self._samples is not None:
            self._samples.closed = True

    def next_group(self) -> FedGroup | None:
        """The next group, None while there is nothing to train on; the last one of a limited amount may be smaller."""
        if self._again:
            return self._group(*self._again.popleft(), again=True)
        left = self._per_group if self._total is None else min(self._per_group, self._total - self._taken)
        batches = list(islice(iter(self._next, None), left))
        if not batches:
            return None
        self._taken += len(batches)
        self._groups += 1
        return self._group(self._groups - 1, batches)

    def _group(self, group: int, batches: list[TrainingBatch], *, again: bool = False) -> FedGroup:
        size = len(batches)
        micro_batches = tuple(
            MicroBatch(self._number(), group, index, size, batch.rows, batch.length, batch.tokens, batch.labels)
            for index, batch in enumerate(batches)
        )
        return FedGroup(group, micro_batches, tuple(batches), again)

    def _next(self) -> TrainingBatch | None:
        batch = self._samples.next() if self._samples is not None else None
        return next(self._text) if batch is None and self._text is not None else batch


def amount(requests: int, share: float | None, micro_batches: int | None) -> int | None:
    """How many micro-batches a run trains on: given, or so that they are `share` of all tasks, or without end (None)."""
    return micro_batches if share is None else round(requests * share / (1.0 - share))


def feed_of(
    recipe: Recipe, work: Workload, number: Callable[[], int], samples: SampleQueue | None = None
) -> TrainingFeed | None:
    """What a recipe trains on, None if nothing. `samples`: where those of clients come from."""
    training = recipe.training
    if training is None:
        return None
    total = amount(len(work.requests), training.share, training.micro_batches)
    per_group = training.micro_batches_per_step
    return TrainingFeed(work.batches, per_group=per_group, total=total, number=number, samples=samples)
