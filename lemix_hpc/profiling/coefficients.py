"""Coefficient files: predicted stage times of a model on some hardware, with where the numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from lemix_hpc.config.document import Dumper, parse_document
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import located
from lemix_hpc.config.problem import Problem
from lemix_hpc.config.text_file import read_text
from lemix_hpc.config.training_section import Recompute
from lemix_hpc.config.validation_messages import explain, show
from lemix_hpc.policy.latency import LatencyModel, StageTime
from lemix_hpc.profiling.blocks import Block, FormName, NonNegative, Positive, Section, with_forms

SCHEMA = 1
Count = Annotated[int, Field(gt=0)]


class Residuals(Section):
    """How far measured times are from those predicted by fits that had not seen them: shares of the measured time.

    `r2` is the part of the variance of the seconds that is explained; it is left out where all times are equal.
    """

    points: Count
    folds: Count
    median_rel_error: NonNegative
    p95_rel_error: NonNegative
    max_rel_error: NonNegative
    r2: Annotated[float, Field(le=1.0)] | None = None


class TimesResiduals(Section):
    forward: Residuals | None = None
    backward: Residuals | None = None


class StageMemory(Section):
    """Bytes that a stage (or layer) holds: its weights, and per token what a micro-batch in training and the KV cache add.

    `optimizer_bytes`: what training keeps beside the weights: gradients, master copy and moments. `input_bytes_per_token`: of
    what comes into a stage or a layer, the hidden state.
    """

    weights_bytes: Annotated[int, Field(ge=0)]
    optimizer_bytes: Annotated[int, Field(ge=0)] = 0
    activation_bytes_per_token: NonNegative | None = None
    kv_bytes_per_token: NonNegative | None = None
    input_bytes_per_token: NonNegative | None = None

    def times(self, layers: int) -> StageMemory:
        """What so many layers hold."""
        activations, cache = self.activation_bytes_per_token, self.kv_bytes_per_token
        return StageMemory(
            weights_bytes=layers * self.weights_bytes,
            optimizer_bytes=layers * self.optimizer_bytes,
            activation_bytes_per_token=None if activations is None else layers * activations,
            kv_bytes_per_token=None if cache is None else layers * cache,
            input_bytes_per_token=self.input_bytes_per_token,
        )

    def in_training(self, recompute: Recompute, layers: int) -> tuple[float, float]:
        """Bytes per token that a micro-batch keeps until its backward on a stage of so many layers, and what one takes
        besides while that computes again."""
        whole, start = self.activation_bytes_per_token or 0.0, self.input_bytes_per_token or 0.0
        match recompute:
            case "none":
                return whole, 0.0
            case "layers":
                return layers * start, whole / layers
            case "all":
                return start, whole


class Times(Section):
    """Forward coefficients, and the backward ones or how many times the forward it takes."""

    forward: Block
    backward: Block | Positive = 2.0
    step_s: NonNegative | None = None
    memory: StageMemory | None = None
    residuals: TimesResiduals = TimesResiduals()

    def times(self) -> tuple[StageTime, StageTime]:
        """The forward and the backward form."""
        forward = self.forward.time()
        if isinstance(self.backward, float):
            return forward, forward.scaled(self.backward)
        return forward, self.backward.time()


class Links(Section):
    """What moves data: the device's link to its host, and messages between neighbouring stages."""

    host_to_device_gb_s: Positive | None = None
    device_to_host_gb_s: Positive | None = None
    message_latency_s: NonNegative | None = None
    message_gb_s: Positive | None = None


Range = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class Valid(Section):
    """The range that the coefficients were fitted on; the ranges are smallest and largest."""

    max_length: Count | None = None
    batch: Range | None = None
    length: Range | None = None
    tokens: Range | None = None
    context: Range | None = None

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Self:
        for name in ("batch", "length", "tokens", "context"):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise ValueError(f"{name}: the smallest comes first, found {limits}")
        return self


class CoefficientFile(Section):
    """Either `per_layer` times, good for any number of stages, or the times of each stage.

    `form` is that of the blocks that name none; once read, all of them name their own. `points`: the table beside the file
    that it was fitted to.
    """

    schema_: Literal[1] = Field(alias="schema")
    form: FormName | None = None
    hardware: str
    model: str
    dtype: str
    layers: Annotated[int, Field(gt=0)]
    per_layer: Times | None = None
    stages: list[Times] | None = None
    links: Links | None = None
    valid: Valid = Valid()
    points: str | None = None
    provenance: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _name_every_form(cls, content: Any) -> Any:
        return with_forms(content)

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
            pairs = [times.times() for times in self.stages]
        elif self.per_layer is not None and stages <= self.layers:
            forward, backward = self.per_layer.times()
            counts = self.layers_of(stages)
            pairs = [(forward.scaled(count), backward.scaled(count)) for count in counts]
        else:
            raise UserError(
                f"{stages} stages need at least {stages} layers, and {self.model} has {self.layers}; "
                f"set nodes.stages to at most {self.layers}"
            )
        return LatencyModel(tuple(f for f, _ in pairs), tuple(b for _, b in pairs), self.valid.max_length)

    def memory(self, stages: int) -> list[StageMemory] | None:
        """What the stages of a node hold, None where the file does not say. For as many stages as `latency` is there for."""
        if self.per_layer is not None:
            layer = self.per_layer.memory
            return None if layer is None else [layer.times(count) for count in self.layers_of(stages)]
        held = [times.memory for times in self.stages or []]
        known = [memory for memory in held if memory is not None]
        return known if len(known) == len(held) else None

    def layers_of(self, stages: int) -> list[int]:
        """Decoder layers of each stage."""
        return [self.layers // stages + (s < self.layers % stages) for s in range(stages)]


class _FileDumper(Dumper):
    """Writes lists of numbers in a line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = not any(isinstance(item, (dict, list)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style or flat)


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
        problems += [
            explain(detail, with_forms(content), CoefficientFile) for detail in error.errors(include_url=False)
        ]
    if problems:
        raise UserError("\n".join(located(problem, str(path), places) for problem in problems))
    return file


def save_coefficients(file: CoefficientFile, path: Path) -> None:
    """Write a coefficient file that `load_coefficients` reads back as an equal one."""
    content = file.model_dump(mode="json", by_alias=True, exclude_none=True)
    for times in content.get("stages") or [content["per_layer"]]:
        if not times["residuals"]:
            del times["residuals"]
    text = yaml.dump(content, Dumper=_FileDumper, sort_keys=False, width=120)
    path.write_text(text, encoding="utf-8")


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an existing coefficient file") from None
