"""What waits for what when a tensor goes from device to device: on stand-ins whose kernels and copies run when told to."""

import random
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from lemix_hpc.engines.protocol import Payload
from lemix_hpc.engines.torch.hand_over import FREE, TAKEN, HandOver, Rooms, Ticket
from lemix_hpc.engines.torch.handed_on import GRAIN
from lemix_hpc.engines.torch.payloads import Wire
from tests.engines.torch.late_device import LateRegion, PromptRegion

CPU = torch.device("cpu")


class Pair:
    """Two stages with a region of so many grains each."""

    def __init__(self, grains: int = 4, kind: type[LateRegion] = LateRegion) -> None:
        host: dict[bytes, torch.Tensor] = {}
        self.devices = [kind(grains * GRAIN, host) for _ in range(2)]
        boards = {stage: bytearray(grains) for stage in range(2)}
        for stage, device in enumerate(self.devices):
            device.open(1 - stage, self.devices[1 - stage].handle)
        self.ends = [HandOver(stage, grains * GRAIN, boards, device) for stage, device in enumerate(self.devices)]

    def give(self, value: int, nbytes: int = GRAIN) -> Ticket | None:
        """Stage 0 gives bytes that a queued kernel is to write."""
        flat = self.devices[0].empty(nbytes)
        self.devices[0].launch(lambda: flat.fill_(value))
        return self.ends[0].give(flat)


def sent(ticket: Ticket | None) -> Ticket:
    """As it arrives."""
    assert ticket is not None
    return Ticket(bytes(ticket))


def test_what_is_told_of_was_written_before() -> None:
    pair = Pair()
    ticket = sent(pair.give(7))
    # The other device goes on at once.
    found = pair.ends[1].take(ticket)
    pair.devices[1].advance()
    assert (found == 7).all()


def test_the_source_may_be_written_to_and_given_away_at_once() -> None:
    pair = Pair()
    giver = pair.devices[0]
    source = giver.empty(GRAIN)
    giver.launch(lambda: source.fill_(7))
    ticket = sent(pair.ends[0].give(source))
    giver.free(source)
    reused = giver.empty(GRAIN)
    assert reused.data_ptr() == source.data_ptr()
    giver.launch(lambda: reused.fill_(9))
    giver.advance()
    found = pair.ends[1].take(ticket)
    pair.devices[1].advance()
    assert (found == 7).all()


def test_a_room_is_given_away_again_only_when_it_has_been_read() -> None:
    pair = Pair(grains=1)
    giver, reader = pair.ends
    ticket = sent(pair.give(7))
    assert pair.give(8) is None, "it has not even been looked at"
    found = reader.take(ticket)
    assert pair.give(9) is None, "the copy is queued"
    reader.let_go()
    assert pair.give(9) is None
    assert not giver.all_read
    pair.devices[1].advance()
    reader.let_go()
    assert giver.all_read
    again = sent(pair.give(10))
    assert (found == 7).all()
    found = reader.take(again)
    pair.devices[1].advance()
    assert (found == 10).all()


def test_what_was_queued_before_does_not_write_into_what_is_received() -> None:
    pair = Pair()
    reader = pair.devices[1]
    ticket = sent(pair.give(7))
    temporary = reader.empty(GRAIN)
    reader.launch(lambda: temporary.fill_(1))
    reader.free(temporary)
    found = pair.ends[1].take(ticket)
    assert found.data_ptr() == temporary.data_ptr(), "the test can tell"
    reader.advance()
    assert (found == 7).all()


def test_what_uses_it_afterwards_is_behind_the_copy_in_another_stream_too() -> None:
    pair = Pair()
    reader = pair.devices[1]
    ticket = sent(pair.give(7))
    seen: list[int] = []
    pair.ends[1].take(ticket)
    with reader.stream("training"):
        same = pair.ends[1].take(ticket)
        reader.launch(lambda: seen.append(int(same[0])))
    reader.advance(stream="training")
    assert seen == [7]


def test_memory_is_not_given_away_while_another_stream_reads_it() -> None:
    pair = Pair()
    reader = pair.devices[1]
    ticket = sent(pair.give(7))
    seen: list[int] = []
    found = pair.ends[1].take(ticket)
    reader.advance()
    with reader.stream("training"):
        same = pair.ends[1].take(ticket)
        reader.launch(lambda: seen.append(int(same[0])))
    reader.free(found)
    other = reader.empty(GRAIN)
    reader.launch(lambda: other.fill_(1))
    reader.advance(stream="serving")
    reader.advance(stream="training")
    assert seen == [7]


def test_a_ticket_is_read_once_and_may_be_taken_again() -> None:
    pair = Pair(grains=1)
    ticket = sent(pair.give(7))
    pair.devices[1].full = True
    with pytest.raises(torch.OutOfMemoryError):
        pair.ends[1].take(ticket)
    assert pair.give(8) is None, "it is still to be read"
    pair.devices[1].full = False
    first = pair.ends[1].take(ticket)
    pair.devices[1].advance()
    pair.ends[1].let_go()
    assert pair.give(8) is not None
    assert pair.ends[1].take(ticket) is first, "not what is in the room now"
    assert (first == 7).all()


def test_the_giver_has_it_too() -> None:
    """The first stage sends the sum of the tied gradients, and steps by it."""
    pair = Pair(grains=1)
    ticket = pair.give(7)
    arrived = sent(ticket)
    pair.ends[1].take(arrived)
    pair.devices[1].advance()
    pair.ends[1].let_go()
    assert pair.give(8) is not None, "the room is another's now"
    assert ticket is not None
    assert (pair.ends[0].take(ticket) == 7).all()


def test_what_is_measured_takes_no_room() -> None:
    pair = Pair(grains=1)
    pair.ends[0].unread = True
    for value in (7, 8):
        ticket = pair.give(value)
        assert ticket is not None
        assert (pair.ends[0].take(ticket) == value).all()


@dataclass
class UnderWay:
    """A tensor full of `value`, as the other stage is told of it; no ticket where it goes by the host."""

    value: int
    nbytes: int
    ticket: Ticket | None


class Traffic:
    """Both stages give and take in any order, with kernels that write into freed memory, and devices that lag behind."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.pair = Pair(grains=6)
        self.arrived: list[deque[UnderWay]] = [deque(), deque()]
        self.refused = 0
        self.seen: list[tuple[UnderWay, list[int]]] = []

    def give(self, stage: int, value: int) -> None:
        device, nbytes = self.pair.devices[stage], self.draw.choice((1, GRAIN - 1, GRAIN, 2 * GRAIN, 3 * GRAIN + 5))
        flat = device.empty(nbytes)
        device.launch(partial(flat.fill_, value))
        ticket = self.pair.ends[stage].give(flat)
        device.free(flat)
        self.refused += ticket is None
        self.arrived[1 - stage].append(UnderWay(value, nbytes, ticket and sent(ticket)))

    def take(self, stage: int) -> None:
        device, next_one = self.pair.devices[stage], self.arrived[stage].popleft()
        if next_one.ticket is None:
            return
        with device.stream(self.draw.choice(("serving", "training"))):
            found, seen = self.pair.ends[stage].take(next_one.ticket), list[int]()
            device.launch(partial(self.look, found, seen))
            device.free(found)
        self.seen.append((next_one, seen))

    def look(self, found: torch.Tensor, seen: list[int]) -> None:
        seen += [int(found.min()), int(found.max()), found.numel()]

    def go_on(self, stage: int) -> None:
        stream = self.draw.choice(("serving", "training"))
        self.pair.devices[stage].advance(self.draw.randrange(4), stream=stream)
        self.pair.ends[stage].let_go()


@pytest.mark.parametrize("seed", range(20))
def test_everything_arrives_as_it_was_whatever_the_devices_are_at(seed: int) -> None:
    traffic = Traffic(seed)
    for number in range(1, 251):
        stage = traffic.draw.randrange(2)
        match traffic.draw.randrange(3):
            case 0:
                traffic.give(stage, number)
            case 1 if traffic.arrived[stage]:
                traffic.take(stage)
            case _:
                traffic.go_on(stage)
    for device in traffic.pair.devices:
        device.advance(stream="serving")
        device.advance(stream="training")
    assert len(traffic.seen) > 20
    assert traffic.refused, "the region was full at times"
    for given, seen in traffic.seen:
        assert seen == [given.value, given.value, given.nbytes]


def test_rooms_are_the_first_gaps_that_are_large_enough() -> None:
    board = bytearray(8)
    rooms = Rooms(8 * GRAIN)
    assert [rooms.take(nbytes, board) for nbytes in (1, 2 * GRAIN, GRAIN + 1)] == [0, GRAIN, 3 * GRAIN]
    assert list(board) == [TAKEN, TAKEN, FREE, TAKEN, FREE, FREE, FREE, FREE]
    assert rooms.take(4 * GRAIN, board) is None
    board[1] = FREE
    assert rooms.take(3 * GRAIN, board) == 5 * GRAIN
    assert rooms.take(GRAIN, board) == GRAIN
    assert rooms.take(GRAIN, board) == 2 * GRAIN
    assert rooms.take(1, board) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wire_hands_tensors_on_and_sends_what_finds_no_room(dtype: torch.dtype) -> None:
    pair = Pair(grains=1, kind=PromptRegion)
    giver, reader = Wire(CPU), Wire(CPU)
    for wire, end in zip((giver, reader), pair.ends, strict=True):
        wire.connect(end)
    tensors = [torch.randn(2, 3, 5).to(dtype).transpose(0, 1), torch.randn(6, 4).to(dtype)]
    payloads = [giver.payload(tensor) for tensor in tensors]
    assert [payload.nbytes == Ticket.SIZE for payload in payloads] == [True, False]
    found = [reader.tensor(arrived(payload, reader)) for payload in payloads]
    for came, tensor in zip(found, tensors, strict=True):
        assert came.dtype == dtype
        assert torch.equal(came, tensor)
    # The room is free again, and what was sent before is not disturbed by what is there now.
    assert giver.payload(torch.ones(5)).nbytes == Ticket.SIZE
    assert torch.equal(found[0], tensors[0])
    assert torch.equal(giver.tensor(payloads[0]), tensors[0]), "the giver's own"


def test_a_received_tensor_of_the_size_of_a_ticket_is_none() -> None:
    pair = Pair(kind=PromptRegion)
    wire = Wire(CPU)
    wire.connect(pair.ends[1])
    tensor = torch.arange(float(Ticket.SIZE // 4))
    assert torch.equal(wire.tensor(arrived(wire.host_payload(tensor), wire)), tensor)


def test_an_arrival_lets_go_of_what_was_read_before() -> None:
    pair = Pair(grains=1)
    wire = Wire(CPU)
    wire.connect(pair.ends[1])
    pair.ends[1].take(sent(pair.give(7)))
    pair.devices[1].advance()
    assert pair.give(8) is None
    wire.buffer(12)
    assert pair.give(8) is not None


def arrived(payload: Payload, wire: Wire) -> Payload:
    """As MPI brings it."""
    memory: Any = wire.buffer(payload.nbytes)
    memory[:] = bytes(payload.data) if isinstance(memory, bytearray) else payload.data
    return Payload(payload.shape, payload.dtype, memory)
