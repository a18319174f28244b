"""Coefficient files: predicted stage times of a model on some hardware, with where the numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.latency import Affine, LatencyModel

SCHEMA = 1
NonNegative = Annotated[float, Field(ge=0.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
        if (self.per_layer is None) == (self.stages is None):
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
            raise UserError(f"{stages} stages need at least {stages} layers; {self.model} has {self.layers}")
        return LatencyModel(tuple(f for f, _ in pairs), tuple(b for _, b in pairs), self.valid.max_length)


def load_coefficients(path: Path) -> CoefficientFile:
    """Read a coefficient file. Raises UserError naming the file and what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an existing coefficient file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no valid YAML: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: a coefficient file with `schema: {SCHEMA}` was expected, found {found!r}")
    try:
        return CoefficientFile.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {problems}") from error


def save_coefficients(file: CoefficientFile, path: Path) -> None:
    """Write a coefficient file that `load_coefficients` reads back as an equal one."""
    path.write_text(yaml.safe_dump(file.model_dump(mode="json", by_alias=True), sort_keys=False))
