"""Real stages of two nodes inside one process, which get their turns in any order: what their weights are in the end."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest

from lemix_hpc.config.recipe import Engine, Model, Nodes, Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.protocol import MicroBatch, Payload
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.stage.links import StagePlace
from lemix_hpc.runtime.stage.worker import StageRules, StageWorker
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import Layout
from tests.runtime.conftest import tiny_llama

LAYOUT = Layout(2, 2)


@pytest.fixture(autouse=True)
def _no_traces() -> Iterator[None]:
    """A stage sets its process up for DeepSpeed; here the process goes on to other tests."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)


class Box:
    """A stage's mailbox among those of all ranks; it is its clock, too, which stands still."""

    def __init__(self, boxes: dict[int, Box], reports: list[m.AnyMessage], rank: int) -> None:
        self._boxes = boxes
        self._reports = reports
        self._rank = rank
        self.mails: deque[Mail] = deque()
        boxes[rank] = self

    in_transit = False
    sent_all = True

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Payload | None = None) -> None:
        if inbox is not Inbox.STAGE:
            self._reports.append(message)
            return
        if payload is not None:
            payload = Payload(payload.shape, payload.dtype, np.array(payload.data, copy=True).view(np.uint8))
        self._boxes[rank].mails.append(Mail(self._rank, message, payload))

    def poll(self) -> list[Mail]:
        return [self.mails.popleft()] if self.mails else []

    def now(self) -> float:
        return 0.0

    def wake(self) -> None:
        """Nobody sleeps here."""


class AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, job: Any, /, *args: Any, **others: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(job(*args, **others))
        except OSError as error:
            done.set_exception(error)
        return done


class Cluster:
    """Two nodes of two stages with the same weights, each at the start of a run."""

    def __init__(self, partners: Partners | None, **training: Any) -> None:
        self.boxes: dict[int, Box] = {}
        self.reports: list[m.AnyMessage] = []
        recipe = Recipe(
            nodes=Nodes(count=2, stages=2),
            model=Model(config=tiny_llama(2, tie_word_embeddings=True)),
            engine=Engine(dtype="float32"),
            training=Training(release="sync", learning_rate=1e-2, gradient_clipping=1.0, **training),
        )
        rules = StageRules(True, False, True, True, 0.0)
        self.engines, self.workers = {}, {}
        for node, stage in ((0, 0), (0, 1), (1, 0), (1, 1)):
            engine = build_stage(recipe, stage=stage, device="cpu")
            box = Box(self.boxes, self.reports, LAYOUT.worker(node, stage))
            place: Any = StagePlace(LAYOUT, node, stage)
            self.engines[node, stage] = engine
            worker = StageWorker(place, engine, box, box, box, rules, partners, pool=AtOnce())  # type: ignore[arg-type]
            self.workers[node, stage] = worker

    def send(self, node: int, stage: int, message: m.AnyMessage) -> None:
        self.boxes[LAYOUT.worker(node, stage)].mails.append(Mail(0, message, None))

    def train(self, node: int, group: int) -> None:
        """A group of one micro-batch for a node."""
        tokens = np.random.default_rng(group).integers(0, 257, (2, 16), dtype=np.int32).tobytes()
        self.send(node, 0, m.Train(MicroBatch(group, group, 0, 1, 2, 16, tokens, tokens)))

    def settle(self, seed: int) -> None:
        """Give turns in an order of chance until nobody has anything to do, and nothing is on its way."""
        order, idle = random.Random(seed), set[tuple[int, int]]()
        while len(idle) < len(self.workers):
            chosen = order.choice(sorted(self.workers))
            if self.workers[chosen]._turn() or any(box.mails for box in self.boxes.values()):
                idle = set()
            else:
                idle.add(chosen)

    def weights(self, node: int) -> bytes:
        payloads = [payload for stage in (0, 1) for payload in self.engines[node, stage].read_weights()]
        return b"".join(np.array(payload.data).tobytes() for payload in payloads)

    @property
    def versions(self) -> set[int]:
        return {worker._updates.version for worker in self.workers.values()}

    @property
    def steps(self) -> int:
        return sum(isinstance(report, m.Stepped) for report in self.reports)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_after_an_average_all_nodes_have_equal_weights(zero_stage: int, seed: int) -> None:
    cluster = Cluster(Partners("average", (0, 1), every=2), zero_stage=zero_stage)
    start = cluster.weights(0)
    for group in range(3):
        cluster.train(group % 2, group)
    cluster.settle(seed)
    assert cluster.steps == 3
    assert cluster.weights(0) != cluster.weights(1), "node 0 has come to its snapshot alone, and waits for nothing"
    cluster.train(1, 3)
    cluster.settle(seed)
    assert cluster.steps == 4
    assert cluster.versions == {3}, "two steps and an average"
    assert cluster.weights(0) == cluster.weights(1) != start
    done = [report for report in cluster.reports if isinstance(report, m.RingDone)]
    assert sorted((report.node, report.stage, report.round) for report in done) == [
        (node, stage, 0) for node in (0, 1) for stage in (0, 1)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_steps_between_snapshot_and_average_are_kept(seed: int) -> None:
    cluster = Cluster(Partners("average", (0, 1), every=1))
    cluster.train(0, 0)
    cluster.settle(seed)
    snapshot = np.frombuffer(cluster.weights(0), dtype=np.float32)
    cluster.train(0, 1)
    cluster.settle(seed)
    ahead = np.frombuffer(cluster.weights(0), dtype=np.float32)
    cluster.train(1, 2)
    cluster.settle(seed)
    mean = np.frombuffer(cluster.weights(1), dtype=np.float32)
    assert np.allclose(np.frombuffer(cluster.weights(0), dtype=np.float32), ahead + (mean - snapshot), atol=1e-6)
    assert np.abs(ahead - snapshot).max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_after_every_step_together_all_nodes_have_equal_weights(seed: int) -> None:
    cluster = Cluster(Partners("sync", (0, 1)))
    placed = [[0, 1], [1, 1], [0, 0]]
    before = cluster.weights(0)
    for step, nodes in enumerate(placed):
        groups = [2 * step, 2 * step + 1]
        for group, node in zip(groups, nodes, strict=True):
            cluster.train(node, group)
        cluster.settle(seed)
        assert cluster.versions == {step}, "nobody steps before it is settled of which groups"
        for node in (0, 1):
            shares = [(group, 0.5) for group, place in zip(groups, nodes, strict=True) if place == node]
            for stage in (0, 1):
                cluster.send(node, stage, m.StepTogether(groups[0], shares))
        cluster.settle(seed)
        assert cluster.versions == {step + 1}
        assert cluster.weights(0) == cluster.weights(1) != before
        before = cluster.weights(0)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_ends_with_an_average_under_way(seed: int) -> None:
    cluster = Cluster(Partners("average", (0, 1), every=1))
    cluster.train(0, 0)
    cluster.settle(seed)
    order = random.Random(seed)
    left = dict(cluster.workers)
    for place in sorted(left, key=lambda _: order.random()):
        cluster.send(*place, m.Stop())
    for _ in range(1000):
        chosen = order.choice(sorted(left))
        if left[chosen]._finished():
            del left[chosen]
        else:
            left[chosen]._turn()
        if not left:
            break
    assert not left
    assert not any(box.mails for box in cluster.boxes.values()), "all that was sent has been taken in"
