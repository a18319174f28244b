"""A study: one recipe with several sets of changes, under several loads, as read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, ValidationError, model_validator

from lemix_hpc.config.document import parse_document
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import located
from lemix_hpc.config.section import FilePath, Section
from lemix_hpc.config.text_file import read_text
from lemix_hpc.config.validation_messages import explain, show

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Keys = dict[str, Any]
"""Values by the keys of a recipe, such as `policy.order`."""


On = Literal["simulator", "emulated", "devices"]


class Study(Section):
    """`settings` change the recipe for all `variants`. Loads and seeds that are not given are the recipe's. `on`: what runs
    them: simulated time, real ranks whose stages sleep for the times of the coefficient file, or the recipe's own engine. Paths
    among the values are relative to the study's file, as that of the recipe."""

    recipe: FilePath
    on: On = "simulator"
    variants: dict[str, Keys] = Field(min_length=1)
    settings: Keys = Field(default={})
    baseline: str | None = Field(default=None, description="variant to compare with; default the first")
    rates: list[PositiveFloat] = Field(default=[])
    training_shares: list[Share] = Field(default=[])
    seeds: list[NonNegativeInt] = Field(default=[])

    @model_validator(mode="after")
    def _baseline_is_there(self) -> Self:
        if self.baseline is not None and self.baseline not in self.variants:
            raise ValueError(f"the baseline {self.baseline!r} is not among the variants: {', '.join(self.variants)}")
        return self


def read_study(path: Path) -> Study:
    """The recipe's path is relative to the study's file. Raises UserError with one line for each mistake."""
    try:
        document = parse_document(read_text(path), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such study") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(document.data, dict):
        raise UserError(f"{path}: a study has `recipe` and `variants`, found {show(document.data)}")
    places = {key: f"{path}:{line}" for key, line in document.lines.items()}
    problems = [
        f"{path}:{line}: {'.'.join(map(str, key))}: given twice; the first is on line {first}"
        for key, line, first in document.duplicates
    ]
    try:
        study = Study.model_validate(document.data)
    except ValidationError as error:
        found = [explain(detail, document.data, Study) for detail in error.errors(include_url=False)]
        raise UserError("\n".join([*problems, *(located(each, str(path), places) for each in found)])) from None
    if problems:
        raise UserError("\n".join(problems))
    return study.model_copy(update={"recipe": path.parent / study.recipe.expanduser()})
