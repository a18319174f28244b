from collections import defaultdict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.release import Group, Released, TrainingRelease

SHAPE = Shape.of((8,))


def group(number: int, *tasks: int) -> Group:
    return Group(number, tasks, SHAPE)


def on(node: int, *tasks: int) -> list[Released]:
    return [Released(task, node, SHAPE) for task in tasks]


def lowest_free(release: TrainingRelease, nodes: int):
    """Placement on the first node that is not being fed a group."""
    return lambda _: min(set(range(nodes)) - release.busy_nodes)


def test_async_follows_the_first_stages_forward_and_crosses_groups() -> None:
    release = TrainingRelease("async", lanes=1)
    release.offer(group(0, 10, 11))
    release.offer(group(1, 12))
    assert release.start(lowest_free(release, 1)) == on(0, 10)
    assert release.finished(10, 0, backward=False) == on(0, 11)
    assert release.busy_nodes == {0}
    assert release.finished(11, 0, backward=False) == []
    assert release.busy_nodes == set()
    assert release.start(lowest_free(release, 1)) == on(0, 12)


def test_async_waits_for_nothing_else() -> None:
    release = TrainingRelease("async", lanes=1)
    release.offer(group(0, 10, 11))
    release.start(lowest_free(release, 1))
    assert release.finished(10, 1, backward=False) == []
    assert release.finished(10, 0, backward=True) == []
    assert release.finished(99, 0, backward=False) == []  # a request
    assert release.finished(10, 0, backward=False) == on(0, 11)


def test_sync_releases_a_group_at_once_and_the_next_behind_its_last_backward() -> None:
    release = TrainingRelease("sync", lanes=1)
    release.offer(group(0, 10, 11, 12))
    release.offer(group(1, 13))
    assert release.start(lowest_free(release, 2)) == on(0, 10, 11, 12)
    for task in (10, 11, 12):
        assert release.finished(task, 0, backward=False) == []
    for task in (10, 11):
        assert release.finished(task, 0, backward=True) == []
    assert release.finished(12, 1, backward=True) == []
    assert release.start(lowest_free(release, 2)) == []
    assert release.finished(12, 0, backward=True) == []
    assert release.start(lowest_free(release, 2)) == on(0, 13)


def test_lanes_limit_how_many_nodes_are_fed() -> None:
    release = TrainingRelease("async", lanes=2)
    for number in range(3):
        release.offer(group(number, 10 * number, 10 * number + 1))
    assert release.start(lowest_free(release, 4)) == on(0, 0) + on(1, 10)
    assert release.start(lowest_free(release, 4)) == []
    assert release.finished(10, 0, backward=False) == on(1, 11)
    assert release.finished(11, 0, backward=False) == []
    assert release.start(lowest_free(release, 4)) == on(1, 20)


def test_closing_drops_what_was_not_begun_and_lets_the_rest_end() -> None:
    release = TrainingRelease("async", lanes=1)
    release.offer(group(0, 10, 11))
    release.offer(group(1, 12))
    release.start(lowest_free(release, 1))
    release.close()
    assert release.finished(10, 0, backward=False) == on(0, 11)
    assert release.finished(11, 0, backward=False) == []
    assert release.start(lowest_free(release, 1)) == []


class Releases(RuleBasedStateMachine):
    """Groups of any size offered at any time, to nodes whose first stages run what they are given in order."""

    @initialize(rule_=st.sampled_from(["async", "sync"]), nodes=st.integers(1, 4), data=st.data())
    def build(self, rule_: str, nodes: int, data: st.DataObject) -> None:
        self.rule, self.nodes = rule_, nodes
        self.lanes = data.draw(st.integers(1, nodes))
        self.release = TrainingRelease(rule_, self.lanes)
        self.offered: list[Group] = []
        self.dropped: set[int] = set()
        self.begun: dict[int, int] = {}
        self.released: dict[int, list[int]] = defaultdict(list)
        self.group_of: dict[int, int] = {}
        self.waiting: dict[int, list[tuple[int, bool]]] = defaultdict(list)

    @rule(size=st.integers(1, 5))
    def offer(self, size: int) -> None:
        number = len(self.offered)
        first = len(self.group_of)
        new = group(number, *range(first, first + size))
        self.offered.append(new)
        self.group_of.update(dict.fromkeys(new.tasks, number))
        self.release.offer(new)

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        def place(chosen: Group) -> int:
            free = sorted(set(range(self.nodes)) - self.release.busy_nodes)
            assert chosen.id not in self.begun
            self.begun[chosen.id] = data.draw(st.sampled_from(free))
            return self.begun[chosen.id]

        self.take(self.release.start(place))

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(n for n, tasks in self.waiting.items() if tasks)))
        task, backward = self.waiting[node].pop(0)
        if not backward:
            self.waiting[node].append((task, True))
        self.take(self.release.finished(task, 0, backward=backward))

    @rule()
    def close(self) -> None:
        self.release.close()
        self.dropped |= {g.id for g in self.offered if g.id not in self.begun}

    def take(self, released: list[Released]) -> None:
        for micro_batch in released:
            assert micro_batch.shape == SHAPE
            assert self.begun[self.group_of[micro_batch.task]] == micro_batch.node
            self.released[micro_batch.node].append(micro_batch.task)
            self.waiting[micro_batch.node].append((micro_batch.task, False))

    @invariant()
    def each_node_gets_whole_groups_one_after_the_other_in_order(self) -> None:
        for tasks in self.released.values():
            order = list(dict.fromkeys(self.group_of[task] for task in tasks))
            whole = [task for number in order for task in self.offered[number].tasks]
            assert tasks == whole[: len(tasks)]

    @invariant()
    def no_more_groups_are_open_than_there_are_lanes(self) -> None:
        assert len(self.release.busy_nodes) <= self.lanes

    @invariant()
    def what_was_dropped_never_begins(self) -> None:
        assert not self.dropped & self.begun.keys()

    def teardown(self) -> None:
        """Let everything run: what was begun is released to the last micro-batch, and so is what was offered and kept."""
        if not hasattr(self, "release"):
            return
        self.take(self.release.start(self.first_free))
        while running := [node for node, tasks in self.waiting.items() if tasks]:
            task, backward = self.waiting[running[0]].pop(0)
            if not backward:
                self.waiting[running[0]].append((task, True))
            self.take(self.release.finished(task, 0, backward=backward))
            self.take(self.release.start(self.first_free))
        kept = [task for g in self.offered if g.id not in self.dropped for task in g.tasks]
        assert sorted(task for tasks in self.released.values() for task in tasks) == kept

    def first_free(self, chosen: Group) -> int:
        self.begun[chosen.id] = lowest_free(self.release, self.nodes)(chosen)
        return self.begun[chosen.id]


TestReleases = Releases.TestCase
