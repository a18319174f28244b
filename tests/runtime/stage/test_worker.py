"""One stage alone, on emulated time: in which order it runs what arrives. Whole runs over MPI are in test_run.py."""

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.protocol import GroupGradient, MicroBatch, ServeBatch, ServeSequence, Transfer
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.runtime.stage.links import StagePlace
from lemix_hpc.runtime.stage.worker import StageRules, StageWorker
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import Layout

# A request and a training forward take 40 ms, a backward 80 ms, in four pieces.
LATENCY = LatencyModel((Affine(0.04, 0, 0),) * 2, (Affine(0.08, 0, 0),) * 2)
PIECES = 4

Mails = list[tuple[float, m.AnyMessage]]


@dataclass
class World:
    """The stage's mailbox, clock and waiter: mail arrives at its time, and time passes while the stage works or waits."""

    arriving: deque[tuple[float, m.AnyMessage]]
    time: float = 0.0
    spans: list[m.WorkSpan] = field(default_factory=list)
    told: list[m.FirstStageIdle] = field(default_factory=list)
    prepared: list[tuple[float, int]] = field(default_factory=list)
    sent_all: bool = True
    in_transit: bool = False

    def poll(self) -> list[Mail]:
        mails = []
        while self.arriving and self.arriving[0][0] <= self.time + 1e-9:
            mails.append(Mail(0, self.arriving.popleft()[1], None))
        return mails

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Any = None) -> None:  # noqa: ARG002
        if isinstance(message, m.SpanReport):
            self.spans += message.spans
        elif isinstance(message, m.FirstStageIdle):
            self.told.append(message)
        elif isinstance(message, m.Prepared):
            self.prepared.append((self.time, message.version))

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def wake(self) -> None:
        """Nobody sleeps here."""

    def reset(self) -> None:
        """Nothing waits for longer and longer here."""

    def idle(self, at_most: float, *, in_transit: bool) -> None:  # noqa: ARG002
        assert self.arriving, "the stage waits, and nothing will ever come"
        self.time = self.arriving[0][0]


class SlowStep(EmulatedStage):
    """Takes time for the optimizer: some to seal a gradient and to prepare a step, in four pieces each, and some to publish."""

    def __init__(self, prepare: float, publish: float, world: World, *, seal: float = 0.0) -> None:
        super().__init__(LATENCY, 0, PIECES, clock=world.now, sleep=world.sleep)
        self._seal_s = seal
        self._prepare_s = prepare
        self._publish_s = publish

    def seal(self, group: int, tied: Any) -> Any:
        return self._sealing() if self._seal_s else super().seal(group, tied)

    def _sealing(self) -> Any:
        yield from self._occupy(self._seal_s, PIECES)
        return GroupGradient(1.0)

    def prepare(self, group: int, grad_norm: float, tied: Any) -> Any:
        return self._occupy(self._prepare_s, PIECES) if self._prepare_s else super().prepare(group, grad_norm, tied)

    def publish(self, group: int) -> Any:  # noqa: ARG002
        yield from self._occupy(self._publish_s, 1)


class HoldsGraphs(SlowStep):
    """The last stage without a flush between steps: a micro-batch needs the weights from its forward to its backward."""

    def __init__(self, world: World) -> None:
        super().__init__(0.0, 0.0, world)
        self._world = world
        self._held: set[int] = set()
        self.most = 0

    def forward(self, micro_batch: MicroBatch, hidden: Any) -> Any:
        self._held.add(micro_batch.id)
        self.most = max(self.most, len(self._held))
        return (yield from super().forward(micro_batch, hidden))

    def backward(self, micro_batch: int, grad: Any) -> Any:
        result = yield from super().backward(micro_batch, grad)
        self._held.discard(micro_batch)
        return result

    def offload(self, micro_batch: int) -> Transfer:  # noqa: ARG002
        """Takes 100 ms, as does the way back."""
        until = self._world.time + 0.1
        return Transfer(lambda: max(0.0, until - self._world.time))

    def publish(self, group: int) -> Any:
        assert not self._held, "weights change under a micro-batch"
        return super().publish(group)

    @property
    def holds_graph(self) -> bool:
        return bool(self._held)


def request(number: int) -> m.Serve:
    return m.Serve(ServeBatch(number, [ServeSequence(number, 8, 0, False, [])]), -1, 0.0)


def micro_batch(number: int) -> m.Train:
    return m.Train(MicroBatch(number, number, 0, 1, 1, 8, b"", b""))


def rules(
    *, sync: bool = False, serving_first: bool = True, yield_training: bool = True, share: float = 0.0
) -> StageRules:
    return StageRules(sync, False, serving_first, yield_training, share)


FIFO = rules(serving_first=False, yield_training=False)


def ran(
    order: StageRules,
    mails: Mails,
    *,
    seal: float = 0.0,
    prepare: float = 0.0,
    publish: float = 0.0,
    stages: int = 1,
) -> list[m.WorkSpan]:
    """What the first of some stages runs until everything is done."""
    world = World(deque([*mails, (mails[-1][0], m.Stop())]))
    place = StagePlace(Layout(1, stages), 0, 0)
    engine = SlowStep(prepare, publish, world, seal=seal)
    StageWorker(place, engine, world, world, world, order).run()  # type: ignore[arg-type]
    return world.spans


def milliseconds(spans: list[m.WorkSpan], *, steps: bool = False) -> list[tuple[str, int, int]]:
    """Kind, start and end in order of the start; optimizer steps, which mostly take no time, only where `steps` asks."""
    told = [(s.kind, round(1e3 * s.start), round(1e3 * s.end)) for s in spans if steps or s.kind != "step"]
    return sorted(told, key=lambda span: span[1])


TWO_REQUESTS: Mails = [(0.0, micro_batch(0)), (0.015, request(1)), (0.03, request(2))]


def test_training_rests_for_all_serving_that_comes_and_goes_on_afterwards() -> None:
    assert milliseconds(ran(rules(), TWO_REQUESTS)) == [
        ("forward", 0, 20),
        ("serve", 20, 60),
        ("serve", 60, 100),
        ("forward", 100, 120),
        ("backward", 120, 200),
    ]


def test_training_that_does_not_yield_keeps_serving_waiting_for_a_whole_pass() -> None:
    assert milliseconds(ran(rules(yield_training=False), TWO_REQUESTS)) == [
        ("forward", 0, 40),
        ("serve", 40, 80),
        ("serve", 80, 120),
        ("backward", 120, 200),
    ]


def test_without_serving_first_work_runs_in_the_order_in_which_it_became_ready() -> None:
    mails: Mails = [(0.0, request(1)), (0.01, micro_batch(0)), (0.03, request(2)), (0.1, request(3))]
    assert milliseconds(ran(rules(serving_first=False, yield_training=False), mails)) == [
        ("serve", 0, 40),
        ("forward", 40, 80),
        ("serve", 80, 120),
        ("backward", 120, 200),
        ("serve", 200, 240),
    ]
    first = milliseconds(ran(rules(serving_first=True, yield_training=False), mails))
    assert [kind for kind, _, _ in first] == ["serve", "serve", "forward", "serve", "backward"]


def test_training_that_is_owed_time_does_not_rest_until_it_has_it() -> None:
    """A request gives training a claim of 20 ms: three pieces of 10 ms are more than half of 70 ms."""
    mails: Mails = [(0.0, request(1)), (0.0, request(2)), (0.0, micro_batch(0))]
    assert milliseconds(ran(rules(share=0.4), mails)) == [
        ("serve", 0, 40),
        ("forward", 40, 70),
        ("serve", 70, 110),
        ("forward", 110, 120),
        ("backward", 120, 200),
    ]


def test_the_share_of_training_can_change_while_a_stage_works() -> None:
    mails: Mails = [(0.0, m.ShareTime(0.4)), (0.0, request(1)), (0.0, request(2)), (0.0, micro_batch(0))]
    assert milliseconds(ran(rules(), mails)) == milliseconds(ran(rules(share=0.4), mails[1:]))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("serving_first", [False, True])
def test_under_overload_training_gets_its_minimum_share_and_no_more(share: float, serving_first: bool) -> None:
    """Requests come twice as fast as they can be served; serving first, training gets its claim to within a piece."""
    requests: Mails = [(0.02 * n, request(1000 + n)) for n in range(400)]
    training: Mails = [(0.0, micro_batch(n)) for n in range(200)]
    spans = ran(rules(share=share, serving_first=serving_first), sorted(requests + training, key=lambda mail: mail[0]))
    until = requests[-1][0]
    trained = sum(span.end - span.start for span in spans if span.kind != "serve" and span.end <= until)
    assert trained >= share * until - 0.1
    if serving_first:
        assert trained <= share * until + 0.1


def test_weight_commits_count_as_training() -> None:
    """One request of 40 ms gives training a claim of 16 ms; a forward, a backward and a long step repay it many times."""
    mails: Mails = [
        (0.0, micro_batch(0)),
        (0.0, micro_batch(1)),
        (0.11, request(1)),
        (0.25, request(2)),
        (0.25, request(3)),
    ]
    with_step = milliseconds(ran(rules(share=0.4), mails, publish=0.15))
    assert [span for span in with_step if span[0] == "serve"] == [
        ("serve", 120, 160),
        ("serve", 310, 350),
        ("serve", 350, 390),
    ]


def test_a_step_is_prepared_in_pieces_that_rest_for_serving_and_published_in_one() -> None:
    mails: Mails = [(0.0, micro_batch(0)), (0.125, request(1)), (0.205, request(2))]
    assert milliseconds(ran(rules(), mails, prepare=0.04, publish=0.01), steps=True) == [
        ("forward", 0, 40),
        ("backward", 40, 120),
        ("step", 120, 130),
        ("serve", 130, 170),
        ("step", 170, 200),
        ("step", 200, 210),
        ("serve", 210, 250),
    ]


@pytest.mark.parametrize("sync", [True, False])
def test_a_gradient_is_sealed_in_pieces_that_rest_for_serving(sync: bool) -> None:
    """The next group waits for the step, or goes on when its turn comes; the request comes in the first of four pieces."""
    mails: Mails = [(0.0, micro_batch(0)), (0.06, micro_batch(1)), (0.125, request(1))]
    spans = ran(rules(sync=sync), mails, seal=0.04, prepare=0.02, publish=0.01)
    assert milliseconds(spans, steps=True)[:6] == [
        ("forward", 0, 40),
        ("backward", 40, 120),
        ("step", 120, 130),
        ("serve", 130, 170),
        ("step", 170, 200),
        ("step", 200, 220),
    ]
    assert [span.version for span in spans if span.kind == "forward"] == [0, 1]


def test_a_gradient_that_is_owed_time_or_may_not_rest_is_sealed_in_one_go() -> None:
    mails: Mails = [(0.0, micro_batch(0)), (0.125, request(1))]
    still = milliseconds(ran(rules(yield_training=False), mails, seal=0.04), steps=True)
    assert still[2:] == [("step", 120, 160), ("serve", 160, 200), ("step", 200, 200)]


def test_no_gradient_is_sealed_on_a_stage_that_has_reported_an_update_as_ready() -> None:
    """The update is reported before the last piece of the backward, at 100 ms, and committed at 200."""
    mails: Mails = [
        (0.0, m.Forward(MicroBatch(0, 0, 0, 1, 1, 8, b"", b""))),
        (0.0, m.Forward(MicroBatch(1, 1, 0, 1, 1, 8, b"", b""))),
        (0.205, m.Prepare(1, 7, 1.0)),
        (0.3, m.Commit(1)),
        (0.3, m.Stop()),
    ]
    world = World(deque(mails))
    place, engine = StagePlace(Layout(1, 2), 0, 1), SlowStep(0.0, 0.01, world, seal=0.04)
    StageWorker(place, engine, world, world, world, rules()).run()  # type: ignore[arg-type]
    assert world.prepared == [(pytest.approx(0.26), 1)]
    assert milliseconds(world.spans, steps=True) == [
        ("forward", 0, 40),
        ("backward", 40, 120),
        ("step", 120, 160),
        ("forward", 160, 200),
        ("backward", 200, 280),
        ("step", 300, 310),
        ("step", 310, 350),
    ]


def test_requests_are_served_by_the_old_weights_until_the_step_is_published() -> None:
    mails: Mails = [(0.0, micro_batch(0)), (0.125, request(1)), (0.205, request(2))]
    served = [span for span in ran(rules(), mails, prepare=0.04, publish=0.01) if span.kind == "serve"]
    assert [span.version for span in served] == [0, 1]


def test_a_preparation_that_is_owed_time_or_may_not_rest_runs_on() -> None:
    mails: Mails = [(0.0, micro_batch(0)), (0.125, request(1))]
    still = milliseconds(ran(rules(yield_training=False), mails, prepare=0.04), steps=True)
    assert still[2:] == [("step", 120, 160), ("serve", 160, 200), ("step", 200, 200)]
    mails = [(0.0, micro_batch(0)), *((0.0, request(number)) for number in range(4)), (0.281, request(9))]
    owed = milliseconds(ran(rules(share=0.5), mails, prepare=0.04), steps=True)
    assert owed[-5:] == [
        ("step", 240, 250),
        ("serve", 250, 290),
        (
            "step",
            290,
            320,
        ),  # the request of 281 ms waits: training is owed the 20 ms that the one before gave it a claim to
        ("step", 320, 320),
        ("serve", 320, 360),
    ]


@pytest.mark.parametrize(("sync", "under"), [(True, [0, 1]), (False, [0, 0])])
def test_synchronous_training_goes_forward_only_after_the_step(sync: bool, under: list[int]) -> None:
    """The next group comes at once, but the stage behind is prepared only at 300 ms."""
    mails: Mails = [
        (0.0, micro_batch(0)),
        (0.05, m.Backward(0)),
        (0.05, m.Sealed(0, 1.0)),
        (0.06, micro_batch(1)),
        (0.3, m.Prepared(1)),
        (0.4, m.Backward(1)),
        (0.4, m.Sealed(1, 1.0)),
        (0.6, m.Prepared(2)),
    ]
    spans = ran(rules(sync=sync), mails, prepare=0.04, publish=0.01, stages=2)
    assert [span.version for span in spans if span.kind == "forward"] == under
    assert [span.version for span in spans if span.kind == "step"] == [0, 0, 1, 1]
    assert min(span.start for span in spans if span.kind == "step" and span.end - span.start < 0.02) >= 0.3


@pytest.mark.parametrize("first", [True, False])
def test_the_first_stage_of_a_paced_node_tells_when_it_is_idle(first: bool) -> None:
    """A forward and a backward take 120 ms, a request 40 ms."""
    mails: Mails = [(0.1, micro_batch(0)), (0.3, request(1)), (0.5, m.Stop())]
    world = World(deque(mails))
    place = StagePlace(Layout(1, 1 if first else 2), 0, 0 if first else 1)
    worker = StageWorker(place, SlowStep(0.0, 0.0, world), world, world, world, replace(rules(), paced=True))  # type: ignore[arg-type]
    if first:
        worker.run()
        expected = [0.0, math.inf, 0.22, math.inf, 0.34]
        assert [message.since for message in world.told] == pytest.approx(expected)
    else:
        worker._turn()
        assert world.told == []


def test_synchronous_training_waits_for_the_norm_of_the_stages_behind() -> None:
    """The stage behind takes long to seal the group, as a GPU does for the first time; the backwards here end at 130 ms."""
    mails: Mails = [
        (0.0, micro_batch(0)),
        (0.05, m.Backward(0)),
        (0.06, micro_batch(1)),
        (0.25, m.Sealed(0, 1.0)),
        (0.3, m.Prepared(1)),
        (0.4, m.Backward(1)),
        (0.5, m.Sealed(1, 1.0)),
        (0.6, m.Prepared(2)),
    ]
    spans = ran(rules(sync=True), mails, prepare=0.04, publish=0.01, stages=2)
    assert [span.version for span in spans if span.kind == "forward"] == [0, 1]


def test_a_later_stage_reports_an_update_before_the_last_piece_of_a_backward() -> None:
    """Forwards take 40 ms, backwards 80, in four pieces each. The second update comes in the last piece of a backward; the
    third in a forward, and a forward of the last stage needs the same weights as its backward."""
    micro_batches = [m.Forward(MicroBatch(number, 0, number, 5, 1, 8, b"", b"")) for number in range(5)]
    mails: Mails = [
        *((0.0, micro_batch) for micro_batch in micro_batches),
        (0.17, m.Prepare(1, 7, 1.0)),
        (0.24, m.Commit(1)),
        (0.35, m.Prepare(2, 8, 1.0)),
        (0.36, m.Commit(2)),
        (0.37, m.Prepare(3, 9, 1.0)),
        (0.4, m.Commit(3)),
        (0.4, m.Stop()),
    ]
    world = World(deque(mails))
    place = StagePlace(Layout(1, 2), 0, 1)
    StageWorker(place, SlowStep(0.0, 0.0, world), world, world, world, rules()).run()  # type: ignore[arg-type]
    assert [version for _, version in world.prepared] == [1, 2, 3]
    assert [time for time, _ in world.prepared] == pytest.approx([0.22, 0.36, 0.4])


@pytest.mark.parametrize(("order", "away", "most"), [(rules(), False, 1), (FIFO, False, 1), (rules(), True, 4)])
def test_weights_change_although_several_micro_batches_wait_for_their_backward(
    order: StageRules, away: bool, most: int
) -> None:
    """On the last stage backwards follow their forwards, and only one needs the weights, unless one is `away`, on the host."""
    micro_batches = [m.Forward(MicroBatch(number, 0, number, 5, 1, 8, b"", b"")) for number in range(5)]
    between: Mails = [(0.04, request(9)), (0.05, m.Offload(0))] if away else []
    mails: Mails = [
        *((0.0, micro_batch) for micro_batch in micro_batches),
        *between,
        (0.05, m.Prepare(1, 7, 1.0)),
        (0.3, m.Commit(1)),
        (0.3, m.Stop()),
    ]
    world = World(deque(mails))
    engine = HoldsGraphs(world)
    worker = StageWorker(StagePlace(Layout(1, 2), 0, 1), engine, world, world, world, replace(order, in_flight=8))  # type: ignore[arg-type]
    worker.run()
    assert engine.most == most
    passes = [
        (span.kind, span.tasks[0]) for span in world.spans if span.kind in ("forward", "backward") and span.complete
    ]
    forwards, backwards = ([(kind, n) for n in range(5)] for kind in ("forward", "backward"))
    in_turn = [each for pair in zip(forwards, backwards, strict=True) for each in pair]
    assert passes == in_turn if not away else sorted(passes) == backwards + forwards
    assert [version for _, version in world.prepared] == [1]
