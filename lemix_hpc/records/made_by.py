"""Which version of lemix made a run: what this one cannot read there is most likely of another."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lemix_hpc import __version__
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON, read_bytes

RECORD = "run.json"
"""How a run was started, in its directory."""


class _Made(msgspec.Struct):
    version: str


def made_by(path: Path) -> str:
    """What to add to a mistake in a file of a run, if another version made the run; else nothing."""
    for directory in path.parents[:3]:  # files of attempts are two levels deeper
        try:
            version = msgspec.json.decode(read_bytes(directory / RECORD), type=_Made).version
        except (OSError, UserError, *BROKEN_JSON):
            continue
        other = version != __version__
        return f" (lemix {version[:40]} made this run, and this is lemix {__version__})" if other else ""
    return ""
