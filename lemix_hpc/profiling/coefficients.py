"""Coefficient files: predicted stage times of a model on some hardware, with where the numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lemix_hpc.config.document import Dumper, parse_document
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.explain import explain, show
from lemix_hpc.config.load import located
from lemix_hpc.config.problem import Problem
from lemix_hpc.policy.latency import Affine, LatencyModel

SCHEMA = 1
NonNegative = Annotated[float, Field(ge=0.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Coefficients(_Section):
    """a [s], b [s/token], c [s/token^2], d [s/cached token]; see `lemix_hpc.policy.latency.Affine`."""

    a: NonNegative
    b: NonNegative
    c: NonNegative
    d: NonNegative = 0.0

    def affine(self) -> Affine:
        return Affine(self.a, self.b, self.c, self.d)


class Times(_Section):
    """Forward coefficients, and the backward ones or how many times the forward it takes."""

    forward: Coefficients
    backward: Coefficients | Annotated[float, Field(gt=0.0)] = 2.0

    def affines(self) -> tuple[Affine, Affine]:
        forward = self.forward.affine()
        if isinstance(self.backward, Coefficients):
            return forward, self.backward.affine()
        return forward, forward.scaled(self.backward)


class Valid(_Section):
    """The range that the coefficients were fitted on."""

    max_length: Annotated[int, Field(gt=0)] | None = None


class CoefficientFile(_Section):
    """Either `per_layer` times, good for any number of stages, or the times of each stage."""

    schema_: Literal[1] = Field(alias="schema")
    form: Literal["affine-quadratic"]
    hardware: str
    model: str
    dtype: str
    layers: Annotated[int, Field(gt=0)]
    per_layer: Times | None = None
    stages: list[Times] | None = None
    valid: Valid = Valid()
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _one_kind_of_times(self) -> Self:
        if (self.per_layer is None) == (not self.stages):
            raise ValueError("give either `per_layer` or `stages`")
        return self

    def latency(self, stages: int) -> LatencyModel:
        """The latency model of a node with this many stages: layers spread evenly, the first stages taking the rest.

        Raises UserError when there are fewer layers than stages, or when the file was measured with another number of them.
        """
        if self.stages is not None:
            if len(self.stages) != stages:
                raise UserError(
                    f"the coefficients of {self.model} on {self.hardware} were measured with {len(self.stages)} stages, "
                    f"not {stages}; set nodes.stages: {len(self.stages)} or take a file with `per_layer` times"
                )
            pairs = [times.affines() for times in self.stages]
        elif self.per_layer is not None and stages <= self.layers:
            forward, backward = self.per_layer.affines()
            counts = [self.layers // stages + (s < self.layers % stages) for s in range(stages)]
            pairs = [(forward.scaled(count), backward.scaled(count)) for count in counts]
        else:
            raise UserError(
                f"{stages} stages need at least {stages} layers, and {self.model} has {self.layers}; "
                f"set nodes.stages to at most {self.layers}"
            )
        return LatencyModel(tuple(f for f, _ in pairs), tuple(b for _, b in pairs), self.valid.max_length)


def load_coefficients(path: Path) -> CoefficientFile:
    """Read a coefficient file. Raises UserError naming the file, with one line for each mistake."""
    document = parse_document(_text(path), str(path))
    content = document.data
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = show(content.get("schema") if isinstance(content, dict) else content)
        raise UserError(f"{path}: expected a coefficient file with `schema: {SCHEMA}`, found {found}")
    places = {key: f"{path}:{line}" for key, line in document.lines.items()}
    problems = [Problem(key, f"given twice; the first is on line {first}") for key, _, first in document.duplicates]
    try:
        file = CoefficientFile.model_validate(content)
    except ValidationError as error:
        problems += [explain(detail, content, CoefficientFile) for detail in error.errors(include_url=False)]
    if problems:
        raise UserError("\n".join(located(problem, str(path), places) for problem in problems))
    return file


def save_coefficients(file: CoefficientFile, path: Path) -> None:
    """Write a coefficient file that `load_coefficients` reads back as an equal one."""
    content = file.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = yaml.dump(content, Dumper=Dumper, sort_keys=False, width=120)
    path.write_text(text, encoding="utf-8")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an existing coefficient file") from None
