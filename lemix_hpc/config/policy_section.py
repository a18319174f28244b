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
        description=(
            "What a task does that does not fit: `offload` (wait, then move training aside), `wait` (nothing is "
            "moved), `ignore` (start all the same: how far that goes is in the report)."
        ),
    )
    capacity_gb: PositiveFloat | None = Field(
        default=None,
        description=(
            "Memory of a stage, GB, simulated or real. By default a GPU's own with `engine.kind: torch`, unless "
            "stages share it, and else no limit, and then the other keys of `policy.memory` have no effect. See "
            "[policy.md](policy.md#memory)."
        ),
    )
    kappa: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.9, description="Part of the capacity that may be filled, up to 1."
    )
    max_wait_s: SecondsOrNone = Field(
        default=1.0, description="A task waits so many seconds for memory before others have to make room."
    )
    offload_gb_per_s: PositiveFloat | None = Field(
        default=None,
        description=(
            "Bandwidth of offloading to the host, GB per second, of stages that are simulated or emulated; "
            "without it nothing is offloaded there, and requests lose their cache instead."
        ),
    )


def _of(knob: Knob) -> Any:
    return Field(default=knob.default, description=knob.description)


def _score_key(knob: Knob) -> tuple[Any, Any]:
    """Type and field of a key that scores are made with."""
    number = Annotated[float, Field(ge=knob.least)]
    return (number if knob.default is not None else number | None), _of(knob)


class _Split(Section):
    placement: PlacementName | None = Field(
        default=None,
        description=(
            "`least-completion`, `lemix`, `lemix-paper`, `pack`, `fill`, `round-robin`, `random`, "
            "`least-utilised`, or `separate`: some nodes serve and the others train. By default `fill` where "
            "decode is [paced](policy.md#pace), else `least-completion`."
        ),
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
        default=None,
        description="Coefficient file that forecasts start from; by default that of `engine.coefficients`.",
    )
    recalibrate: bool = Field(
        default=True, description="Correct forecasts by the stage times that are measured during the run."
    )
    lanes: PositiveInt | None = Field(
        default=None,
        description="How many accumulation groups are fed to nodes at the same time; by default one per training node.",
    )
    order: Literal["fcfs", "shortest", "deadline"] = Field(
        default="deadline", description="Order among the waiting requests of a node: `fcfs`, `shortest` or `deadline`."
    )
    serving_first: bool = Field(
        default=True, description="Serving goes before training on a stage; `false`: in order of readiness."
    )
    yield_training: bool = Field(default=True, description="Training passes rest between layers while serving waits.")
    pace: Literal["slo", "none"] | None = Field(
        default=None,
        description=(
            "Where requests generate and training goes on: `slo` passes for tokens when they are due, so that "
            "batches are large and training gets the rest; `none`: as soon as possible. By default `slo`; for "
            "what clients ask over HTTP or in batch files only if there is `slo.tpot_ms`. See "
            "[policy.md](policy.md#pace)."
        ),
    )
    batch_share: Part = Field(
        default=0.5,
        description=(
            "Part of the time that interactive requests leave which batch requests get while training waits, 0 to "
            "1; where decode is paced. See [policy.md](policy.md#classes-of-requests)."
        ),
    )
    admission: Literal["slack", "paper", "none"] = Field(
        default="slack",
        description=(
            "When a released micro-batch may enter its node: `slack` (if requests stay in time), `paper` (if its "
            "own response would meet the limit) or `none` (at once)."
        ),
    )
    max_hold_s: SecondsOrNone = Field(default=10.0, description="Training is held back at most so many seconds.")
    minimum_training_share: Fraction = Field(
        default=0.05, description="Part of a stage's busy time that training gets while it waits, below 1."
    )
    output_lengths: Literal["predicted", "oracle"] = Field(
        default="predicted",
        description=(
            "The output length that forecasts assume: `predicted` (the median of finished requests) or `oracle` "
            "(the true length)."
        ),
    )
    drain_reserve_s: SecondsOrNone | Literal["auto"] = Field(
        default="auto",
        description=(
            "Seconds of a Slurm allocation that are kept for finishing, saving and the report: see "
            "[survival](survival.md#the-end-of-an-allocation). `auto`: a quarter of the time, at most 120. With 0 "
            "Slurm ends the run. In local and simulated runs a number above 0 makes an end: nothing is started "
            "that would last beyond `cluster.time` minus so many seconds."
        ),
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
