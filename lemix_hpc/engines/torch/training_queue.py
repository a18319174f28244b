"""Where a stage's training is launched. On a GPU it runs beside serving, on a stream that goes behind, one piece ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import torch

from lemix_hpc.engines.protocol import Work

T = TypeVar("T")
R = TypeVar("R")


class TrainingQueue(Protocol):
    """Runs training in its order. Whatever a work returns is complete: the host and every stream may read it."""

    def work(self, pieces: Work[T], end: Callable[[T], R]) -> Work[R]:
        """The pieces, and then `end` of what they return."""
        ...

    def inside(self) -> AbstractContextManager[None]:
        """What is called in here runs behind all training, and behind what serving has launched before."""
        ...

    def join(self) -> None:
        """What serving launches from here on runs behind all training."""
        ...


class InPlace:
    """On a CPU a piece has ended when its call returns."""

    def work(self, pieces: Work[T], end: Callable[[T], R]) -> Work[R]:
        return end((yield from pieces))

    def inside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None:
        """Nothing is under way."""


class Mark(Protocol):
    """A place in a stream."""

    def query(self) -> bool:
        """Whether the device has got there."""
        ...


class Stream(Protocol):
    """What training needs of a device's stream."""

    def inside(self) -> AbstractContextManager[None]:
        """Launch into this stream, behind what the current one has been given so far."""
        ...

    def mark(self) -> Mark:
        """The end of what this stream has been given so far."""
        ...

    def join(self) -> None:
        """Let the current stream go on behind what this one has been given so far."""
        ...


class OneAhead:
    """Launches a piece while the device runs the one before, and never more: so the device need not wait for the host, and
    little is queued that a request could have to wait for.

    While it waits for the device it yields: the stage's loop may launch serving meanwhile, on the current stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def work(self, pieces: Work[T], end: Callable[[T], R]) -> Work[R]:
        before: Mark | None = None
        try:
            while True:
                with self._stream.inside():
                    try:
                        next(pieces)
                    except StopIteration as stop:
                        value: T = stop.value
                        break
                launched = self._stream.mark()
                yield
                while before is not None and not before.query():
                    yield
                before = launched
        finally:
            pieces.close()  # a work that is dropped drops what it had begun
        last = self._stream.mark()
        while not last.query():
            yield
        with self._stream.inside():
            return end(value)

    def inside(self) -> AbstractContextManager[None]:
        return self._stream.inside()

    def join(self) -> None:
        self._stream.join()


class CudaStream:
    """A stream of a GPU. Serving's has the highest priority (see `devices.take`), this one the lowest.

    Memory that is allocated inside is given again only inside, where everything is in order with what the current stream did
    before: nothing has to be recorded for tensors that serving's stream reads.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=0)  # type: ignore[no-untyped-call]

    @contextmanager
    def inside(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Mark:
        event: Mark = self._stream.record_event()
        return event

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def training_queue(device: torch.device) -> TrainingQueue:
    return OneAhead(CudaStream(device)) if device.type == "cuda" else InPlace()
