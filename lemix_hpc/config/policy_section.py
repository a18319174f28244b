"""The `policy` section of a recipe: who does what, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    create_model,
    field_validator,
    model_validator,
)

from lemix_hpc.config.section import LONGEST_S, MOST_NODES, FilePath, Fraction, Part, SecondsOrNone, Section
from lemix_hpc.policy.placements import KNOBS, PLACEMENTS, SCORE_KNOBS, Knob

if TYPE_CHECKING:
    PlacementName = str
else:
    PlacementName = Literal[tuple(PLACEMENTS)]


class Memory(Section):
    """The memory of a stage. Without a capacity it is no limit."""

    mode: Literal["offload", "wait", "ignore"] = Field(
        default="offload",
        description="what a task does that does not fit: wait, and then move training aside; only wait; neither",
    )
    capacity_gb: PositiveFloat | None = Field(default=None, description="of a stage, GB")
    kappa: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=0.9, description="part of the capacity to fill")
    max_wait_s: SecondsOrNone = Field(default=1.0, description="wait for memory before others make room, seconds")
    offload_gb_per_s: PositiveFloat | None = Field(default=None, description="bandwidth of offloading, GB per second")


def _of(knob: Knob) -> Any:
    return Field(default=knob.default, description=knob.description)


def _score_key(knob: Knob) -> tuple[Any, Any]:
    """Type and field of a key that scores are made with."""
    number = Annotated[float, Field(ge=knob.least)]
    return (number if knob.default is not None else number | None), _of(knob)


class _Split(Section):
    placement: PlacementName | None = Field(
        default=None, description="which node a task goes to; default least-completion, or fill where decode is paced"
    )
    training_nodes: PositiveInt | Literal["auto"] | None = _of(KNOBS["training_nodes"])
    copy_every_steps: PositiveInt = _of(KNOBS["copy_every_steps"])


if TYPE_CHECKING:
    _Placement = _Split
else:
    _Placement = create_model("_Placement", __base__=_Split, **{knob.name: _score_key(knob) for knob in SCORE_KNOBS})


class Policy(_Placement):
    """Keys of placements come from their registry, `lemix_hpc.policy.placements`."""

    coefficients: FilePath | None = Field(
        default=None, description="coefficient file that forecasts start from; default engine.coefficients"
    )
    recalibrate: bool = Field(default=True, description="correct forecasts by the stage times that are measured")
    lanes: PositiveInt | None = Field(default=None, description="groups fed to nodes at once; default one per node")
    order: Literal["fcfs", "shortest", "deadline"] = Field(
        default="deadline", description="among the waiting requests of a node"
    )
    serving_first: bool = Field(default=True, description="serving goes before training on a stage")
    yield_training: bool = Field(default=True, description="training rests between layers while serving waits")
    pace: Literal["slo", "none"] | None = Field(
        default=None,
        description="of decode: as tokens are due, or as soon as possible; default slo, for clients with slo.tpot_ms",
    )
    batch_share: Part = Field(
        default=0.5, description="of the time that interactive requests leave, for batch requests beside training"
    )
    admission: Literal["slack", "paper", "none"] = Field(default="slack", description="when training is let in")
    max_hold_s: SecondsOrNone = Field(default=10.0, description="longest time that training is held back, seconds")
    minimum_training_share: Fraction = Field(default=0.05, description="of a stage's busy time, while training waits")
    output_lengths: Literal["predicted", "oracle"] = Field(
        default="predicted", description="what forecasts know of a request's output"
    )
    drain_reserve_s: SecondsOrNone | Literal["auto"] = Field(
        default="auto", description="kept of the allocation's time for finishing, saving and the report, seconds"
    )
    memory: Memory = Memory()

    @property
    def splits(self) -> bool:
        """Whether some nodes only serve and the others only train."""
        return self.placement is not None and PLACEMENTS[self.placement].splits

    @property
    def knobs(self) -> dict[str, float]:
        """What is given of the keys that scores are made with, by name."""
        values = {knob.name: getattr(self, knob.name) for knob in SCORE_KNOBS}
        return {name: value for name, value in values.items() if value is not None}

    @field_validator("training_nodes", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        # One sentence instead of pydantic's one for each member of the union.
        number = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_NODES
        if not (value is None or value == "auto" or number):
            raise ValueError(f"expected a number of nodes above 0, or auto; found {value!r}")
        return value

    @field_validator("drain_reserve_s", mode="before")
    @classmethod
    def _seconds_or_auto(cls, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LONGEST_S
        if not (value == "auto" or number):
            raise ValueError(f"expected a number of seconds, or auto; found {value!r}")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        together = PLACEMENTS[self.placement].together if self.placement is not None else ()
        given = [name for name in together if name in self.knobs]
        absent = [name for name in together if name not in self.knobs]
        if given and absent:
            raise ValueError(
                f"placement {self.placement} uses `{given[0]}` with `{absent[0]}`; give `{absent[0]}` too, or neither"
            )
        return self
