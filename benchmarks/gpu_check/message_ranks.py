"""Run by copies.py, one of two ranks: tensors go to the other rank's device and back, through the runtime's mailbox.

Arguments: the device, and `host` or `ipc` for the way.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import torch
from mpi4py import MPI

from lemix_hpc.engines.torch.cuda_ipc import CudaRegion, CudaRuntime
from lemix_hpc.engines.torch.hand_over import HandOver, Ticket
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.peer_trial import connect
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox

REPEATS = 20
LARGEST = 1 << 26


def main() -> None:
    device = torch.device(sys.argv[1])
    comm = MPI.COMM_WORLD.Dup()
    rank = comm.Get_rank()
    bell = hang_doorbell(comm, comm.Split_type(MPI.COMM_TYPE_SHARED))
    wire = Wire(device)
    if by_ipc := sys.argv[2] == "ipc":
        hand_over = connect(
            comm, device, 2 * LARGEST, lambda nbytes: CudaRegion(device, nbytes, CudaRuntime.of_torch())
        )
        if not isinstance(hand_over, HandOver):
            sys.exit(f"not by CUDA IPC: {hand_over}")
        wire.connect(hand_over)
    mailbox = Mailbox(comm, Inbox.STAGE, bell, wire.buffer)

    def receive() -> Mail:
        while not (arrived := mailbox.poll()):
            pass
        [mail] = arrived
        return mail

    found = {}
    for nbytes in (2, 1 << 16, 1 << 20, 1 << 24, LARGEST):
        tensor = torch.arange(nbytes // 2, device=device).to(torch.bfloat16)
        took = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            if rank == 0:
                mailbox.send(1, Inbox.STAGE, m.Echo(), wire.payload(tensor))
            mail = receive()
            assert mail.payload is not None
            assert not by_ipc or mail.payload.nbytes == Ticket.SIZE, "there is room for it"
            came = wire.tensor(mail.payload)
            if rank == 1:
                mailbox.send(0, Inbox.STAGE, m.Echo(), wire.payload(came))
            elif device.type == "cuda":
                torch.cuda.synchronize()
            took.append(1e3 * (time.perf_counter() - began))
            while not mailbox.sent_all:
                pass
        assert torch.equal(came, tensor), f"{nbytes} bytes came back changed"
        found[nbytes] = float(f"{median(took[5:]):.4g}")
    if rank == 0:
        print(json.dumps(found), flush=True)


main()
