"""The `training` section of a recipe: what to train on, in which portions, and the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lemix_hpc.config.section import FilePath, Fraction, Seconds, Section, Tokens
from lemix_hpc.config.workload_section import LengthTable, TextData

ParameterKind = Literal["norms", "biases", "embeddings"]
Recompute = Literal["none", "layers", "all"]


class Checkpoint(Section):
    """When the training state is saved. At the end of a run it always is, where the engine computes."""

    every_steps: PositiveInt | None = Field(
        default=None,
        description=(
            "Save the training state whenever so many optimizer steps, of all nodes, have been taken since the "
            "last save began. See [checkpoints](checkpoints.md)."
        ),
    )
    every_s: Seconds | None = Field(
        default=None, description="The same after so many seconds, if anything was learned in them. Both may be given."
    )
    keep: PositiveInt = Field(default=2, description="How many checkpoints stay; older ones are removed.")


class HeldOut(Section):
    """Samples that are never trained on: a part of `training.data`, or those of a file."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None,
        description=(
            "Of the documents of `training.data`, chosen by their content, so that it stays the same ones in every run. "
            "Give this or `path`."
        ),
    )
    path: FilePath | None = Field(
        default=None,
        description=(
            "A file like those of `training.data`, with the same `fields`. What is in both is left out of training."
        ),
    )
    documents: PositiveInt = Field(
        default=64, description="The loss is taken on so many of them at most, the first ones."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.share is None) == (self.path is None):
            raise ValueError("give `share` or `path`, one of them")
        return self


class Training(Section):
    """Text to train on, how it is cut into micro-batches, when they are released, and the optimizer.

    Without `share` and `micro_batches` training goes on, over as many epochs as it takes, while serving lasts.
    """

    data: TextData | None = Field(
        default=None,
        description="Text to train on: needed by engines that compute, unless clients send samples over `serving.http`.",
    )
    held_out: HeldOut | None = Field(
        default=None,
        description=(
            "Documents that are never trained on. The [loss on them](engines.md#did-it-help) is taken before training "
            "begins and when the run has finished, to see whether training has helped."
        ),
    )
    sequence_length: Tokens = Field(default=128, description="Tokens in a training sequence.")
    lengths: LengthTable | None = Field(
        default=None,
        description=(
            "Draw the length of each micro-batch from a published table (see `serving.source.lengths`) instead of "
            "`sequence_length`. Only for `emulated`."
        ),
    )
    micro_batch_size: PositiveInt = Field(default=1, description="Sequences in a micro-batch.")
    packing: Literal["packed", "padded"] = Field(
        default="packed", description="`packed`: texts end to end. `padded`: one text per sequence."
    )
    share: Fraction | None = Field(
        default=None,
        description=(
            "Training micro-batches / all tasks, below 1; they are trained as soon as there is room, and not "
            "spread over the run. Needs `serving.source`, without `serving.http`. Give "
            "this or `micro_batches`; with neither, training lasts as long as serving."
        ),
    )
    micro_batches: PositiveInt | None = Field(default=None, description="How many micro-batches to train on in all.")
    release: Literal["async", "sync"] = Field(
        default="async",
        description=(
            "When micro-batches are released. `async`: one after the other. `sync`: in accumulation groups, with "
            "a flush after each. See [policy](policy.md#release-of-training)."
        ),
    )
    schedule: Literal["1f1b", "gpipe"] = Field(
        default="1f1b", description="Order of forwards and backwards in a group of `sync`: `1f1b` or `gpipe`."
    )
    recompute: Recompute = Field(
        default="none",
        description=(
            "`sync`: what a stage computes again in the backward of a micro-batch, and so need not keep until then. "
            "`none`; `layers`: each layer, from its input; `all`: the whole stage, from its input (but not the last stage "
            "of `1f1b`, whose backward follows at once). It takes the time of another forward, and less "
            "[memory](memory.md#computing-again). `async` always does `all`."
        ),
    )
    cuda_graphs: bool = Field(
        default=False,
        description=(
            "On GPUs: launch each layer of a micro-batch as one captured CUDA graph, if that has the shape "
            "`micro_batch_size` x `sequence_length`. For short ones, whose time is that of launching kernels. It takes "
            "[memory](memory.md#what-is-counted), and one micro-batch at a time uses the graphs: others run without. See "
            "[engines](engines.md#captured-graphs)."
        ),
    )
    micro_batches_per_step: int = Field(
        default=1,
        gt=0,
        le=100_000,
        description="Micro-batches in an accumulation group, which makes one optimizer step.",
    )
    in_flight: PositiveInt | None = Field(
        default=None,
        description=(
            "Micro-batches of a node between the first stage's forward and its backward, at most; at least "
            "`nodes.stages`. Stage s (from 0) holds up to s fewer. More keep stages busy [where lengths "
            "differ](policy-study.md#micro-batches-in-flight), and take more [memory](memory.md). Default: "
            "`nodes.stages` where all are equally long; with `lengths` as many as fit into memory at their "
            "largest, up to 4 times that."
        ),
    )
    learning_rate: PositiveFloat = Field(default=1e-4, description="Peak learning rate.")
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description=(
            "What the learning rate does after the warm-up: `constant`, `linear` or `cosine` (down to the "
            "minimum). See [engines](engines.md#training)."
        ),
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from 0.")
    decay_steps: PositiveInt | None = Field(
        default=None,
        description=(
            "`linear` and `cosine` need it: optimizer steps of a node, warm-up included, after which the learning "
            "rate is at its minimum, where it stays."
        ),
    )
    minimum_learning_rate: float = Field(
        default=0.0, ge=0.0, description="`linear`, `cosine`: the learning rate at the end."
    )
    betas: list[Fraction] = Field(
        default=[0.9, 0.999],
        min_length=2,
        max_length=2,
        description="AdamW's coefficients of the moving averages, each below 1.",
    )
    eps: PositiveFloat = Field(default=1e-8, description="AdamW's addition to the denominator.")
    weight_decay: float = Field(
        default=0.0, ge=0.0, description="Weight decay, as torch's AdamW has it: times the learning rate."
    )
    no_weight_decay: list[ParameterKind] = Field(
        default=["norms", "biases"],
        description=(
            "What is not decayed: some of `norms`, `biases` and `embeddings` (of tokens and positions, and a head "
            "that is tied to them)."
        ),
    )
    gradient_clipping: PositiveFloat | None = Field(
        default=1.0,
        description=(
            "Largest L2 norm of the gradient of a step, over all stages; `null`: gradients are not clipped. [Why "
            "1.0](engines.md#training)."
        ),
    )
    on_nan: Literal["stop_training", "stop", "skip"] = Field(
        default="stop_training",
        description=(
            "What follows a gradient that is not finite, beside its step being [left out](engines.md#training): "
            "`stop_training`: the run trains no more, and serves on with the weights that it has; `stop`: it "
            "ends, as FAILED; `skip`: it goes on."
        ),
    )
    zero_stage: Literal[0, 1] | None = Field(
        default=None,
        description=(
            "DeepSpeed's ZeRO stage, 0 or 1; by default 0 in float32 and 1, with a float32 master copy, in bfloat16."
        ),
    )
    offload_optimizer: bool = Field(
        default=False, description="Keep the optimizer's state in host memory. Needs `zero_stage` 1."
    )
    across_nodes: Literal["local", "average", "sync"] = Field(
        default="local",
        description=(
            "`local`: every node keeps its own updates. `average`: their weights are averaged every "
            "`average_every` steps. `sync`: all nodes take each step together. See [across "
            "nodes](across-nodes.md)."
        ),
    )
    average_every: PositiveInt = Field(
        default=16, description="`average`: optimizer steps of a node between two averages."
    )
    sums: Literal["messages", "collective"] = Field(
        default="messages",
        description=(
            "`sync`: how nodes sum their gradients. `messages`: by MPI in the memory of the hosts, in pieces that give way to "
            "serving. `collective`: by torch's all-reduce, which is NCCL between GPUs and gloo between processors. See [across "
            "nodes](across-nodes.md#collective-sums)."
        ),
    )

    checkpoint: Checkpoint = Checkpoint()
    resume: FilePath | None = Field(
        default=None,
        description=(
            "Directory of a checkpoint, or of a run (its newest whole checkpoint), whose weights and optimizer "
            "state training starts from."
        ),
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
