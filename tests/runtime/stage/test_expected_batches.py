"""A later stage that is told of batches before their activations come, on emulated time."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from lemix_hpc.engines.protocol import MicroBatch, ServeBatch, ServeSequence
from lemix_hpc.runtime.stage.links import StagePlace
from lemix_hpc.runtime.stage.worker import StageRules, StageWorker
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from tests.runtime.stage.test_worker import Mails, SlowStep, World, rules

PREPARES_S = 0.01


class Prepares(SlowStep):
    """Takes 10 ms to prepare a batch, and 40 ms to run one."""

    def __init__(self, world: World) -> None:
        super().__init__(0.0, 0.0, world)
        self._world = world
        self.prepared: list[tuple[str, int, int]] = []
        self.waiting: list[ServeBatch] = []

    def expect(self, batch: ServeBatch) -> Any:  # noqa: ARG002
        start = self._world.time
        yield from self._occupy(PREPARES_S, 1)
        self.prepared.append(("prepares", round(1e3 * start), round(1e3 * self._world.time)))


def batch(number: int, version: int = 0) -> ServeBatch:
    return ServeBatch(number, [ServeSequence(number, 8, 0, True, [])], version=version)


def told(number: int, version: int = 0) -> m.Expect:
    return m.Expect(batch(number, version))


def come(number: int, version: int = 0) -> m.Serve:
    return m.Serve(batch(number, version), version, number)


def forward(number: int) -> m.Forward:
    return m.Forward(MicroBatch(number, number, 0, 1, 1, 8, b"", b""))


def ran(mails: Mails, order: StageRules | None = None) -> list[tuple[str, int, int]]:
    """Kind, start and end [ms] of what the second of two stages does, in order."""
    spans, prepared = worked(mails, order)
    told = [(span.kind, round(1e3 * span.start), round(1e3 * span.end)) for span in spans]
    return sorted([*told, *prepared], key=lambda each: each[1:])


def worked(mails: Mails, order: StageRules | None = None) -> tuple[list[m.WorkSpan], list[tuple[str, int, int]]]:
    """What it reports, and what it has prepared."""
    world = World(deque(mails))
    engine = Prepares(world)
    place = StagePlace(Layout(1, 2), 0, 1)
    StageWorker(place, engine, world, world, world, order or rules()).run()  # type: ignore[arg-type]
    return world.spans, engine.prepared


def test_training_rests_while_a_batch_is_prepared_and_runs_until_its_activations_come() -> None:
    mails: Mails = [(0.0, forward(0)), (0.005, told(0)), (0.035, come(0)), (0.035, m.Stop())]
    assert ran(mails) == [
        ("forward", 0, 10),
        ("prepares", 10, 20),
        ("forward", 20, 40),
        ("serve", 40, 80),
        ("forward", 80, 90),
        ("backward", 90, 170),
    ]
    (served,) = [span for span in worked(mails)[0] if span.kind == "serve"]
    assert served.worked == pytest.approx(PREPARES_S + 0.04), "what a batch costs is with its preparation"


def test_a_batch_is_prepared_when_the_one_before_has_run() -> None:
    mails: Mails = [(0.0, told(0)), (0.0, told(1)), (0.02, come(0)), (0.1, come(1)), (0.1, m.Stop())]
    assert ran(mails) == [("prepares", 0, 10), ("serve", 20, 60), ("prepares", 60, 70), ("serve", 100, 140)]


def test_a_batch_that_is_there_is_not_prepared_first_and_word_of_it_may_come_late() -> None:
    mails: Mails = [(0.0, come(0)), (0.01, told(0)), (0.02, told(1)), (0.03, come(1)), (0.1, m.Stop())]
    assert ran(mails) == [("serve", 0, 40), ("serve", 40, 80)]


def test_the_stage_does_not_end_before_what_it_was_told_of() -> None:
    assert ran([(0.0, told(0)), (0.0, m.Stop()), (0.05, come(0))]) == [("prepares", 0, 10), ("serve", 50, 90)]


@pytest.mark.parametrize(("changed", "order"), [(0.0, ["step", "prepares"]), (0.03, ["prepares", "step"])])
def test_weights_may_change_before_a_preparation_and_after_it(changed: float, order: list[str]) -> None:
    """The batch runs under the version that it was planned for."""
    commit: Mails = [(changed, m.Prepare(1, 7, 1.0)), (changed, m.Commit(1))]
    mails: Mails = [(0.01, told(0, version=1)), (0.05, come(0, version=1)), (0.05, m.Stop())]
    mails = sorted([*mails, *commit], key=lambda mail: mail[0])
    kinds = [kind for kind, _, _ in ran(mails)]
    assert sorted(set(kinds), key=kinds.index) == [*order, "serve"]
    assert [span.version for span in worked(mails)[0] if span.kind == "serve"] == [1]


@pytest.mark.parametrize(
    ("at", "order"),
    [(0.03, ["forward", "prepares", "backward", "serve"]), (0.045, ["forward", "backward", "prepares", "serve"])],
)
def test_without_serving_first_a_preparation_keeps_its_place(at: float, order: list[str]) -> None:
    """The backward can run at 40 ms."""
    mails: Mails = [(0.0, forward(0)), (at, told(0)), (0.2, come(0)), (0.2, m.Stop())]
    assert [kind for kind, _, _ in ran(mails, rules(serving_first=False, yield_training=False))] == order


def test_training_that_is_owed_time_goes_before_a_preparation() -> None:
    mails: Mails = [(0.0, come(0)), (0.01, forward(0)), (0.02, told(1)), (0.3, come(1)), (0.3, m.Stop())]
    assert ran(mails, rules(share=0.5))[:3] == [("serve", 0, 40), ("forward", 40, 80), ("prepares", 80, 90)]


def test_a_preparation_that_fails_ends_the_stage_with_its_words() -> None:
    class Fails(Prepares):
        def expect(self, batch: ServeBatch) -> Any:
            raise ValueError(f"no room for batch {batch.id}")
            yield

    world = World(deque([(0.0, told(0))]))
    worker = StageWorker(StagePlace(Layout(1, 2), 0, 1), Fails(world), world, world, world, rules())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no room for batch 0"):
        worker.run()


def test_the_first_stage_tells_all_behind_of_a_batch_before_it_runs_it() -> None:
    class Ordered(Prepares):
        def orders(self) -> list[ServeBatch]:
            mine, self.waiting = self.waiting, []
            return mine

    @dataclass
    class Heard(World):
        sent: list[tuple[int, str]] = field(default_factory=list)

        def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Any = None) -> None:
            super().send(rank, inbox, message, payload)
            if isinstance(message, m.Expect | m.Serve):
                self.sent.append((rank, type(message).__name__))

    world = Heard(deque([(0.0, m.Stop())]))
    engine = Ordered(world)
    engine.waiting = [batch(0), batch(1)]
    layout = Layout(1, 3)
    StageWorker(StagePlace(layout, 0, 0), engine, world, world, world, rules()).run()  # type: ignore[arg-type]
    second, third = layout.worker(0, 1), layout.worker(0, 2)
    told_of = [(second, "Expect"), (third, "Expect")] * 2
    assert world.sent == [*told_of, (second, "Serve"), (second, "Serve")]
    assert engine.prepared == []
