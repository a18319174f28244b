"""What all sections of a recipe have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

FilePath = Annotated[Path, Field(strict=False)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Part = Annotated[float, Field(ge=0.0, le=1.0)]
MOST_NODES = 100_000
MOST_STAGES = 1_000
LONGEST_S = 1e9
"""Thirty years: clocks and timers take no numbers that are much larger."""

Seconds = Annotated[float, Field(gt=0.0, le=LONGEST_S)]
SecondsOrNone = Annotated[float, Field(ge=0.0, le=LONGEST_S)]
"""0 is none at all."""

Milliseconds = Annotated[float, Field(gt=0.0, le=1e3 * LONGEST_S)]
Tokens = Annotated[int, Field(gt=0, le=10_000_000)]
"""Of one sequence or batch; no model takes as many."""


class Section(BaseModel):
    # Strict: a number in quotes, or `true` for a number, is more likely a slip than meant.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
