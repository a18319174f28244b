"""Two stages on devices that lag behind, whose activations go from one to the other: every batch sees one weight version."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Any

import pytest
import torch

from lemix_hpc.engines.protocol import MicroBatch, Payload, ServeBatch, ServeSequence
from lemix_hpc.engines.torch.hand_over import HandOver, Ticket
from lemix_hpc.engines.torch.handed_on import GRAIN
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.weightless import WeightlessStage
from lemix_hpc.runtime.stage.links import StagePlace
from lemix_hpc.runtime.stage.worker import StageRules, StageWorker
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import Layout
from tests.engines.torch.late_device import LateRegion

LAYOUT = Layout(1, 2)
GRAINS = 4
Seen = dict[int, tuple[float, float]]
"""Of a batch: the versions of the weights that the first and the last stage really had when their kernels ran."""


class Box:
    """A stage's mailbox, and its clock, which stands still."""

    in_transit = False
    sent_all = True

    def __init__(self, boxes: dict[int, Box], rank: int) -> None:
        self._boxes = boxes
        self._rank = rank
        self.mails: deque[Mail] = deque()
        self.wire: Wire | None = None
        self.steps = 0
        boxes[rank] = self

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage, payload: Payload | None = None) -> None:
        if inbox is not Inbox.STAGE:
            self.steps += isinstance(message, m.Stepped)
            return
        there = self._boxes[rank]
        if payload is not None and there.wire is not None:
            memory = there.wire.buffer(payload.nbytes)
            memory[:] = bytes(payload.data) if isinstance(memory, Ticket) else payload.data
            payload = Payload(payload.shape, payload.dtype, memory)
        there.mails.append(Mail(self._rank, message, payload))

    def poll(self) -> list[Mail]:
        return [self.mails.popleft()] if self.mails else []

    def now(self) -> float:
        return 0.0

    def wake(self) -> None:
        """Nobody sleeps here."""


class LateWire(Wire):
    """A copy to the host waits for the device, as one of a GPU's memory does."""

    def __init__(self, device: LateRegion) -> None:
        super().__init__(torch.device("cpu"))
        self._late = device

    def host_payload(self, tensor: torch.Tensor) -> Payload:
        self._late.settle()
        return super().host_payload(tensor.clone())


class LateStage(WeightlessStage):
    """Its weights are one number, their version: publication is a kernel that adds 1, and a pass one that reads it."""

    def __init__(self, device: LateRegion, wire: Wire, seen: Seen, *, last: bool) -> None:
        self._device = device
        self._wire = wire
        self._seen = seen
        self._last = last
        self._weights = torch.zeros(1)

    def serve(self, batch: ServeBatch, hidden: Payload | None) -> Any:
        if hidden is not None:
            came = self._wire.tensor(hidden)
            self._device.launch(lambda: self._note(batch.id, came))
            self._device.free(came.view(torch.uint8))
            return []
        output = self._device.empty(4)
        yield
        self._device.launch(lambda: output.view(torch.float32).copy_(self._weights))
        payload = self._wire.payload(output.view(torch.float32))
        # What comes next writes into the same memory.
        self._device.free(output)
        return payload

    def forward(self, micro_batch: MicroBatch, hidden: Payload | None) -> Any:
        yield
        return math.nan if self._last else self._pass_on(micro_batch.id, hidden)

    def backward(self, micro_batch: int, grad: Payload | None) -> Any:
        yield
        return self._pass_on(micro_batch, grad) if self._last else self._taken(grad)

    def publish(self, group: int) -> Any:  # noqa: ARG002
        self._device.launch(lambda: self._weights.add_(1.0))
        return
        yield

    def _pass_on(self, number: int, came: Payload | None) -> Payload:
        self._taken(came)
        output = self._device.empty(4)
        self._device.launch(lambda: output.view(torch.float32).fill_(1000.0 + number))
        payload = self._wire.payload(output.view(torch.float32))
        self._device.free(output)
        return payload

    def _taken(self, came: Payload | None) -> None:
        if came is not None:
            self._device.free(self._wire.tensor(came).view(torch.uint8))

    def _note(self, batch: int, came: torch.Tensor) -> None:
        self._seen[batch] = (float(came[0]), float(self._weights[0]))


@pytest.mark.parametrize("seed", range(10))
def test_a_batch_sees_one_version_wherever_its_activations_lie(seed: int) -> None:
    draw, host, seen = random.Random(seed), dict[bytes, torch.Tensor](), Seen()
    devices = [LateRegion(GRAINS * GRAIN, host) for _ in range(2)]
    boards = {stage: bytearray(GRAINS) for stage in range(2)}
    boxes: dict[int, Box] = {}
    workers = []
    for stage, device in enumerate(devices):
        device.open(1 - stage, devices[1 - stage].handle)
        wire = LateWire(device)
        wire.connect(HandOver(stage, GRAINS * GRAIN, boards, device))
        box = Box(boxes, LAYOUT.worker(0, stage))
        box.wire = wire
        engine: Any = LateStage(device, wire, seen, last=stage == 1)
        place, rules = StagePlace(LAYOUT, 0, stage), StageRules(False, False, True, True, 0.0)
        workers.append(StageWorker(place, engine, box, box, box, rules))  # type: ignore[arg-type]
    first, arriving = boxes[LAYOUT.worker(0, 0)], deque[m.AnyMessage]()
    for number in range(40):
        batch = ServeBatch(number, [ServeSequence(number, 8, 0, False, [])])
        arriving.append(m.Serve(batch, -1, 0.0))
        if number % 4 == 0:
            arriving.append(m.Train(MicroBatch(number, number, 0, 1, 1, 8, b"", b"")))
    idle = 0
    while idle < 50:
        if arriving and draw.random() < 0.15:
            first.mails.append(Mail(0, arriving.popleft(), None))
        stage = draw.randrange(2)
        devices[stage].advance(draw.randrange(3))
        worked = workers[stage]._turn() or arriving or any(box.mails for box in boxes.values())
        idle = 0 if worked else idle + 1
    for device in devices:
        device.settle()
    assert first.steps == 10
    assert sorted(seen) == list(range(40))
    assert all(one == other for one, other in seen.values()), seen
    assert len({version for version, _ in seen.values()}) > 2, "updates came in between"
