"""The events that the policy of a run handled, in order (`events.jsonl`).

A new scheduler with the run's recipe and coefficients makes the same decisions from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.events import Event
from lemix_hpc.records.parts import read_lines

EVENTS = "events.jsonl"


def encode(event: Event) -> bytes:
    """The line of an event: a JSON object with the event's type as its only key."""
    return msgspec.json.encode({type(event).__name__: event}) + b"\n"


def read_events(directory: Path) -> Iterator[Event]:
    """The events of an attempt, or of a simulated run, in order, read one by one; without a last line that was cut off.

    Raises UserError if the file is missing, and at a broken line when it is reached.
    """
    path = directory / EVENTS
    decoders = {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(Event)}
    line = msgspec.json.Decoder(dict[str, msgspec.Raw])
    try:
        for each in read_lines(path):
            yield _decode(each.text, line, decoders, each.place)
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
) -> Event:
    try:
        [(name, content)] = line.decode(text).items()
        event: Event = decoders[name].decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise UserError(
            f"{where}: expected one event, as {{TYPE: {{...}}}} with a type out of {', '.join(decoders)}: {error}. Remove "
            "this line and all later ones to read the rest."
        ) from error
    return event
