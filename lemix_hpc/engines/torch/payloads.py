"""Tensors as payloads that MPI can send, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lemix_hpc.engines.protocol import Payload

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Wire:
    """Payloads of tensors on one device.

    On the CPU a payload is a view of the tensor and a received buffer becomes the tensor: no copy. On CUDA both go
    through pinned host memory, unless `device_buffers` says that the MPI library can send device memory itself.
    """

    def __init__(self, device: torch.device, *, device_buffers: bool = False) -> None:
        self._device = device
        self._on_host = device.type == "cpu" or not device_buffers
        # MPI writes at once, whatever is queued. Memory of a stream that runs nothing has no kernel that may still write to it.
        self._receiving = None if self._on_host else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def payload(self, tensor: torch.Tensor) -> Payload:
        """The payload stays valid as long as the tensor is not written to."""
        return self.host_payload(tensor) if self._on_host else _payload(tensor, self._settled(_bytes(tensor)))

    def host_payload(self, tensor: torch.Tensor) -> Payload:
        """The same in host memory, whatever MPI can send: a view on the CPU, a copy of a CUDA tensor."""
        return _payload(tensor, _on_host(_bytes(tensor)))

    def tensor(self, payload: Payload) -> torch.Tensor:
        """The tensor takes the payload's memory over where it can."""
        data = payload.data
        if isinstance(data, torch.Tensor):
            flat = data
            flat.record_stream(
                torch.cuda.current_stream(self._device)
            )  # it is received into again only after its last use
        else:
            flat = torch.frombuffer(data, dtype=torch.uint8)
        return flat.to(self._device).view(DTYPES[payload.dtype]).view(payload.shape)

    def buffer(self, nbytes: int) -> Any:
        if self._receiving is not None:
            with torch.cuda.stream(self._receiving):
                return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        if self._device.type == "cpu":
            return np.empty(nbytes, dtype=np.uint8)
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()

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


def _payload(tensor: torch.Tensor, data: Any) -> Payload:
    return Payload(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), data)
