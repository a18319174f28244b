"""Run by test_mailbox.py on 3 ranks: everyone sends to everyone, with and without tensors of all sizes, in order."""

import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

from lemix_hpc.engines.host_files import forget_shared_memory
from lemix_hpc.engines.protocol import Payload
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.idle_wait import make_waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox

SIZES = (0, 1, 1000, 3_000_000)
COUNT = 40

comm = MPI.COMM_WORLD.Dup()
rank, size = comm.Get_rank(), comm.Get_size()
host = comm.Split_type(MPI.COMM_TYPE_SHARED)
forget_shared_memory(host)
bell = hang_doorbell(comm, host)
waiter = make_waiter(host, bell, "backoff")
mailbox = Mailbox(comm, Inbox.STAGE, bell)
seen: dict[int, int] = dict.fromkeys(range(size), 0)
for number in range(COUNT):
    for other in range(size):
        elements = SIZES[number % len(SIZES)]
        tensor = Payload((elements,), "float32", np.full(elements, rank * 1000 + number, dtype=np.float32))
        mailbox.send(other, Inbox.STAGE, m.Backward(number), tensor if number % 3 else None)
while any(count < COUNT for count in seen.values()) or not mailbox.sent_all:
    mails = mailbox.poll()
    for mail in mails:
        number = seen[mail.source]
        assert mail.message == m.Backward(number), (mail, number)
        if number % 3:
            assert mail.payload is not None
            data = np.frombuffer(mail.payload.data, dtype=np.float32)
            assert mail.payload.shape == (SIZES[number % len(SIZES)],) == data.shape
            assert (data == mail.source * 1000 + number).all()
        else:
            assert mail.payload is None
        seen[mail.source] += 1
    if not mails:
        waiter.idle(in_transit=mailbox.in_transit)
assert not mailbox.in_transit
shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "sm_segment" in line]
assert shared and all(line.endswith("(deleted)") for line in shared), shared
print(f"rank {rank}: all {COUNT * size} messages in order", file=sys.stderr)
