"""The key of a run whose recipe names no file of keys: in the run's directory, for its owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from lemix_hpc.config.api_keys import usable
from lemix_hpc.config.errors import UserError

KEY_FILE = "api_key"
VARIABLE = "LEMIX_API_KEY"
"""Names the key in the environment."""


def keep_key(run_dir: Path, given: str | None) -> Path:
    """The file with the run's key. One that is there is kept; else it becomes `given`, that of the environment, or a new one.

    Raises OSError, and UserError as `key_of_environment`.
    """
    path = run_dir / KEY_FILE
    key = given or key_of_environment() or secrets.token_urlsafe(24)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(file, "w", encoding="utf-8") as content:
        content.write(key + "\n")
    return path


def key_of_environment() -> str | None:
    """None if there is none. Raises UserError for one that no client could send."""
    key = os.environ.get(VARIABLE, "").strip()
    try:
        return usable(key) if key else None
    except ValueError as error:
        raise UserError(f"{VARIABLE}: {error}; give another one, or none") from None
