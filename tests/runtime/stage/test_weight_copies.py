from typing import Any

import numpy as np

from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.protocol import Payload
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.runtime.stage.links import StageLinks, StagePlace
from lemix_hpc.runtime.stage.weight_copies import WeightCopies, send_copy
from lemix_hpc.runtime.transport.mailbox import Inbox
from lemix_hpc.runtime.transport.messages import WeightsPart
from lemix_hpc.runtime.transport.rank_layout import Layout


def tensor(value: float) -> Payload:
    return Payload((2,), "float32", np.full(2, value, dtype=np.float32))


def test_a_version_is_complete_with_all_its_parts_and_taking_it_drops_older_ones() -> None:
    copies = WeightCopies()
    copies.add(WeightsPart(3, 1, 2), tensor(31))
    assert not copies.complete(3)
    copies.add(WeightsPart(2, 0, 1), tensor(20))
    copies.add(WeightsPart(3, 0, 2), tensor(30))
    assert copies.complete(3)
    assert [part.data[0] for part in copies.take(3)] == [30, 31]
    assert not copies.complete(2)
    assert not copies.complete(3)


def test_an_engine_without_weights_still_has_versions() -> None:
    copies = WeightCopies()
    copies.add(WeightsPart(1, 0, 0), None)
    assert copies.complete(1)
    assert copies.take(1) == []


class Weights(EmulatedStage):
    """Has two tensors."""

    def __init__(self) -> None:
        super().__init__(LatencyModel((Affine(0, 0, 0),), (Affine(0, 0, 0),)), 0, 1)
        self.tensors = [tensor(1), tensor(2)]

    def read_weights(self) -> list[Payload]:
        return self.tensors


class Outbox:
    def __init__(self) -> None:
        self.sent: list[tuple[int, Any, Payload]] = []

    def send(self, rank: int, inbox: Inbox, message: Any, payload: Payload) -> None:
        assert inbox is Inbox.STAGE
        self.sent.append((rank, message, payload))


def test_a_copy_that_is_sent_keeps_what_was() -> None:
    layout, outbox, engine = Layout(3, 1), Outbox(), Weights()
    links = StageLinks(StagePlace(layout, 2, 0, copy_to=(0, 1)), outbox)  # type: ignore[arg-type]
    send_copy(engine, links, 5)
    for weights in engine.tensors:
        weights.data[:] = 9
    assert [(rank, message) for rank, message, _ in outbox.sent] == [
        (layout.worker(node, 0), WeightsPart(5, part, 2)) for node in (0, 1) for part in (0, 1)
    ]
    assert [list(payload.data) for _, _, payload in outbox.sent] == [[1, 1], [2, 2]] * 2
    assert all(payload.shape == (2,) for _, _, payload in outbox.sent)
