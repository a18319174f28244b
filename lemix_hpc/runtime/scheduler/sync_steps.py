"""Training on several nodes as the scheduler sees it: which groups make a step of all nodes, and what sums over nodes took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lemix_hpc.records.schema import SumsOverNodes
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.transport import messages as m


class StepsTogether:
    """Groups of training make a step as they were offered, as many as there are nodes, wherever the policy places them.

    Those of the next step are offered when all nodes have taken the last: every gradient belongs to the weights that it is
    stepped with. A step is of fewer groups when there are no more.
    """

    def __init__(self, nodes: Sequence[int]) -> None:
        self.nodes = tuple(nodes)
        self._offered: set[int] = set()
        self._placed: dict[int, tuple[int, int]] = {}
        self._number: int | None = None
        self._stepped: set[int] = set()

    @property
    def takes_more(self) -> bool:
        """Whether another group may be offered for the step that is being made up."""
        return self._number is None and len(self._offered) + len(self._placed) < len(self.nodes)

    def offered(self, group: int) -> None:
        """A group waits for the policy."""
        self._offered.add(group)

    def placed(self, group: int, node: int, size: int) -> None:
        """A group of `size` micro-batches has gone to a node."""
        self._offered.discard(group)
        self._placed[group] = (node, size)

    def dropped(self, group: int) -> None:
        """A group will not be trained on."""
        self._offered.discard(group)

    def next_orders(self, *, no_more: bool) -> dict[int, m.StepTogether]:
        """What to tell the stages of each node, once it is settled which groups make the step."""
        full = len(self._placed) == len(self.nodes) or no_more
        if self._number is not None or self._offered or not self._placed or not full:
            return {}
        self._number = min(self._placed)
        total = sum(size for _, size in self._placed.values())
        return {node: m.StepTogether(self._number, self._shares(node, total)) for node in self.nodes}

    def stepped(self, node: int, number: int) -> dict[int, int]:
        """A node has taken the step. Once all have: the node of each group that is in it."""
        if number != self._number:
            raise ValueError(f"node {node} has taken step {number}, and {self._number} is to be taken")
        self._stepped.add(node)
        if len(self._stepped) < len(self.nodes):
            return {}
        members = {group: place for group, (place, _) in self._placed.items()}
        self._placed, self._number, self._stepped = {}, None, set()
        return members

    def _shares(self, node: int, total: int) -> list[tuple[int, float]]:
        """Every micro-batch of the step counts the same, as in one group of all of them."""
        return [(group, size / total) for group, (place, size) in sorted(self._placed.items()) if place == node]


class Rounds:
    """The sums over nodes that have come into force on all stages of all nodes that take part."""

    def __init__(self, partners: Partners, stages: int) -> None:
        self._mode = partners.mode
        self._reports = len(partners.nodes) * stages
        self._open: dict[int, list[m.RingDone]] = defaultdict(list)
        self._count = 0
        self._seconds = 0.0
        self._longest: float | None = None
        self._nbytes = 0

    def add(self, done: m.RingDone) -> None:
        """A stage's report."""
        self._open[done.round].append(done)
        self._nbytes += done.nbytes
        if len(self._open[done.round]) == self._reports:
            reports = self._open.pop(done.round)
            seconds = max(each.end for each in reports) - min(each.start for each in reports)
            self._count += 1
            self._seconds += seconds
            self._longest = seconds if self._longest is None else max(self._longest, seconds)

    def facts(self) -> SumsOverNodes:
        """What there is to tell of them at the end."""
        mean = self._seconds / self._count if self._count else None
        return SumsOverNodes(self._mode, self._count, mean, self._longest, self._nbytes)
