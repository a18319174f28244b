"""A real leader and real stages in one process, short of memory: nothing is lost, whatever the budget does."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.meter import DeviceMemoryError
from lemix_hpc.engines.protocol import MicroBatch, Payload, StageEngine
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.run_setup.memory_limits import StageRoom, offloads, room_of
from lemix_hpc.runtime.leader.batching_leader import Leader
from lemix_hpc.runtime.leader.memory_gate import NodeMemoryLimits
from lemix_hpc.runtime.stage.links import StagePlace
from lemix_hpc.runtime.stage.worker import StageRules, StageWorker
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from tests.runtime.conftest import tiny_llama

LAYOUT = Layout(1, 2)


@pytest.fixture(autouse=True)
def _no_traces() -> Iterator[None]:
    """A stage sets its process up for DeepSpeed; here the process goes on to other tests."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)


class Box:
    """A mailbox among those of all ranks and inboxes; it is everybody's clock, too."""

    in_transit = False
    sent_all = True

    def __init__(self, node: Node, address: tuple[int, Inbox]) -> None:
        self._node = node
        self._address = address
        self.mails: deque[Mail] = deque()
        node.boxes[address] = self

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Payload | None = None) -> None:
        if inbox is Inbox.SCHEDULER:
            self._node.heard(message)
            return
        if payload is not None and payload.nbytes:
            payload = Payload(payload.shape, payload.dtype, np.array(payload.data, copy=True).view(np.uint8))
        self._node.boxes[rank, inbox].mails.append(Mail(self._address[0], message, payload))

    def poll(self) -> list[Mail]:
        return [self.mails.popleft()] if self.mails else []

    def now(self) -> float:
        return self._node.time

    def wake(self) -> None:
        """Nobody sleeps here."""


class Node:
    """A leader with two stages. Time goes on by a millisecond with every turn."""

    def __init__(self, engines: list[StageEngine], limits: NodeMemoryLimits, *, gpipe: bool, seed: int) -> None:
        self.boxes: dict[tuple[int, Inbox], Box] = {}
        self.answers: dict[int, list[int]] = {}
        self.trained: set[int] = set()
        self.steps = 0
        self.time = 0.0
        self.order = random.Random(seed)
        clock: Any = Box(self, (LAYOUT.leader(0), Inbox.LEADER))
        self.leader = Leader(LAYOUT, 0, clock, clock, max_requests=4, max_tokens=4096, temperature=0.0, memory=limits)
        self.workers = []
        rules = StageRules(gpipe, gpipe, True, True, 0.05, limited=True, in_flight=0 if gpipe else 6)
        for stage, engine in enumerate(engines):
            box: Any = Box(self, (LAYOUT.worker(0, stage), Inbox.STAGE))
            self.workers.append(StageWorker(StagePlace(LAYOUT, 0, stage), engine, box, box, box, rules))
            if engine.takes is not None:
                self.tell(m.EngineReady(0, stage, engine.takes))
        self.turns = [self.leader.turn, *(worker._turn for worker in self.workers)]

    def tell(self, message: m.AnyMessage) -> None:
        self.boxes[LAYOUT.leader(0), Inbox.LEADER].mails.append(Mail(SCHEDULER_RANK, message, None))

    def turn(self) -> None:
        self.time += 1e-3
        self.order.choice(self.turns)()

    def heard(self, report: m.AnyMessage) -> None:
        """By the scheduler. Trained are micro-batches whose backward has run on the first stage."""
        match report:
            case m.RequestDone(task=task, output=output):
                self.answers[task] = output
            case m.Stepped():
                self.steps += 1
            case m.SpanReport(spans):
                self.trained |= {s.tasks[0] for s in spans if s.kind == "backward" and s.stage == 0 and s.complete}


def limits_of(room: StageRoom, *, max_wait: float, gpipe: bool, useful_in_flight: int) -> NodeMemoryLimits:
    """Of two stages with this room each."""
    return NodeMemoryLimits(
        2,
        (room, room),
        lambda *_: room,
        max_wait,
        offloads=True,
        max_hold=10 * max_wait,
        gpipe=gpipe,
        useful_in_flight=useful_in_flight,
    )


@pytest.mark.parametrize("changes", [True, False], ids=["the budget changes at random", "the budget stays"])
def test_no_task_of_hundreds_is_lost(changes: bool) -> None:
    tasks = 700 if changes else 300
    room = StageRoom(400, 1, 1, 0, 1e9)
    limits = limits_of(room, max_wait=0.01, gpipe=False, useful_in_flight=6)
    latency = LatencyModel((Affine(0, 0, 0),) * 2, (Affine(0, 0, 0),) * 2)
    engines: list[StageEngine] = []
    node = None
    for stage in (0, 1):
        engines.append(
            EmulatedStage(
                latency, stage, 2, moving_token=1e-4, clock=lambda: node.time if node else 0.0, sleep=lambda _: None
            )
        )
    node = Node(engines, limits, gpipe=False, seed=7)
    order, coming = random.Random(8), list(range(tasks))
    while len(node.answers) + len(node.trained) < tasks:
        if coming and node.time > 0.005 * (tasks - len(coming)):
            task = coming.pop(0)
            if task % 6 == 0:
                node.tell(m.PlaceRequest(task, order.randint(1, 150), order.randint(1, 20), [], node.time))
            else:
                node.tell(m.Train(MicroBatch(task, task, 0, 1, 1, order.randint(1, 100), b"", b"")))
        for account in node.leader._gate._stages:
            if changes and order.random() < 0.01:
                account.room = replace(account.room, limit=order.randint(0, 400))
            assert changes or account.free >= 0, "there is room for what is there, and for what is to come back"
            assert account.back <= account.kept
        node.turn()
        assert node.time < 1000, "nothing goes on any more"
    used = node.leader._gate.used
    assert used.serving_waits and used.training_waits and used.preemptions
    assert used.stages[0].offloads, "on the second stage a backward follows its forward at once"
    assert all(stage.cache == stage.activations == stage.back == 0 for stage in node.leader._gate._stages)


def torch_node(capacity_gb: float, mode: str) -> Node:
    recipe = Recipe.model_validate(
        {
            "nodes": {"stages": 2},
            "model": {"config": tiny_llama(4)},
            "engine": {"dtype": "float32", "device": "cpu"},
            "serving": {"source": {"kind": "poisson", "rate": 1, "requests": 1}, "mode": "generate"},
            "training": {
                "release": "sync",
                "schedule": "gpipe",
                "micro_batches_per_step": 8,
                "micro_batch_size": 2,
                "sequence_length": 64,
            },
            "policy": {"memory": {"capacity_gb": capacity_gb, "mode": mode, "kappa": 1.0}},
        }
    )
    engines: list[StageEngine] = [build_stage(recipe, stage=stage, device="cpu") for stage in (0, 1)]
    limits = NodeMemoryLimits(
        2,
        (),
        lambda stage, takes: room_of(recipe, 0, stage, takes),
        0.01,
        offloads=offloads(recipe),
        max_hold=0.1,
        gpipe=True,
        useful_in_flight=2,
    )
    return Node(engines, limits, gpipe=True, seed=3)


def outcome(node: Node) -> tuple[float, dict[int, list[int]], list[bytes]]:
    """Runs requests and training: the fullest stage / the capacity, the answers, and the weights at the end."""
    draw = np.random.default_rng(0)
    for number in range(16):
        tokens = draw.integers(0, 257, (2, 64), dtype=np.int32).tobytes()
        node.tell(m.Train(MicroBatch(number, number // 8, number % 8, 8, 2, 64, tokens, tokens)))
    for task in range(100, 112):
        prompt = draw.integers(0, 257, 40).tolist()
        node.tell(m.PlaceRequest(task, 40, 8, prompt, float(task)))
    while len(node.answers) < 12 or node.steps < 2:
        node.turn()
        assert node.time < 200, "nothing goes on any more"
    used = node.leader._gate.used
    fullest = max((stage.resting + stage.peak) / stage.capacity for stage in used.stages if stage.capacity)
    weights = [bytes(payload.data) for worker in node.workers for payload in worker._engine.read_weights()]
    return fullest, node.answers, weights


def test_computing_stages_keep_to_a_budget_that_ignoring_memory_exceeds() -> None:
    whole, answers, weights = outcome(torch_node(1.0, "ignore"))
    peak = 1.0 * whole
    exceeded, *_ = outcome(torch_node(0.6 * peak, "ignore"))
    assert exceeded > 1.0
    node = torch_node(0.6 * peak, "offload")
    kept, same_answers, same_weights = outcome(node)
    assert kept <= 1.0
    assert node.leader._gate.used.stages[0].offloads
    assert same_weights == weights, "training takes the same course"
    assert same_answers.keys() == answers.keys()


class Full(EmulatedStage):
    """Its device has less memory than it says, until something has left it."""

    moved = False

    def forward(self, micro_batch: MicroBatch, hidden: Payload | None) -> Any:
        if micro_batch.id == 2 and not self.moved:
            raise DeviceMemoryError("full")
        return (yield from super().forward(micro_batch, hidden))

    def offload(self, micro_batch: int) -> Any:
        self.moved = True
        return super().offload(micro_batch)


def test_a_device_that_is_full_lets_training_move_aside_and_runs_the_pass_again() -> None:
    room = StageRoom(1000, 1, 1, 0, 1e9)
    limits = limits_of(room, max_wait=0.1, gpipe=True, useful_in_flight=2)
    latency = LatencyModel((Affine(0, 0, 0),) * 2, (Affine(0, 0, 0),) * 2)
    kinds = (Full, EmulatedStage)
    engines: list[StageEngine] = [
        kind(latency, stage, 2, clock=lambda: 0.0, sleep=lambda _: None) for stage, kind in enumerate(kinds)
    ]
    node = Node(engines, limits, gpipe=True, seed=1)
    for number in range(4):
        node.tell(m.Train(MicroBatch(number, 0, number, 4, 1, 100, b"", b"")))
    while len(node.trained) < 4:
        node.turn()
        assert node.time < 100, "nothing goes on any more"
    first, second = node.leader._gate._stages
    assert (first.room.limit, second.room.limit) == (285, 1000)
    assert (first.offloads, second.offloads) == (3, 0), "one for the pass that failed, and two for the next micro-batch"


@pytest.mark.parametrize("alone", [False, True], ids=["others rest", "nothing else rests"])
def test_a_backward_without_memory_goes_on_once_others_have_moved(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose memory ends in the middle of a graph: the weights become those of a run with enough of it."""
    grad, failures = torch.autograd.grad, iter([False] * 3 + [True])

    def full(*arguments: Any) -> Any:
        gradients = grad(*arguments)
        if next(failures, False):
            raise torch.OutOfMemoryError("full")
        return gradients

    weights = []
    for disturbed in (False, True):
        node = torch_node(1.0, "offload")
        with monkeypatch.context() as patch:
            if disturbed:
                patch.setattr(torch.autograd, "grad", full)
            train(node, 1 if alone else 8)
        weights.append([bytes(payload.data) for worker in node.workers for payload in worker._engine.read_weights()])
        stages = node.leader._gate._stages
        assert bool(sum(stage.offloads for stage in stages)) == (disturbed and not alone)
        assert (min(stage.room.limit for stage in stages) < 1e7) == disturbed, "it counts on less from now on"
        assert all(stage.activations == stage.back == 0 for stage in stages)
    assert weights[0] == weights[1]


def train(node: Node, size: int) -> None:
    """One step of a group of so many micro-batches, on both stages."""
    draw = np.random.default_rng(0)
    for number in range(size):
        tokens = draw.integers(0, 257, (2, 64), dtype=np.int32).tobytes()
        node.tell(m.Train(MicroBatch(number, 0, number, size, 2, 64, tokens, tokens)))
    while any(worker._updates.version < 1 for worker in node.workers) or node.leader._gate._held_by:
        node.turn()
        assert node.time < 200, "nothing goes on any more"
