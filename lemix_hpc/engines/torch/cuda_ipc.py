"""Memory of a GPU that other processes of the host map (CUDA IPC), by the CUDA runtime that torch has loaded.

Not torch's own sharing of tensors: that opens and closes the sender's memory for every tensor, leaves an event behind with each
in the receiver, and lets go of one only after a wait for the whole stream.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from lemix_hpc.engines.torch.loaded_library import loaded_library
from lemix_hpc.engines.torch.training_queue import Mark

LAZY_PEER_ACCESS = 1
ANY_DIRECTION = 4


class CudaError(RuntimeError):
    """What the CUDA runtime says."""


class _Handle(ctypes.Structure):
    """cudaIpcMemHandle_t."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


class CudaRuntime:
    """The calls that are needed of libcudart, on the current device. They raise CudaError."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        pointer, place = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        self._declare("cudaMalloc", place, ctypes.c_size_t)
        self._declare("cudaFree", pointer)
        self._declare("cudaIpcGetMemHandle", ctypes.POINTER(_Handle), pointer)
        self._declare("cudaIpcOpenMemHandle", place, _Handle, ctypes.c_uint)
        self._declare("cudaIpcCloseMemHandle", pointer)
        self._declare("cudaMemcpyAsync", pointer, pointer, ctypes.c_size_t, ctypes.c_int, pointer)
        self._declare("cudaGetLastError")
        library.cudaGetErrorString.argtypes = [ctypes.c_int]
        library.cudaGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def of_torch(cls) -> CudaRuntime:
        """Raises CudaError where torch has loaded none, as in builds for CPUs and for other GPUs."""
        library = loaded_library("libcudart")
        if library is None:
            raise CudaError("torch has not loaded libcudart")
        return cls(library)

    def malloc(self, nbytes: int) -> int:
        place = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(place), nbytes)
        return place.value or 0

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def handle(self, address: int) -> bytes:
        """By which another process opens memory of `malloc`."""
        handle = _Handle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), address)
        return bytes(handle)

    def open(self, handle: bytes) -> int:
        """Map another process's memory, of this GPU or of one that this one reaches. Once for each."""
        place = ctypes.c_void_p()
        self._call("cudaIpcOpenMemHandle", ctypes.byref(place), _Handle.from_buffer_copy(handle), LAZY_PEER_ACCESS)
        return place.value or 0

    def close(self, address: int) -> None:
        self._call("cudaIpcCloseMemHandle", address)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy on a stream, between any memory of GPUs."""
        self._call("cudaMemcpyAsync", target, source, nbytes, ANY_DIRECTION, stream)

    def _declare(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.argtypes, function.restype = list(arguments), ctypes.c_int

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            # Else torch would take it for an error of the kernel that it launches next.
            self._library.cudaGetLastError()
            raise CudaError(f"{name}: {self._library.cudaGetErrorString(code).decode()}")


class CudaRegion:
    """This stage's region on a GPU, and the regions of others: `lemix_hpc.engines.torch.hand_over.PeerCopies`.

    Raises CudaError if the memory is not there or cannot be shared.
    """

    def __init__(self, device: torch.device, nbytes: int, runtime: CudaRuntime) -> None:
        self._device = device
        self._runtime = runtime
        self._opened: dict[int, int] = {}
        with torch.cuda.device(device):
            self._address = runtime.malloc(nbytes)
            self.handle = runtime.handle(self._address)

    def open(self, owner: int, handle: bytes) -> None:
        """Map the region of stage `owner`."""
        with torch.cuda.device(self._device):
            self._opened[owner] = self._runtime.open(handle)

    def write(self, source: torch.Tensor, offset: int) -> None:
        self._copy(self._address + offset, source.data_ptr(), source.numel())

    def settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def read(self, owner: int, offset: int, target: torch.Tensor) -> None:
        self._copy(target.data_ptr(), self._opened[owner] + offset, target.numel())

    def mark(self) -> Mark:
        event: Mark = torch.cuda.current_stream(self._device).record_event()
        return event

    def follow(self, mark: Any, memory: torch.Tensor) -> None:
        stream = torch.cuda.current_stream(self._device)
        if mark is not None:
            stream.wait_event(mark)
        memory.record_stream(stream)

    def close(self) -> None:
        """Own memory stays until the process ends: others may still have it mapped."""
        for address in self._opened.values():
            self._runtime.close(address)
        self._opened.clear()

    def give_back(self) -> None:
        """Of a region that nobody has mapped any more."""
        self._runtime.free(self._address)

    def _copy(self, target: int, source: int, nbytes: int) -> None:
        stream = torch.cuda.current_stream(self._device)
        self._runtime.copy(target, source, nbytes, stream.cuda_stream)
