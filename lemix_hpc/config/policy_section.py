"""The `policy` section of a recipe: who does what, and when."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from lemix_hpc.config.section import FilePath, Fraction, Section


class Memory(Section):
    """The memory of a simulated stage. Without a capacity it is no limit."""

    capacity_gb: PositiveFloat | None = Field(default=None, description="of a stage, GB")
    kappa: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=0.9, description="part of the capacity to fill")
    max_wait_s: NonNegativeFloat = Field(default=1.0, description="wait for memory before others make room, seconds")
    offload_gb_per_s: PositiveFloat | None = Field(default=None, description="bandwidth of offloading, GB per second")


class Policy(Section):
    placement: Literal[
        "least-completion", "lemix", "lemix-paper", "pack", "separate", "round-robin", "random", "least-utilised"
    ] = "least-completion"
    training_nodes: PositiveInt | Literal["auto"] | None = Field(
        default=None,
        description="`separate`: how many nodes train; default in proportion to training.share, half without one",
    )
    copy_every_steps: PositiveInt = Field(
        default=1, description="`separate`: steps between weight copies to serving nodes"
    )
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
    admission: Literal["slack", "paper", "none"] = Field(default="slack", description="when training is let in")
    max_hold_s: NonNegativeFloat = Field(default=10.0, description="longest time that training is held back, seconds")
    minimum_training_share: Fraction = Field(default=0.05, description="of a stage's busy time, while training waits")
    lambda1: NonNegativeFloat = Field(default=0.15, description="`lemix`, `lemix-paper`: weight of the response")
    lambda2: NonNegativeFloat = Field(default=0.05, description="`lemix`, `lemix-paper`: weight of the lengths")
    tau: NonNegativeFloat | None = Field(default=None, description="`lemix`: in T0; `lemix-paper`: seconds")
    keep: NonNegativeFloat | None = Field(default=None, description="`lemix`: in T0; given together with `tau`")
    output_lengths: Literal["predicted", "oracle"] = Field(
        default="predicted", description="what forecasts know of a request's output"
    )
    drain_reserve_s: NonNegativeFloat = Field(
        default=0.0, description="nothing is started that would outlive the allocation minus this, seconds"
    )
    memory: Memory = Memory()

    @field_validator("training_nodes", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        # One sentence instead of pydantic's one for each member of the union.
        number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not (value is None or value == "auto" or number):
            raise ValueError(f"expected a number of nodes above 0, or auto; found {value!r}")
        return value

    @model_validator(mode="after")
    def _tau_with_keep(self) -> Self:
        if self.placement == "lemix" and (self.tau is None) != (self.keep is None):
            given, absent = ("tau", "keep") if self.keep is None else ("keep", "tau")
            raise ValueError(f"placement lemix uses `{given}` with `{absent}`; give `{absent}` too, or neither")
        return self
