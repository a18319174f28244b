"""Run by test_cuda_ipc.py on 2 ranks that share a GPU: tensors of queued kernels, whose memory is freed at once."""

import sys
from typing import Any

import torch
from mpi4py import MPI

from lemix_hpc.engines.torch.cuda_ipc import CudaRegion, CudaRuntime
from lemix_hpc.engines.torch.devices import take
from lemix_hpc.engines.torch.hand_over import HandOver, Ticket
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.peer_trial import connect
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox

ROUNDS, LENGTH = 60, 1 << 22
SLEEP_CYCLES = 5_000_000
device = torch.device("cuda:0")
take(device)
comm = MPI.COMM_WORLD.Dup()
rank = comm.Get_rank()
hand_over = connect(comm, device, 4 * 4 * LENGTH, lambda nbytes: CudaRegion(device, nbytes, CudaRuntime.of_torch()))
assert isinstance(hand_over, HandOver), hand_over
wire = Wire(device)
wire.connect(hand_over)
mailbox = Mailbox(comm, Inbox.STAGE, hang_doorbell(comm, comm.Split_type(MPI.COMM_TYPE_SHARED)), wire.buffer)
training = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def queue_writers(value: float) -> None:
    """Kernels that run later, and write into memory that is free by then."""
    torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
    for _ in range(3):
        temporary = torch.full((LENGTH,), value, device=device)
        del temporary


def give() -> int:
    handed_on = 0
    for number in range(ROUNDS):
        queue_writers(-1.0)
        tensor = torch.full((LENGTH,), float(number), device=device)
        payload = wire.payload(tensor)
        handed_on += payload.nbytes == Ticket.SIZE
        mailbox.send(1, Inbox.STAGE, m.Backward(number), payload)
        del tensor, payload
        queue_writers(-2.0)
    while not mailbox.sent_all:
        pass
    return handed_on


def receive() -> int:
    right: list[Any] = []
    while len(right) < ROUNDS:
        for mail in mailbox.poll():
            assert mail.payload is not None
            queue_writers(-3.0)
            found = wire.tensor(mail.payload)
            with torch.cuda.stream(training):
                # As a pass that is run again: in another stream, without a wait of the host.
                again = wire.tensor(mail.payload)
                right.append((again == float(len(right))).all())
            del found, again
    torch.cuda.synchronize()
    return sum(bool(each) for each in right)


count = give() if rank == 0 else receive()
comm.Barrier()
# The receiver may have to let go of the last ones.
wire.buffer(1)
comm.Barrier()
assert hand_over.all_read
wire.close()
comm.Barrier()
print(f"rank {rank}: {count} of {ROUNDS}", file=sys.stderr)
