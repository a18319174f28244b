"""Run by test_collective_sums.py: ranks of two nodes of two stages connect and sum; a third node trains with no other."""

import json
import socket
import sys
from typing import Any

import torch
from mpi4py import MPI

from lemix_hpc.config.errors import UserError
from lemix_hpc.engines.torch import collective_sums, devices

SUM_FAILS_ON = 3


def main(how: str) -> None:
    comm = MPI.COMM_WORLD
    rank = comm.Get_rank()
    node, stage = divmod(rank, 2)
    device = torch.device("cpu")
    if how == "gpus":
        node, stage, device = rank, 0, torch.device("cuda", rank)
        devices.take(device)
    if how == "one" and rank == SUM_FAILS_ON:
        look = collective_sums._why_wrong
        collective_sums._why_wrong = lambda *of: look(*of) or "the sum is wrong"
    if how == "no port" and rank == 0:
        collective_sums.MEET_S = 2
        socket.gethostname = lambda: "no.such.host.invalid"
    told: list[Any]
    try:
        sums = collective_sums.connect(device, stage if node < 2 else -1, comm)
    except UserError as error:
        told = [str(error)]
    else:
        tensors = [torch.full((3,), float(rank), device=device), torch.full((2, 2), 10.0 * rank, device=device)]
        if sums is not None:
            for _ in sums.sum(tensors):
                pass
            sums.close()
        told = [tensor.view(-1).tolist() for tensor in tensors]
    gathered = comm.gather(told)
    if rank == 0:
        print(json.dumps(gathered))


if __name__ == "__main__":
    main(sys.argv[1])
