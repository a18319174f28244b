"""The events that the policy of a run handled, in order (`events.jsonl`).

A new scheduler with the run's recipe and coefficients makes the same decisions from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.policy.events import Event, StageFinished
from lemix_hpc.records.parts import read_lines

EVENTS = "events.jsonl"


class PassFinished(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line for the `StageFinished` of all requests of a batch, in the order of `tasks`. `starts`: of each. Earlier versions
    had a line for each pass of a request that generates; `last`: places in `tasks` of those whose last one it was."""

    time: float
    node: int
    stage: int
    end: float
    tasks: list[int]
    starts: list[float]
    last: list[int] | None = None
    backward: bool = False

    def events(self) -> Iterator[StageFinished]:
        for place, (task, start) in enumerate(zip(self.tasks, self.starts, strict=True)):
            if self.last is None or place in self.last:
                yield StageFinished(self.time, self.node, self.stage, task, start, self.end, self.backward)


class _OneFinished(msgspec.Struct):
    """What of a line of a single `StageFinished` only earlier versions wrote: see `PassFinished`."""

    last: bool = True


class EventLines:
    """Hands events over as lines: those of one pass, which follow one another, as one."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._pass: list[StageFinished] = []

    def add(self, event: Event) -> None:
        """The next event; its line may still wait for more of the same pass."""
        if not isinstance(event, StageFinished):
            self.end()
            self._write(encode(event))
            return
        if self._pass and _pass_of(self._pass[-1]) != _pass_of(event):
            self.end()
        self._pass.append(event)

    def end(self) -> None:
        """Let no line wait."""
        if len(self._pass) > 1:
            one = self._pass[0]
            tasks, starts = [event.task for event in self._pass], [event.start for event in self._pass]
            line = PassFinished(one.time, one.node, one.stage, one.end, tasks, starts, backward=one.backward)
            self._write(msgspec.json.encode({PassFinished.__name__: line}) + b"\n")
        elif self._pass:
            self._write(encode(self._pass[0]))
        self._pass.clear()


def _pass_of(event: StageFinished) -> tuple[float, int, int, float, bool]:
    return event.time, event.node, event.stage, event.end, event.backward


def encode(event: Event) -> bytes:
    """The line of an event: a JSON object with the event's type as its only key."""
    return msgspec.json.encode({type(event).__name__: event}) + b"\n"


def read_events(directory: Path) -> Iterator[Event]:
    """The events of an attempt, or of a simulated run, in order, read one by one; without a last line that was cut off.

    Raises UserError if the file is missing, and at a broken line when it is reached.
    """
    path = directory / EVENTS
    decoders = {kind.__name__: msgspec.json.Decoder(kind) for kind in (*get_args(Event), PassFinished)}
    line = msgspec.json.Decoder(dict[str, msgspec.Raw])
    try:
        for each in read_lines(path):
            yield from _decode(each.text, line, decoders, each.place)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(
            f"{path} {reason}. It has the events that the policy of a run handled; give the directory of a run."
        ) from error


def _decode(
    text: bytes,
    line: msgspec.json.Decoder[dict[str, msgspec.Raw]],
    decoders: dict[str, msgspec.json.Decoder[Any]],
    where: str,
) -> Iterable[Event]:
    try:
        [(name, content)] = line.decode(text).items()
        event: Event | PassFinished = decoders[name].decode(content)
        told = not isinstance(event, StageFinished) or msgspec.json.decode(content, type=_OneFinished).last
    except (*BROKEN_JSON, ValueError, KeyError) as error:
        raise UserError(
            f"{where}: expected one event, as {{TYPE: {{...}}}} with a type out of {', '.join(decoders)}: {error}. Remove "
            "this line and all later ones to read the rest."
        ) from error
    if isinstance(event, PassFinished):
        return event.events()
    return (event,) if told else ()
