"""What all sections of a recipe have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

FilePath = Annotated[Path, Field(strict=False)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    # Strict: a number in quotes, or `true` for a number, is more likely a slip than meant.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
