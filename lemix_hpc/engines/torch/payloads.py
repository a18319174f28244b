"""Tensors as payloads that MPI can send, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lemix_hpc.engines.protocol import Payload
from lemix_hpc.engines.torch.hand_over import HandOver, Ticket

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HANDED_ON = "@device"
"""Behind the name of a type: the payload is a ticket, and the tensor lies where that says."""


class Wire:
    """Payloads of tensors on one device.

    On the CPU a payload is a view of the tensor and a received buffer becomes the tensor: no copy. On CUDA both go
    through pinned host memory, unless `device_buffers` says that the MPI library can send device memory itself, or a hand-over
    is connected: then payloads are tickets for it, as long as it has room.
    """

    def __init__(self, device: torch.device, *, device_buffers: bool = False) -> None:
        self._device = device
        self._on_host = device.type == "cpu" or not device_buffers
        # MPI writes at once, whatever is queued. Memory of a stream that runs nothing has no kernel that may still write to it.
        self._receiving = None if self._on_host else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._hand_over: HandOver | None = None

    def connect(self, hand_over: HandOver) -> None:
        """Hand tensors on by this from here on."""
        self._hand_over = hand_over

    def payload(self, tensor: torch.Tensor) -> Payload:
        """For one other stage of the node, or this one. The payload stays valid as long as the tensor is not written to."""
        if self._hand_over is not None and tensor.numel():
            ticket = self._hand_over.give(_bytes(tensor))
            if ticket is not None:
                return _payload(tensor, ticket, HANDED_ON)
        return self.host_payload(tensor) if self._on_host else _payload(tensor, self._settled(_bytes(tensor)))

    def host_payload(self, tensor: torch.Tensor) -> Payload:
        """The same in host memory, whatever MPI can send: a view on the CPU, a copy of a CUDA tensor."""
        return _payload(tensor, _on_host(_bytes(tensor)))

    def tensor(self, payload: Payload) -> torch.Tensor:
        """The tensor takes the payload's memory over where it can."""
        data, name = payload.data, payload.dtype
        if name.endswith(HANDED_ON):
            assert self._hand_over is not None, "all stages of a node are connected, or none"
            name = name.removesuffix(HANDED_ON)
            flat = self._hand_over.take(data)
        elif isinstance(data, torch.Tensor):
            flat = data
            flat.record_stream(
                torch.cuda.current_stream(self._device)
            )  # it is received into again only after its last use
        else:
            flat = torch.frombuffer(data, dtype=torch.uint8)
        return flat.to(self._device).view(DTYPES[name]).view(payload.shape)

    def buffer(self, nbytes: int) -> Any:
        if self._hand_over is not None:
            self._hand_over.let_go()  # others may wait for room
            if nbytes == Ticket.SIZE:
                return Ticket(nbytes)
        if self._receiving is not None:
            with torch.cuda.stream(self._receiving):
                return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        if self._device.type == "cpu":
            return np.empty(nbytes, dtype=np.uint8)
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()

    def close(self) -> None:
        """The last call."""
        if self._hand_over is not None:
            self._hand_over.close()

    def _settled(self, flat: torch.Tensor) -> torch.Tensor:
        # MPI does not know of CUDA streams: what it sends must be finished.
        torch.cuda.current_stream(self._device).synchronize()
        return flat


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _on_host(flat: torch.Tensor) -> np.ndarray:
    if flat.device.type == "cpu":
        return flat.numpy()
    pinned = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True)
    return pinned.copy_(flat).numpy()


def _payload(tensor: torch.Tensor, data: Any, where: str = "") -> Payload:
    return Payload(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.") + where, data)
