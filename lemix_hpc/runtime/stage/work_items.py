"""What waits on a stage, and what has been started there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lemix_hpc.engines.protocol import Payload
from lemix_hpc.engines.protocol import Work as EngineWork
from lemix_hpc.policy.latency import Shape
from lemix_hpc.records.schema import SpanKind

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Arrived(Generic[M]):
    """What there is to do on a stage, the tensor that came with it, and when it came [s]."""

    message: M
    payload: Payload | None
    since: float


@dataclass(slots=True)
class Pass:
    """Work that was started; `done` takes its result. `since`: start of the current stretch, None while it rests.

    `shape` is what it costs by, None for weight updates; `worked` the seconds of all stretches that are closed.
    `partial`: those of its tasks whose prompts go on in another pass. `prepares`: it is only the part of a serving pass that
    comes before the activations, and is reported as time of that pass. `pieces` have run. `again` makes the same pass once
    more, where that can be; `tries` have failed for want of memory.
    """

    kind: SpanKind
    work: EngineWork[Any]
    done: Callable[[Any], None]
    tasks: list[int]
    batch: int = -1
    shape: Shape | None = None
    partial: Sequence[int] = ()
    since: float | None = None
    until: float = 0.0
    worked: float = 0.0
    pieces: int = 0
    again: Callable[[], Pass] | None = None
    tries: int = 0
    prepares: bool = False
