"""A finding of `lemix doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What it means and, unless it is ok, what to do. `settings`: what to put into the recipe, as `--set` takes it."""

    name: str
    verdict: Verdict
    text: str
    settings: tuple[str, ...] = ()
