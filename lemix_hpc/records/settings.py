"""What was changed of a run's recipe while it goes on: the file `settings` of its directory, lines of KEY=VALUE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lemix_hpc.records.files import replace

SETTINGS = "settings"
LIVE_KEYS = ("policy.admission", "policy.max_hold_s", "policy.minimum_training_share")
"""Keys of a recipe that a run takes up while it goes on."""


def read_settings(run_dir: Path) -> list[str]:
    """As `--set` takes them; none where nothing was changed. Raises OSError."""
    try:
        return (run_dir / SETTINGS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def change_settings(run_dir: Path, changes: Mapping[str, str]) -> None:
    """Values in YAML, by key; what was changed before stays so. Raises OSError."""
    known = dict(line.split("=", 1) for line in read_settings(run_dir))
    lines = [f"{key}={value}\n" for key, value in {**known, **changes}.items()]
    replace(run_dir / SETTINGS, "".join(lines).encode())
