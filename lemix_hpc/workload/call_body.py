"""The body of a call of the OpenAI API, as far as it must be in order before a node's server gets to see it."""

from __future__ import annotations

from typing import Any

import msgspec

DEEPEST = 64
"""Levels of objects and arrays; a JSON schema of a real tool has a dozen."""
MOST_SEQUENCES = 128
"""Answers that one call may ask for, over all of its prompts. `n` is at most that in OpenAI's own API."""
LONGEST_CONSTRAINT = 64 << 10
"""Characters of a JSON schema, grammar or pattern that an answer has to follow: it is compiled for each call."""

_INT64 = range(-(1 << 63), 1 << 63)
_CONSTRAINTS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "tools",
)


def read_body(body: bytes) -> dict[str, Any]:
    """The JSON object. Raises ValueError if it is none, and for what makes decoders and engines fail instead of refusing it:
    more than `DEEPEST` levels, and integers of more than 64 bits."""
    try:
        content = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"The body is not a JSON object: {error}") from error
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    for key, value in content.items():
        _check(key, value)
    return content


def check_costs(content: dict[str, Any]) -> None:
    """Raises ValueError for a call that asks for more than one call may, or for what vLLM's server fails in."""
    if (count := sequences(content)) > MOST_SEQUENCES:
        raise ValueError(
            f"The call asks for {count} answers, `n` for each of its prompts; the most is {MOST_SEQUENCES}. Send several calls."
        )
    if not isinstance(content.get("structured_outputs"), dict | None):
        raise ValueError("`structured_outputs` is not an object.")
    for name in _CONSTRAINTS:
        if name in content and (length := len(msgspec.json.encode(content[name]))) > LONGEST_CONSTRAINT:
            raise ValueError(f"`{name}` has {length} bytes; the most is {LONGEST_CONSTRAINT}.")


def sequences(content: dict[str, Any]) -> int:
    """How many answers a call asks for, at least 1: `n` for each of its prompts."""
    prompt = content.get("prompt")
    several = isinstance(prompt, list) and any(isinstance(item, str | list) for item in prompt)
    wanted = number(content.get("n"))
    return max(1, wanted if wanted is not None else 1) * (max(1, len(prompt)) if several and prompt else 1)


def number(value: object) -> int | None:
    """What servers take for an integer: also `8.0` and `"8"`. None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.lstrip("+-").isdecimal() and len(text) < 20 else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _check(name: str, value: object) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner: list[object] = []
        for item in level:
            kind = type(item)
            if kind is int and item not in _INT64:
                raise ValueError(f"An integer in `{name}` does not fit into 64 bits.")
            if kind is list:
                inner += item  # type: ignore[arg-type]
            elif kind is dict:
                inner += item.values()  # type: ignore[attr-defined]
        if not inner:
            return
        level = inner
    raise ValueError(_too_deep())


def _too_deep() -> str:
    return f"The body has more than {DEEPEST} levels of objects and arrays."
