"""A stand-in for a device whose kernels and copies run later: each stream is a queue, and the test says when it goes on.

Memory is given away as torch's allocator for CUDA does it: at once to whoever asks next in the same stream, whatever is still
queued there; after what other streams were recorded for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

Kernel = Callable[[], object]


@dataclass
class _Stream:
    queue: deque[tuple[_Mark | None, Kernel]] = field(default_factory=deque)
    launched: int = 0
    ran: int = 0
    given_away: list[tuple[torch.Tensor, list[_Mark]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Mark:
    stream: _Stream
    place: int

    def query(self) -> bool:
        return self.stream.ran >= self.place


class LateDevice:
    """`launch` queues on the current stream, `advance` runs a part of a queue. Reading memory shows what is there."""

    def __init__(self) -> None:
        self.streams = {"serving": _Stream(), "training": _Stream()}
        self._current = self.streams["serving"]
        self._recorded: dict[int, list[_Stream]] = {}
        self.full = False

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        before, self._current = self._current, self.streams[name]
        yield
        self._current = before

    def launch(self, kernel: Kernel, behind: _Mark | None = None) -> None:
        self._current.queue.append((behind, kernel))
        self._current.launched += 1

    def advance(self, count: int | None = None, stream: str | None = None) -> int:
        """Run so many kernels of one stream, or all of it; those that wait for another one let that go on. How many ran."""
        chosen = self._current if stream is None else self.streams[stream]
        return self._run(chosen, len(chosen.queue) if count is None else min(count, len(chosen.queue)))

    def mark(self) -> _Mark:
        return _Mark(self._current, self._current.launched)

    def settle(self) -> None:
        self.advance()

    def follow(self, mark: Any, memory: torch.Tensor) -> None:
        if mark is not None and mark.stream is not self._current:
            self.launch(lambda: None, behind=mark)
        self._recorded.setdefault(memory.data_ptr(), []).append(self._current)

    def empty(self, nbytes: int) -> torch.Tensor:
        if self.full:
            raise torch.OutOfMemoryError("nothing is left")
        for index, (memory, marks) in enumerate(self._current.given_away):
            if memory.numel() == nbytes and all(mark.query() for mark in marks):
                return self._current.given_away.pop(index)[0]
        return torch.zeros(nbytes, dtype=torch.uint8)

    def free(self, memory: torch.Tensor) -> None:
        """As the last reference to memory of the current stream goes."""
        others = [stream for stream in self._recorded.pop(memory.data_ptr(), []) if stream is not self._current]
        self._current.given_away.append((memory, [_Mark(stream, stream.launched) for stream in others]))

    def _run(self, stream: _Stream, count: int) -> int:
        for _ in range(count):
            behind, kernel = stream.queue.popleft()
            if behind is not None:
                self._run(behind.stream, max(0, behind.place - behind.stream.ran))
            kernel()
            stream.ran += 1
        return count


class LateRegion(LateDevice):
    """What a hand-over needs of such a device: `lemix_hpc.engines.torch.peer_trial.Region`. `host`: all regions by handle."""

    def __init__(self, nbytes: int, host: dict[bytes, torch.Tensor]) -> None:
        super().__init__()
        self.memory = torch.zeros(nbytes, dtype=torch.uint8)
        self.handle = f"region {len(host)}".encode()
        self.opened: dict[int, torch.Tensor] = {}
        self.given_back = False
        self._host = host
        host[self.handle] = self.memory

    def open(self, owner: int, handle: bytes) -> None:
        self.opened[owner] = self._host[handle]

    def write(self, source: torch.Tensor, offset: int) -> None:
        self.launch(lambda: self.memory[offset : offset + source.numel()].copy_(source))

    def read(self, owner: int, offset: int, target: torch.Tensor) -> None:
        region = self.opened[owner]
        self.launch(lambda: target.copy_(region[offset : offset + target.numel()]))

    def close(self) -> None:
        self.opened.clear()

    def give_back(self) -> None:
        self.given_back = True


class PromptRegion(LateRegion):
    """One that runs everything as it is launched: for stages whose kernels are torch's on a CPU."""

    def launch(self, kernel: Kernel, behind: _Mark | None = None) -> None:
        super().launch(kernel, behind)
        self.advance()
