"""The way between vLLM's engine process and the stages of its node, all on one host.

Every stage listens on a Unix socket in a directory that only the user may enter, which is what protects it. The first
stage has a second connection on which it asks for leave to change the weights; the answer comes on the first, in order
with the batches.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from lemix_hpc.engines.protocol import ServeBatch

RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Call:
    """Engine to stage: call a method of the worker. A function travels as cloudpickle bytes and gets the worker first."""

    method: str | bytes
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """Stage to engine: what a call returned, or the text of what it raised."""

    value: Any
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Engine to first stage: run this batch."""

    batch: ServeBatch


@dataclass(frozen=True, slots=True)
class Sample:
    """Engine to last stage: what bounds the choice of tokens in the batch that comes next in order."""

    grammar: Any


@dataclass(frozen=True, slots=True)
class Output:
    """Last stage to engine: the model runner's output of the next batch in order."""

    value: Any


@dataclass(frozen=True, slots=True)
class Passed:
    """First stage to engine: it has run the next batch in order, and handed it on."""


@dataclass(frozen=True, slots=True)
class Ask:
    """First stage to engine: the next weight version is ready."""


@dataclass(frozen=True, slots=True)
class Bye:
    """Engine to stage: no more calls."""


def address(directory: Path, stage: int) -> str:
    """Where a stage listens."""
    return str(directory / f"stage-{stage}")


def listen(directory: Path, stage: int) -> Listener:
    """Wait for connections here; `accept` gives one. The backlog holds those that come before."""
    return Listener(address(directory, stage), family="AF_UNIX", backlog=2)


def connect(directory: Path, stage: int, timeout: float) -> Connection:
    """A connection to a stage that may still have to come up. Raises TimeoutError after so many seconds."""
    end = time.monotonic() + timeout
    while True:
        try:
            return Client(address(directory, stage), family="AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise TimeoutError(f"stage {stage} did not answer within {timeout:g} s") from None
            time.sleep(RETRY_S)


def send(connection: Connection, message: Any) -> None:
    """Send a message by value. (`Connection.send` would pass tensors on as files of shared memory.)"""
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    """The next message; waits for it. Raises EOFError once the other side has closed and nothing is left."""
    return pickle.loads(connection.recv_bytes())


def arrived(connection: Connection) -> Iterator[Any]:
    """Everything that has come, one by one. Raises EOFError once the other side has closed and nothing is left."""
    while connection.poll():
        yield receive(connection)
