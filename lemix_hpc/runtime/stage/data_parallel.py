"""Training on several nodes that learn from each other: their weights are averaged, or all take each step together.

Nothing waits here: what goes between nodes are messages, and every bit of work is a pass that rests for serving.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from lemix_hpc.engines.protocol import Payload, StageEngine, SumsByItself, Work
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.stage.allreduce import Reduction, Sum
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.stage.passes import Passes
from lemix_hpc.runtime.stage.weight_updates import Average, Step, Update, WeightUpdates
from lemix_hpc.runtime.stage.work_items import Pass
from lemix_hpc.runtime.transport import messages as m


class DataParallel:
    """What a stage has to do with the same stage of other nodes; nothing without `partners`.

    It is told of what the stage's passes and updates have done: `group_done`, `published`.
    """

    def __init__(
        self,
        partners: Partners | None,
        links: StageLinks,
        engine: StageEngine,
        updates: WeightUpdates,
        passes: Passes,
        now: Callable[[], float],
        *,
        steps: int = 0,
    ) -> None:
        """`steps`: how many the node has taken before."""
        self._passes = passes
        self._reduction: Reduction | None = None
        self._mode: Averaging | Together | None = None
        if partners is None:
            return
        self._reduction = Reduction(partners, links, engine, now)
        if partners.mode == "average":
            self._mode = Averaging(partners, links, engine, updates, self._reduction, steps)
        else:
            self._mode = Together(engine, self._reduction, passes.seals.whole, collective=partners.collective)

    def group_done(self, group: int) -> None:
        """Every backward of a group has run on this stage: its gradient is whole, unless it is one of several nodes'."""
        if isinstance(self._mode, Together):
            self._mode.group_done(group)
        else:
            self._passes.seals.whole(group)

    def published(self, update: Update) -> None:
        """An update has come into force on this stage."""
        if self._mode is not None:
            self._mode.published(update)

    def receive(self, message: m.AnyMessage, payload: Payload | None) -> None:
        """A message from other nodes, or about them."""
        match message, self._reduction, self._mode:
            case m.RingPart() as part, Reduction() as reduction, _:
                reduction.feed(part, payload)
            case m.RingLast(), Reduction() as reduction, _:
                reduction.last_came()
            case m.Summed(number), _, Averaging() as averaging:
                averaging.summed_behind(number)
            case m.PrepareAverage() as prepare, _, Averaging() as averaging:
                averaging.prepare(prepare)
            case m.StepTogether() as order, _, Together() as together:
                together.ordered(order)
            case other, *_:
                raise TypeError(f"no message for a stage: {other!r}")

    @property
    def since(self) -> float:
        """Since when there is work [s]; inf without any."""
        return math.inf if self._reduction is None else self._reduction.since

    def take_preparation(self) -> Pass:
        """The work to start now."""
        assert self._reduction is not None, "picked as ready"
        return self._reduction.take()

    def leave(self) -> bool:
        """At the end of the run: whether nothing more can come. Until then the stage must go on taking in messages."""
        if self._reduction is None:
            return True
        return self._reduction.leave()


class Averaging:
    """Averages the weights of all nodes whenever so many steps have been published here.

    A snapshot is taken at such a step unless the average of an earlier one is still under way: that depends on the order of
    updates alone, so it is the same on all stages. Once the first stage knows that all stages have their sums, the average
    becomes an update like a step; what was stepped since the snapshot is kept.
    """

    def __init__(
        self,
        partners: Partners,
        links: StageLinks,
        engine: StageEngine,
        updates: WeightUpdates,
        reduction: Reduction,
        steps: int,
    ) -> None:
        self._every = partners.every
        self._nodes = len(partners.nodes)
        self._links = links
        self._engine = engine
        self._updates = updates
        self._reduction = reduction
        self._steps = steps
        self._under_way = False
        self._sum: Sum | None = None
        self._summed_behind = -1

    def published(self, update: Update) -> None:
        """An update has come into force on this stage."""
        if isinstance(update, Average):
            self._reduction.report(update.sum)
            self._under_way, self._sum = False, None
        elif isinstance(update, Step):
            self._steps += 1
            if self._steps % self._every == 0 and not self._under_way:
                self._under_way = True
                self._reduction.begin(self._engine.read_master, self._summed)

    def summed_behind(self, number: int) -> None:
        """All stages behind this one have the sum of a round."""
        self._summed_behind = number
        self._report()

    def prepare(self, message: m.PrepareAverage) -> None:
        """The first stage has begun the update."""
        self._updates.open(message.version, self._update())

    def _summed(self, ended: Sum) -> Work[None]:
        self._sum = ended
        self._report()
        yield from ()

    def _report(self) -> None:
        place = self._links.place
        if self._sum is None or not (place.last or self._summed_behind == self._sum.round):
            return
        if place.first:
            self._updates.add(self._update())
        else:
            self._links.up(m.Summed(self._sum.round))

    def _update(self) -> Average:
        assert self._sum is not None, "summed on all stages"
        return Average(self._engine, self._sum, self._nodes)


class Together:
    """One step of all nodes: the gradients of the groups that the scheduler names are summed over all nodes.

    From then on the sum is the gradient of one group, the same on every node; `whole` takes its number. `collective`: the
    engines sum by themselves, once a round without values has said that all nodes are there.
    """

    def __init__(
        self, engine: StageEngine, reduction: Reduction, whole: Callable[[int], None], *, collective: bool
    ) -> None:
        self._engine = engine
        self._collective = collective
        self._reduction = reduction
        self._whole = whole
        self._complete: set[int] = set()
        self._order: m.StepTogether | None = None
        self._sums: dict[int, Sum] = {}

    def group_done(self, group: int) -> None:
        """Every backward of a group has run on this stage."""
        self._complete.add(group)
        self._begin()

    def ordered(self, order: m.StepTogether) -> None:
        """Which groups the next step is made of."""
        self._order = order
        self._begin()

    def published(self, update: Update) -> None:
        """An update has come into force on this stage."""
        if isinstance(update, Step):
            self._reduction.report(self._sums.pop(update.group))

    def _begin(self) -> None:
        order = self._order
        if order is None or not self._complete.issuperset(group for group, _ in order.shares):
            return
        self._order = None
        self._complete.difference_update(group for group, _ in order.shares)
        if self._collective:
            self._reduction.meet(partial(self._met, order))
        else:
            self._reduction.begin(partial(self._engine.sum_gradients, order.shares), partial(self._summed, order.group))

    def _met(self, order: m.StepTogether, ended: Sum) -> Work[None]:
        assert isinstance(self._engine, SumsByItself), "only stages of torch are asked to"
        nbytes = yield from self._engine.sum_over_nodes(order.shares, order.group)
        self._reduction.sent_by_itself(nbytes)
        self._sums[order.group] = ended
        self._whole(order.group)

    def _summed(self, group: int, ended: Sum) -> Work[None]:
        self._sums[group] = ended
        yield from self._engine.set_gradient(group, ended.total)
        self._whole(group)
