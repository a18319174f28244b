"""Training groups from their offer to the records of their micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.policy.events import GroupOffered, Place, TrainingClosed
from lemix_hpc.policy.execution_rules import CLOSE, END, OFFER, supply_training
from lemix_hpc.records.journal import GroupPlaced, Stepped
from lemix_hpc.records.writer import Recorder
from lemix_hpc.run_setup.training_feed import FedGroup, TrainingFeed
from lemix_hpc.runtime.scheduler.sync_steps import StepsTogether
from lemix_hpc.runtime.scheduler.task_table import TaskNames, TrainingTask
from lemix_hpc.runtime.transport import messages as m

NO_PLACES: Mapping[int, int] = MappingProxyType({})


class TrainingTasks:
    """`feed` None: nothing is trained. `steps` and `trained` micro-batches are done, those of earlier attempts included.

    `broken`: a gradient was not finite, so that no group is begun any more. `places`: the nodes of groups of earlier attempts.
    Where nodes take their steps together, groups that come again go there again: the order in which gradients are summed
    depends on it.
    """

    def __init__(
        self,
        feed: TrainingFeed | None,
        names: TaskNames,
        recorder: Recorder,
        together: StepsTogether | None = None,
        *,
        steps: int = 0,
        skipped: int = 0,
        trained: int = 0,
        places: Mapping[int, int] = NO_PLACES,
        broken: bool = False,
    ) -> None:
        self._places = places if together is not None else NO_PLACES
        self._feed = feed
        self._together = together
        self._names = names
        self._recorder = recorder
        self._tasks: dict[int, TrainingTask] = {}
        self._offered: dict[int, FedGroup] = {}
        self._begun: dict[int, FedGroup] = {}
        self._steps: dict[tuple[int, int], int] = {}
        self._closed = feed is None
        self._ends = False
        self.steps = steps
        self.skipped = skipped
        self.trained = trained
        self.tokens = 0
        """Of the micro-batches that this attempt has trained."""
        self.broken = broken

    @property
    def total(self) -> int | None:
        """Micro-batches in all, None without an end."""
        return self._feed.total if self._feed is not None else 0

    @property
    def held(self) -> int:
        """Micro-batches that were offered to the policy, and that it has not let go to a node yet."""
        return sum(task.place is None for task in self._tasks.values())

    @property
    def samples_waiting(self) -> int:
        """Samples of clients that are in no group yet."""
        return self._feed.samples_waiting if self._feed is not None else 0

    @property
    def finished(self) -> bool:
        """No more groups will be offered, and none is under way."""
        return self._closed and not self._begun

    def supply(self, now: float, *, ahead: int, served: bool) -> GroupOffered | TrainingClosed | None:
        """What to tell the policy, if anything: see `execution_rules.supply_training`. Training on what clients send ends
        with serving, too; nodes that step together take the groups of one step at a time."""
        feed = self._feed
        if feed is None or self._closed:
            return None
        over = self._ends or self.broken or (feed.lasts_with_serving and served)
        asked = supply_training(over, feed.exhausted, len(self._offered), ahead)
        if asked == OFFER:
            return self._offer(feed, now) if self._together is None or self._together.takes_more else None
        if asked in (CLOSE, END):
            self._close_feed(feed)
        return TrainingClosed(now) if asked == CLOSE else None

    def _close_feed(self, feed: TrainingFeed) -> None:
        self._closed = True
        feed.close()
        if self._together is not None:
            for group in self._offered:
                self._together.dropped(group)

    def _offer(self, feed: TrainingFeed, now: float) -> GroupOffered | None:
        """The next group, None while there is nothing to train on."""
        group = feed.next_group()
        if group is None:
            return None
        if not group.again:
            self._recorder.promise(group.cut)
        self._offered[group.number] = group
        if self._together is not None:
            self._together.offered(group.number)
        for source, micro_batch in zip(group.sources, group.micro_batches, strict=True):
            self._tasks[micro_batch.id] = TrainingTask(source.id, micro_batch, source.samples)
            self._names[micro_batch.id] = source.id
        tasks = tuple(micro_batch.id for micro_batch in group.micro_batches)
        lengths = tuple(micro_batch.length for micro_batch in group.micro_batches)
        node = self._places.get(group.number) if group.again else None
        return GroupOffered(now, group.number, tasks, group.micro_batches[0].rows, lengths, node)

    def place(self, place: Place, now: float) -> MicroBatch:
        """The policy lets a micro-batch go to a node."""
        task = self._tasks[place.task]
        task.place, task.placed = place, now
        group = task.micro_batch.group
        if group in self._offered:
            self._begun[group] = self._offered.pop(group)
            self._recorder.promise(GroupPlaced(group, place.node))
            if self._together is not None:
                self._together.placed(group, place.node, task.micro_batch.group_size)
        return task.micro_batch

    def refuse(self, number: int) -> None:
        """The allocation ends too soon for a micro-batch. A group is refused as a whole, before it has begun."""
        self._ends = True
        group = self._end(number).micro_batch.group
        self._offered.pop(group, None)
        if self._together is not None:
            self._together.dropped(group)

    def end(self) -> None:
        """Begin no group any more."""
        self._ends = True

    def orders(self) -> dict[int, m.StepTogether]:
        """What to tell the stages of nodes that take their steps together."""
        if self._together is None or self._feed is None:
            return {}
        return self._together.next_orders(no_more=self._closed or self._feed.exhausted)

    def learned(self, number: int, loss: float) -> None:
        """A micro-batch's loss has come."""
        self._tasks[number].loss = loss
        self._close(self._tasks[number].micro_batch.group)

    def stepped(self, node: int, group: int, version: int, now: float, *, skipped: bool = False) -> None:
        """A node has committed a group's optimizer step, or that of all nodes which goes by the group's number; `skipped`: one
        that changes no weight."""
        members = {group: node} if self._together is None else self._together.stepped(node, group)
        if not members:
            return
        self.steps += 1
        self.skipped += skipped
        nodes = () if self._together is None else self._together.nodes
        self._recorder.promise(Stepped(node, tuple(sorted(members)), version, now, nodes, skipped))
        for member, place in members.items():
            self._steps[place, member] = version
            self._close(member)

    def ended(self, number: int, end: float) -> None:
        """A micro-batch's last backward has ended."""
        task = self._tasks[number]
        task.finished_at = end
        self._close(task.micro_batch.group)

    def _close(self, group: int) -> None:
        """Write a group's micro-batches down if its step is committed and all losses and ends are known."""
        fed = self._begun.get(group)
        if fed is None:
            return
        members = [self._tasks[micro_batch.id] for micro_batch in fed.micro_batches]
        node = members[0].place.node if members[0].place else -1
        if (node, group) not in self._steps or any(t.loss is None or t.finished_at is None for t in members):
            return
        step = self._steps.pop((node, group))
        for member in members:
            self._recorder.micro_batch(member.record(step))
            self._end(member.micro_batch.id)
        self.trained += len(members)
        self.tokens += sum(member.micro_batch.rows * member.micro_batch.length for member in members)
        del self._begun[group]

    def _end(self, number: int) -> TrainingTask:
        """Nothing more will happen to a micro-batch; late reports may still name it."""
        self._names.retire(number)
        return self._tasks.pop(number)
