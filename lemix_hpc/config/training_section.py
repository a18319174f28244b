"""The `training` section of a recipe: what to train on, in which portions, and the optimizer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lemix_hpc.config.section import FilePath, Fraction, Seconds, Section, Tokens
from lemix_hpc.config.workload_section import LengthTable, TextData

ParameterKind = Literal["norms", "biases", "embeddings"]


class Checkpoint(Section):
    """When the training state is saved. At the end of a run it always is, where the engine computes."""

    every_steps: PositiveInt | None = Field(default=None, description="optimizer steps, of all nodes")
    every_s: Seconds | None = Field(default=None, description="seconds")
    keep: PositiveInt = Field(default=2, description="how many checkpoints stay")


class Training(Section):
    """Text to train on, how it is cut into micro-batches, when they are released, and the optimizer.

    Without `share` and `micro_batches` training goes on, over as many epochs as it takes, while serving lasts.
    """

    data: TextData | None = Field(default=None, description="needed by every engine that computes")
    sequence_length: Tokens = 128
    lengths: LengthTable | None = Field(
        default=None, description="emulated: micro-batch lengths drawn from this table instead of sequence_length"
    )
    micro_batch_size: PositiveInt = 1
    packing: Literal["packed", "padded"] = "packed"
    share: Fraction | None = Field(default=None, description="training micro-batches / all tasks")
    micro_batches: PositiveInt | None = Field(default=None, description="how many to train on in all")
    release: Literal["async", "sync"] = "async"
    schedule: Literal["1f1b", "gpipe"] = Field(default="1f1b", description="order within a `sync` group")
    micro_batches_per_step: int = Field(default=1, gt=0, le=100_000)
    in_flight: PositiveInt | None = Field(
        default=None,
        description="micro-batches of a node between forward and backward; default what helps and fits, at least one a stage",
    )
    learning_rate: PositiveFloat = 1e-4
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: PositiveInt | None = Field(
        default=None, description="`linear`, `cosine`: the step from which the rate is at its minimum"
    )
    minimum_learning_rate: float = Field(default=0.0, ge=0.0)
    betas: list[Fraction] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.0, ge=0.0)
    no_weight_decay: list[ParameterKind] = Field(default=["norms", "biases"], description="what is not decayed")
    gradient_clipping: PositiveFloat | None = Field(default=1.0, description="largest L2 norm; null: none")
    on_nan: Literal["stop_training", "stop", "skip"] = Field(
        default="stop_training",
        description="after a gradient that is not finite, whose step changes nothing: train no more, end the run, or go on",
    )
    zero_stage: Literal[0, 1] | None = Field(
        default=None, description="of DeepSpeed; default 0 in float32, 1 (a float32 master copy) in bfloat16"
    )
    offload_optimizer: bool = Field(
        default=False, description="keep the optimizer's state in host memory; needs stage 1"
    )
    across_nodes: Literal["local", "average", "sync"] = Field(
        default="local", description="each node its own updates, or weights averaged, or one step of all nodes together"
    )
    average_every: PositiveInt = Field(default=16, description="`average`: steps of a node between two averages")

    checkpoint: Checkpoint = Checkpoint()
    resume: FilePath | None = Field(
        default=None, description="directory of a checkpoint, or of a run: its weights and optimizer state"
    )

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.share is not None and self.micro_batches is not None:
            raise ValueError("give `share` or `micro_batches`, not both")
        return self

    @model_validator(mode="after")
    def _whole_schedule(self) -> Self:
        kind, end = self.learning_rate_schedule, self.decay_steps
        if kind == "constant":
            if end is not None:
                raise ValueError(
                    "only learning_rate_schedule: linear or cosine uses `decay_steps`; set one, or leave it out"
                )
            if self.minimum_learning_rate > 0:
                raise ValueError(
                    "only learning_rate_schedule: linear or cosine uses `minimum_learning_rate`; set one, or leave it out"
                )
            return self
        if end is None:
            raise ValueError(
                f"learning_rate_schedule: {kind} needs `decay_steps`, the step at which the rate reaches its minimum, "
                "such as `micro_batches` / `micro_batches_per_step` on one node"
            )
        if end <= self.warmup_steps:
            raise ValueError(
                f"`decay_steps` counts from the first step, and {end} are over before the `warmup_steps`, {self.warmup_steps}"
            )
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"`minimum_learning_rate`, {self.minimum_learning_rate}, is above `learning_rate`, {self.learning_rate}"
            )
        return self
