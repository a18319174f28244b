"""What no value in a file of ours may be, whatever its key: a number that is none, or text that no file can be named by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lemix_hpc.config.document import KeyPath
from lemix_hpc.config.problem import Problem

LARGEST = (1 << 63) - 1
_SECRET = "api_key"
"""The key of a recipe that has what nobody is to see."""


def visible(path: KeyPath, value: str) -> str:
    """A value in words, for a message on the key at `path`."""
    return "what is not shown here" if _SECRET in path else value


def unusable(value: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """A problem for each such value in plain data."""
    match value:
        case dict():
            for key, item in value.items():
                yield from unusable(item, (*path, str(key)))
        case list():
            for index, item in enumerate(value):
                yield from unusable(item, (*path, index))
        case float() if not math.isfinite(value):
            yield Problem(
                path,
                f"expected a finite number, found {visible(path, str(value))}; leave the key out where there is no limit",
            )
        case int() if not -LARGEST <= value <= LARGEST:
            yield Problem(path, f"expected a number that fits into 64 bits, found {_short(value)}")
        case str() if "\0" in value or not _is_unicode(value):
            yield Problem(
                path, f"expected text, found {visible(path, repr(value[:40]))}, which has characters that are none"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: int) -> str:
    return f"one of {value.bit_length()} bits"
