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


class OnDevices(Section):
    """What of a study is another one on devices, which are not those of the coefficient files. What is not given stays."""

    recipe: FilePath | None = None
    variants: dict[str, Keys] | None = Field(default=None, min_length=1)
    settings: Keys | None = None
    rates: list[PositiveFloat] | None = None
    training_shares: list[Share] | None = None


class Study(Section):
    """`settings` change the recipe for all `variants`. Loads and seeds that are not given are the recipe's. `on`: what runs
    them: simulated time, real ranks whose stages sleep for the times of the coefficient file, or the recipe's own engine. Paths
    among the values are relative to the study's file, as those of recipes."""

    recipe: FilePath
    on: On = "simulator"
    variants: dict[str, Keys] = Field(min_length=1)
    settings: Keys = Field(default={})
    baseline: str | None = Field(default=None, description="variant to compare with; default the first")
    rates: list[PositiveFloat] = Field(default=[])
    training_shares: list[Share] = Field(default=[])
    seeds: list[NonNegativeInt] = Field(default=[])
    on_devices: OnDevices = Field(default=OnDevices())

    @model_validator(mode="after")
    def _baseline_is_there(self) -> Self:
        for variants in (self.variants, self.on_devices.variants or self.variants):
            if self.baseline is not None and self.baseline not in variants:
                raise ValueError(f"the baseline {self.baseline!r} is not among the variants: {', '.join(variants)}")
        return self

    def as_run(self, on: On | None) -> Study:
        """The study as it is on what was asked for, or else on what it says itself."""
        where = on or self.on
        other = self.on_devices.model_dump(exclude_none=True) if where == "devices" else {}
        return self.model_copy(update=other | {"on": where})


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
    devices = study.on_devices
    if devices.recipe is not None:
        devices = devices.model_copy(update={"recipe": path.parent / devices.recipe.expanduser()})
    return study.model_copy(update={"recipe": path.parent / study.recipe.expanduser(), "on_devices": devices})
