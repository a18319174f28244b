"""What the journal's records of training come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.journal import GroupCut, Stepped
from lemix_hpc.records.schema import TrainedTask


class Behind(msgspec.Struct, frozen=True):
    """Groups that are in the weights for good, so that nobody will train on them again: the first ones of a run.

    `groups`, `micro_batches`: how many; `steps` that made `versions` of each node's weights, `skipped` of which changed
    nothing. `posted`: for each micro-batch from clients' samples, how many samples had come when it was cut; `text`: the last
    group with others. `lost_losses`: how many losses were not finite.
    """

    groups: int = 0
    micro_batches: int = 0
    steps: int = 0
    skipped: int = 0
    versions: dict[int, int] = {}
    posted: tuple[int, ...] = ()
    text: GroupCut | None = None
    lost_losses: int = 0


class Told(NamedTuple):
    """A micro-batch whose line is in `tasks.jsonl`: the step that it is in, and whether its loss was not finite."""

    node: int
    step: int
    lost: bool


class TrainingFold(msgspec.Struct):
    """Groups by number, but for those that are `behind`: how they were cut, where they were placed last, and the steps that
    they are in; what was `told` of their micro-batches, by id."""

    cuts: dict[int, GroupCut] = {}
    places: dict[int, int] = {}
    steps: list[Stepped] = []
    told: dict[str, Told] = {}
    behind: Behind = Behind()

    @property
    def versions(self) -> dict[int, int]:
        """The newest of each node's weights."""
        newest = dict(self.behind.versions)
        for step in self.steps:
            for node in step.nodes or (step.node,):
                newest[node] = max(step.version, newest.get(node, 0))
        return newest

    @property
    def trained(self) -> int:
        """How many micro-batches are in a step that counts."""
        return self.behind.micro_batches + len(self.told)

    @property
    def lost_losses(self) -> int:
        return self.behind.lost_losses + sum(told.lost for told in self.told.values())

    def tell(self, task: TrainedTask) -> None:
        """A micro-batch has its line."""
        if task.node is not None and task.step is not None:
            lost = task.loss is not None and not math.isfinite(task.loss)
            self.told[task.id] = Told(task.node, task.step, lost)

    def untold(self) -> Iterator[TrainedTask]:
        """Micro-batches that are in a step that counts, of which no more was written down before the end."""
        for step in self.steps:
            for cut in (self.cuts[group] for group in step.groups if group in self.cuts):
                for id, tokens in zip(cut.ids, cut.tokens, strict=True):
                    if id not in self.told:
                        yield TrainedTask(
                            id, "finished", step.time, tokens, step.node, finished=step.time, step=step.version
                        )

    def cut_back(self, versions: Mapping[int, int]) -> None:
        """Training behind these versions is done again; all of it if they are older than what is known of its groups.

        Raises UserError if there are such old weights.
        """
        if any(version > versions.get(node, 0) for node, version in self.behind.versions.items()):
            if any(versions.values()):
                raise UserError(
                    f"the weights are of the versions {dict(versions)}, and the run no longer knows on what it has trained "
                    f"before the versions {self.behind.versions}. Take a newer checkpoint; without any, training starts over."
                )
            self.cuts, self.places, self.behind = {}, {}, Behind()
        self.steps = [step for step in self.steps if counts(step.node, step.version, versions)]
        self.told = {id: told for id, told in self.told.items() if counts(told.node, told.step, versions)}

    def forget(self, saved: Mapping[int, int]) -> None:
        """Training never goes back behind these versions of the weights: of the first groups that are in them sums will do."""
        done = {group for step in self.steps if counts(step.node, step.version, saved) for group in step.groups}
        over = list[GroupCut]()
        for number in sorted(self.cuts):
            cut = self.cuts[number]
            if number not in done or any(id not in self.told for id in cut.ids):
                break
            over.append(cut)
        lost = 0
        for cut in over:
            del self.cuts[cut.group]
            self.places.pop(cut.group, None)
            lost += sum(self.told.pop(id).lost for id in cut.ids)
        gone, left = list[Stepped](), list[Stepped]()
        for step in self.steps:
            over_too = counts(step.node, step.version, saved) and not any(group in self.cuts for group in step.groups)
            (gone if over_too else left).append(step)
        self.steps = left
        self.behind = _further(self.behind, over, gone, lost)


def counts(node: int | None, step: int | None, versions: Mapping[int, int]) -> bool:
    """Whether a node's step is in its weights of these versions."""
    return node is not None and step is not None and step <= versions.get(node, 0)


def _further(behind: Behind, cuts: Iterable[GroupCut], steps: Iterable[Stepped], lost: int) -> Behind:
    """With these groups and steps, too."""
    cuts, steps = list(cuts), list(steps)
    versions = dict(behind.versions)
    for step in steps:
        for node in step.nodes or (step.node,):
            versions[node] = max(step.version, versions.get(node, 0))
    with_text = [cut for cut in cuts if len(cut.posted) < len(cut.ids)]
    return Behind(
        groups=cuts[-1].group + 1 if cuts else behind.groups,
        micro_batches=behind.micro_batches + sum(len(cut.ids) for cut in cuts),
        steps=behind.steps + len(steps),
        skipped=behind.skipped + sum(step.skipped for step in steps),
        versions=versions,
        posted=(*behind.posted, *(count for cut in cuts for count in cut.posted)),
        text=with_text[-1] if with_text else behind.text,
        lost_losses=behind.lost_losses + lost,
    )
