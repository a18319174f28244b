"""Which files a recipe means by paths and patterns."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path


def as_list(path: Path | list[Path]) -> list[Path]:
    return path if isinstance(path, list) else [path]


def is_pattern(path: Path) -> bool:
    """Whether a path stands for all that it matches; one that exists as it is written stands for itself."""
    try:
        return glob.has_magic(str(path)) and not path.exists()
    except OSError:
        return False  # whoever reads it says why it cannot be looked at


def matched(paths: Path | Sequence[Path]) -> list[Path]:
    """The files, in the order of the paths and patterns, those of a pattern by name; a path that is none stays as it is.

    `**` stands for any number of directories. A file is there once, also if two patterns match it.
    """
    found: dict[Path, None] = {}
    for path in [paths] if isinstance(paths, Path) else paths:
        if is_pattern(path):
            names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  as shells do: no hidden files
            found |= dict.fromkeys(each for each in map(Path, names) if not each.is_dir())
        else:
            found[path] = None
    return list(found)
