"""What a sum over nodes costs: by messages, by the size of the parts that it is cut into, and by torch's all-reduce.

    python benchmarks/ring_parts.py [--ranks 2] [--mib 256] [--parts 0.25 1 4 16 64] [--rounds 5] [--json]

MPI ranks of this machine sum a vector of so many MiB by `lemix_hpc.runtime.stage.ring_allreduce`, with the mailboxes of stages.
For each size of a part [MiB]: seconds for each GiB of the vector, and milliseconds of the longest piece of work, for which a
request would have to wait. The last row is gloo, as with `training.sums: collective`. All take turns; medians over the rounds,
of the slowest rank.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from mpi4py import MPI

from lemix_hpc.engines.protocol import Payload, Vector
from lemix_hpc.engines.torch.collective_sums import CollectiveSums, connect
from lemix_hpc.launch.local import environment, mpiexec_command
from lemix_hpc.runtime.stage.ring_allreduce import Ring, RingChunk
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox

MIB = 1 << 20
ELEMENT = 4
WHOLE = 0.0
"""In the place of the size of a part: torch's all-reduce."""


def one_sum(mailbox: Mailbox, rank: int, ranks: int, own: Vector, part: int) -> tuple[float, float]:
    """Seconds of a sum, and of its longest piece of work."""
    ring, longest, began = Ring(rank, ranks, part=part), 0.0, time.perf_counter()
    ring.begin(own)
    while not ring.complete or ring.ready or not mailbox.sent_all:
        for mail in mailbox.poll():
            assert isinstance(mail.message, m.RingPart) and mail.payload is not None, "nothing else is sent"
            came = mail.message
            ring.feed(RingChunk(came.round, came.index, came.hops, np.frombuffer(mail.payload.data, np.float32)))
        if ring.ready:
            at = time.perf_counter()
            given = ring.advance()
            if given is not None:
                payload = Payload(given.values.shape, "float32", given.values)
                message = m.RingPart(given.round, given.index, given.hops)
                mailbox.send((rank + 1) % ranks, Inbox.STAGE, message, payload)
            longest = max(longest, time.perf_counter() - at)
    return time.perf_counter() - began, longest


def one_collective_sum(sums: CollectiveSums, own: Vector) -> tuple[float, float]:
    """The same, by torch."""
    gradient, longest, began = torch.from_numpy(own.copy()), 0.0, time.perf_counter()
    at = began
    for _ in sums.sum([gradient]):
        longest, at = max(longest, time.perf_counter() - at), time.perf_counter()
    return time.perf_counter() - began, longest


def measure(mib: float, parts: list[float], rounds: int) -> list[dict[str, float]] | None:
    """On every rank; the rows on the first one."""
    comm = MPI.COMM_WORLD.Dup()
    rank, ranks = comm.Get_rank(), comm.Get_size()
    mailbox = Mailbox(comm, Inbox.STAGE, hang_doorbell(comm, comm.Split_type(MPI.COMM_TYPE_SHARED)))
    own = np.full(round(mib * MIB / ELEMENT), rank + 1.0, dtype=np.float32)
    collective = connect(torch.device("cpu"), 0, comm)
    assert collective is not None, "all of them sum"
    took: dict[float, list[tuple[float, float]]] = {part: [] for part in [*parts, WHOLE]}
    for _ in range(rounds):
        for part, all_times in took.items():
            comm.Barrier()
            if part == WHOLE:
                mine = one_collective_sum(collective, own)
            else:
                mine = one_sum(mailbox, rank, ranks, own, round(part * MIB / ELEMENT))
            slowest, longest = (max(each) for each in zip(*comm.allgather(mine), strict=True))
            all_times.append((slowest, longest))
    collective.close()
    if rank:
        return None
    medians = {part: [statistics.median(column) for column in zip(*each, strict=True)] for part, each in took.items()}
    return [
        {"part_mib": part, "s_per_gib": seconds * 1024 / mib, "longest_ms": 1e3 * longest}
        for part, (seconds, longest) in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=float, default=256.0)
    parser.add_argument("--parts", type=float, nargs="+", default=[0.25, 1.0, 4.0, 16.0, 64.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if MPI.COMM_WORLD.Get_size() == 1:
        command = mpiexec_command(args.ranks, [sys.executable, "-m", "mpi4py", *sys.argv])
        sys.exit(subprocess.run(command, env=environment(), check=False).returncode)
    rows = measure(args.mib, args.parts, args.rounds)
    if rows is None:
        return
    if args.json:
        print(json.dumps(rows))
        return
    print("  part MiB  s per GiB  longest piece ms")
    for row in rows:
        part = "all-reduce" if row["part_mib"] == WHOLE else f"{row['part_mib']:g}"
        print(f"{part:>10}  {row['s_per_gib']:9.2f}  {row['longest_ms']:16.2f}")


if __name__ == "__main__":
    main()
