"""Reading the files that users name: a pipe or a device in the place of one would never end."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec

from lemix_hpc.config.errors import UserError

LARGEST_TEXT = 1 << 20
"""Bytes of a recipe, a coefficient file or a model's config. They have some thousand; YAML of a MB takes 10 s to read."""

BROKEN_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding the JSON in a file raises if it is damaged, or nested too deep."""


def why_no_file(path: Path) -> str | None:
    """What is at a path instead of a file that can be read to its end; None for a file, and for nothing."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{str(path)!r} is no path: {error}"
    if stat.S_ISDIR(mode):
        return f"{path} is a directory; give a file"
    if not stat.S_ISREG(mode):
        return f"{path} is {_kind(mode)}, not a file; write what it gives into a file, and give that"
    return None


def why_unreadable(path: Path) -> str | None:
    """As `why_no_file`, and why a file that is there cannot be opened."""
    if why := why_no_file(path):
        return why
    try:
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def why_out_of_reach(*paths: Path) -> str | None:
    """Why one of these cannot even be looked at; None for what is there, and for what is not."""
    for path in paths:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
    return None


def read_text(path: Path, *, most: int = LARGEST_TEXT) -> str:
    """A small text file in UTF-8, without byte order mark. Raises UserError for anything else, and OSError if there is none."""
    content = read_bytes(path, most=most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8: {error.reason} at byte {error.start}") from None


def read_bytes(path: Path, *, most: int = LARGEST_TEXT) -> bytes:
    """A small file. Raises UserError for one that is none, or not small, and OSError if there is none."""
    if why := why_no_file(path):
        raise UserError(why)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(
            f"{path}: has more than {most >> 20} MB, which no file of this kind needs; is it the right one?"
        )
    return content


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
