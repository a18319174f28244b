"""Run by test_cuda_ipc.py on 3 ranks: stages of a node hand tensors on, with the messages of the runtime's mailbox.

The CUDA runtime is a stand-in on shared memory of the host, and so are torch's streams; all else is as on GPUs.
"""

import contextlib
import ctypes
import sys
from typing import Any

import torch
from mpi4py import MPI

from lemix_hpc.engines.torch.cuda_ipc import CudaRegion, CudaRuntime
from lemix_hpc.engines.torch.hand_over import HandOver, Ticket
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.peer_trial import connect, others
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.idle_wait import make_waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox

ROUNDS = 60
CPU = torch.device("cpu")


class Stream:
    """All that is given to it has run."""

    cuda_stream = 7

    def synchronize(self) -> None:
        """Nothing is queued."""

    def record_event(self) -> "Stream":
        return self

    def query(self) -> bool:
        return True


instead: Any = torch.cuda
instead.device = lambda _: contextlib.nullcontext()
instead.current_stream = lambda _: Stream()
runtime = CudaRuntime(ctypes.CDLL(sys.argv[1]))
comm = MPI.COMM_WORLD.Dup()
rank, size = comm.Get_rank(), comm.Get_size()
regions: list[CudaRegion] = []


def make(nbytes: int) -> CudaRegion:
    regions.append(CudaRegion(CPU, nbytes, runtime))
    return regions[-1]


# One stage has too little memory: nothing is left of the try.
failed = connect(comm, CPU, 1 << 41 if rank == 1 else 0, make)
assert failed == "stage 1: CudaError: cudaMalloc: out of memory", failed
assert runtime._library.cudaGetLastError() == 0, "torch would take it for its own"
regions.clear()
hand_over = connect(comm, CPU, 8 << 20, make)
assert isinstance(hand_over, HandOver), hand_over
wire = Wire(CPU)
wire.connect(hand_over)
host = comm.Split_type(MPI.COMM_TYPE_SHARED)
bell = hang_doorbell(comm, host)
waiter = make_waiter(host, bell, "backoff")
mailbox = Mailbox(comm, Inbox.STAGE, bell, wire.buffer)
print(f"rank {rank}: connected", file=sys.stderr, flush=True)
handed_on = 0
arrived: dict[int, list[Any]] = {other: [] for other in others(rank, size)}
for number in range(ROUNDS):
    for other in others(rank, size):
        tensor = torch.arange(1 + (number * 7919) % 500_000, dtype=torch.float32) + 1000 * rank + number
        payload = wire.payload(tensor)
        handed_on += payload.nbytes == Ticket.SIZE
        mailbox.send(other, Inbox.STAGE, m.Backward(number), payload)
    while any(len(came) <= number for came in arrived.values()):
        mails = mailbox.poll()
        if not mails:
            waiter.idle(in_transit=mailbox.in_transit)
        for mail in mails:
            assert mail.payload is not None
            came, length = arrived[mail.source], 1 + (len(arrived[mail.source]) * 7919) % 500_000
            assert mail.message == m.Backward(len(came)), mail.message
            found = wire.tensor(mail.payload)
            assert torch.equal(found, torch.arange(length, dtype=torch.float32) + 1000 * mail.source + len(came))
            came.append(None)
while not mailbox.sent_all:
    mailbox.poll()
comm.Barrier()
assert hand_over.all_read
wire.close()
comm.Barrier()
regions[0].give_back()
print(f"rank {rank}: {handed_on} of {ROUNDS * len(arrived)} handed on", file=sys.stderr)
