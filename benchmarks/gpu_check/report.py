"""What one check found, written down as it comes: a check that is killed leaves what it had."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class SkippedError(Exception):
    """The check cannot be made here, and why."""


@dataclass
class Report:
    """Figures of a check, and what is wrong. Neither ends the check."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def figure(self, name: str, value: Any) -> None:
        """A number, a text, or plain data. Floats keep four digits."""
        self.figures[name] = _short(value)
        self.write("running")

    def expect(self, holds: bool, otherwise: str) -> None:
        """`otherwise` is what is wrong if it does not hold."""
        if not holds:
            self.faults.append(otherwise)
            self.write("running")

    def write(self, verdict: str, **more: Any) -> None:
        content = {"verdict": verdict, "faults": self.faults, "figures": self.figures} | more
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(self.path)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value
