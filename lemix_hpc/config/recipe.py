"""The recipe: everything that a run depends on, as read from YAML.

Reading, overriding and the messages for mistakes are in `lemix_hpc.config.load`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from lemix_hpc.config.cluster_section import Cluster
from lemix_hpc.config.engine_kinds import ENGINE_KINDS
from lemix_hpc.config.policy_section import Policy
from lemix_hpc.config.section import (
    LONGEST_S,
    MOST_NODES,
    MOST_STAGES,
    FilePath,
    Milliseconds,
    Seconds,
    SecondsOrNone,
    Section,
    Tokens,
)
from lemix_hpc.config.serving_section import Serving
from lemix_hpc.config.training_section import Recompute, Training
from lemix_hpc.config.vllm_args import why_not


class NodeKind(Section):
    """Nodes that are alike, for the emulated engine and the simulator."""

    count: PositiveInt = Field(description="Nodes of this kind. The counts add up to `nodes.count`.")
    coefficients: FilePath | None = Field(
        default=None, description="Their coefficient file; by default `engine.coefficients`."
    )
    memory_gb: PositiveFloat | None = Field(
        default=None, description="Memory of each of their stages, GB; by default `policy.memory.capacity_gb`."
    )


class Nodes(Section):
    """`count` replicas of the model, each cut into `stages` pipeline stages, one device per stage."""

    count: Annotated[int, Field(gt=0, le=MOST_NODES)] = Field(default=1, description="Replicas of the model.")
    stages: Annotated[int, Field(gt=0, le=MOST_STAGES)] = Field(
        default=1,
        description="Pipeline stages of each replica, one device each; at most as many as the model has layers.",
    )
    kinds: list[NodeKind] | None = Field(
        default=None,
        min_length=1,
        description=(
            "Nodes of different speed or memory, as a list of the three keys below, in the order of the nodes' "
            "numbers. For `emulated` and `lemix simulate`."
        ),
    )

    @model_validator(mode="after")
    def _kinds_add_up(self) -> Self:
        if self.kinds is not None and (total := sum(kind.count for kind in self.kinds)) != self.count:
            raise ValueError(f"the counts of `kinds` add up to {total}, and `count` is {self.count}; make them equal")
        return self


class Model(Section):
    """A Hugging Face checkpoint directory, or a Hugging Face config to initialise at random."""

    path: FilePath | None = Field(default=None, description="Hugging Face checkpoint directory.")
    config: dict[str, Any] | None = Field(
        default=None,
        description="Hugging Face config, as in a `config.json`, to start from random weights. Give this or `path`.",
    )
    resize: bool = Field(
        default=False,
        description=(
            "Where the tokenizer in `path` has more tokens than the embedding (say, a `[PAD]` that was added), "
            "give the embedding and the head a row for each, which begins as the mean of the others, as Hugging "
            "Face does. For `torch` and `vllm`; checkpoints and exports have the new size."
        ),
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.resize and self.path is None:
            raise ValueError(
                "`resize` adds to the embedding of a checkpoint in `path`; here set `vocab_size` in `config`"
            )
        if self.path is not None and self.config is not None:
            raise ValueError(
                "give either `path` (a checkpoint directory) or `config` (initialised at random), not both"
            )
        if self.config is not None and "model_type" not in self.config:
            raise ValueError(
                "`config` needs `model_type`, as in a Hugging Face config.json: llama, mistral, qwen2 or gpt2"
            )
        return self


class Vllm(Section):
    """How vLLM serves (`kind: vllm`)."""

    weights: Literal["shared", "copy"] = Field(
        default="shared",
        description=(
            "`shared`: serving and training use one copy of the weights. `copy`: vLLM has its own, which every "
            "step updates."
        ),
    )
    kv_cache_gb: PositiveFloat | None = Field(
        default=None,
        description=(
            "KV cache of each stage, GB; by default 0.25 on a CPU, on a GPU what training leaves by the [memory "
            "plan](memory.md)."
        ),
    )
    args: dict[str, Any] = Field(
        default={}, description="More arguments of `vllm serve`, with underscores instead of hyphens."
    )

    @field_validator("args")
    @classmethod
    def _leave_the_endpoint_alone(cls, args: dict[str, Any]) -> dict[str, Any]:
        if wrong := [reason for name in args if (reason := why_not(name)) is not None]:
            raise ValueError("; ".join(wrong))
        return args


FEW_REQUESTS = 8
"""In a batch, where nobody has said how many."""
VLLM_REQUESTS = 256
"""What vLLM itself takes into a batch of a server's, by default, and lets the KV cache decide."""


def _usual_batch(engine: dict[str, Any]) -> int:
    """Requests in a batch, by what comes before in the section, as far as it is valid."""
    kind = ENGINE_KINDS.get(engine.get("kind", ""))
    if kind is None or not kind.has_scheduler:
        return FEW_REQUESTS
    most: int = engine.get("max_batch_tokens", VLLM_REQUESTS)
    return min(VLLM_REQUESTS, most)


class Engine(Section):
    kind: str = Field(
        default="torch",
        description="`vllm`: vLLM serves. `torch`: PyTorch alone. `emulated`: sleeps for the times of a coefficient file.",
    )
    coefficients: FilePath | None = Field(
        default=None,
        description="Coefficient file with stage times. `emulated` needs it; the others measure at the start without it.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`cpu`, `cuda`, or `auto`: a GPU if there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="`float32`, `bfloat16`, or `auto`, by device."
    )
    share_devices: bool = Field(default=False, description="Allow several stages on one GPU.")
    device_buffers: Literal["auto", "ipc", "mpi", "on", "off"] = Field(
        default="auto",
        description=(
            "How stages hand tensors of GPUs on: `ipc`: from GPU to GPU of one host by CUDA IPC; `mpi` (or `on`): MPI sends a "
            "GPU's memory as it is; `off`: through pinned host memory; `auto`: the first of these that works, as "
            "[transfers at the start](engines.md#gpus-and-mpi) show."
        ),
    )
    max_batch_tokens: Tokens = Field(default=4096, description="Most new tokens in one serving batch.")
    max_batch_requests: PositiveInt = Field(
        default_factory=_usual_batch,
        description=(
            "Most requests in one serving batch. By default 8; with `vllm` 256, as vLLM itself has it, or "
            "`max_batch_tokens` if that is less: what its KV cache has no room for waits there."
        ),
    )
    wait: Literal["auto", "spin", "backoff"] = Field(
        default="auto",
        description=(
            "How an idle rank waits: `spin` (lowest latency, takes a core), `backoff` (short sleeps), or `auto`: "
            "spin where every rank has a core."
        ),
    )
    timeout_s: Seconds = Field(
        default=120.0,
        description="A stage or engine that does not answer for so many seconds has failed, and the run fails with it.",
    )
    vllm: Vllm = Vllm()

    @field_validator("device_buffers")
    @classmethod
    def _older_name(cls, given: str) -> str:
        return "mpi" if given == "on" else given

    @field_validator("kind", mode="before")
    @classmethod
    def _kind_is_known(cls, value: Any) -> str:
        if isinstance(value, str) and value in ENGINE_KINDS:
            return value
        *others, last = map(repr, ENGINE_KINDS)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})

    @property
    def computes(self) -> bool:
        """Whether it has weights and takes tokens, and so needs a model and a device."""
        return ENGINE_KINDS[self.kind].computes

    @property
    def has_scheduler(self) -> bool:
        """Whether it forms its batches itself, instead of the node's leader."""
        return ENGINE_KINDS[self.kind].has_scheduler

    @property
    def cached_requests(self) -> int:
        """How many of the longest requests the memory plan counts on at once. As many as vLLM takes by itself are not all to
        be of that length: it then has room for a few, and shorter ones share that."""
        leaves_it = self.has_scheduler and self.max_batch_requests >= min(VLLM_REQUESTS, self.max_batch_tokens)
        return min(FEW_REQUESTS, self.max_batch_requests) if leaves_it else self.max_batch_requests

    @property
    def serves_http(self) -> bool:
        """Whether it answers calls of the OpenAI API."""
        return ENGINE_KINDS[self.kind].serves_http


class Slo(Section):
    """Limits on the response time as multiples of T0, the mean unloaded response, and limits in milliseconds; they are those of
    interactive requests. Batch requests have a completion window."""

    factors: list[PositiveFloat] = Field(
        default=[1, 5, 10],
        min_length=1,
        description="Response-time limits to report on, as multiples of T0, the mean response of an idle node.",
    )
    ttft_ms: Milliseconds | None = Field(
        default=None, description="Limit on the time to the first token, milliseconds."
    )
    tpot_ms: Milliseconds | None = Field(default=None, description="Limit on the time per further token, milliseconds.")
    response_ms: Milliseconds | None = Field(default=None, description="Limit on the response time, milliseconds.")
    completion_window_s: Seconds = Field(
        default=86400.0,
        description=(
            "Limit on the response time of batch requests, seconds, as OpenAI's 24 hours. The other limits are "
            "those of interactive ones. See [policy.md](policy.md#classes-of-requests)."
        ),
    )


class Simulate(Section):
    """What only `lemix simulate` and its grids use."""

    latency_error: float = Field(
        default=0.0,
        ge=0.0,
        le=10.0,
        description=(
            "Relative spread (log-normal) of real pass times around the coefficient file's; forecasts do not know it."
        ),
    )
    between_passes_ms: float = Field(
        default=0.0,
        ge=0.0,
        description=(
            "From what a stage has to do until it does that, milliseconds: messages and the loops of the ranks. A "
            "run's [report](metrics.md#the-whole-run) says what it was there."
        ),
    )


class Profile(Section):
    """What `lemix profile` measures: forwards and backwards of all `batches` x `lengths`, decode steps of all `batches` x
    `contexts`, as far as `engine.max_batch_tokens` and the model's positions let them."""

    batches: list[PositiveInt] = Field(
        default=[1, 2, 4, 8], min_length=1, description="Sequences in a batch or micro-batch."
    )
    lengths: list[PositiveInt] = Field(
        default=[8, 16, 32, 64, 128, 256, 512, 1024, 2048],
        min_length=1,
        description="New tokens of each sequence, in forwards and backwards.",
    )
    contexts: list[PositiveInt] = Field(default=[16, 64, 256, 1024], description="Cached tokens under a decode step.")
    warm_up: PositiveInt = Field(default=2, description="Passes at each point before those that count.")
    repeats: PositiveInt = Field(
        default=7, description="Passes at each point that count; short ones are repeated more often."
    )
    pause_s: SecondsOrNone = Field(
        default=0.0,
        description="Seconds of rest before each pass, as a stage rests between requests; 0 measures pass after pass.",
    )
    time_budget_s: Seconds = Field(
        default=1200.0, description="Seconds of measuring, over all attempts; points not measured by then are left out."
    )


class Report(Section):
    live_interval_s: float = Field(
        default=0.5, ge=0.05, le=LONGEST_S, description="Seconds between updates of the live progress."
    )
    spans: Literal["all", "sampled", "off"] = Field(
        default="all",
        description=(
            "Which work of the stages a run writes to `spans.jsonl`: `all`; `sampled`, that which starts in the "
            "first second of every ten, so that the report's [figures of stages](metrics.md#the-whole-run) are "
            "estimates; or `off`, and these are `null`. Simulated runs write all."
        ),
    )


class Recipe(Section):
    name: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=64,
        description=(
            "Name of the run: part of its id, and of the Slurm job name (`lemix-NAME`). Letters, digits, `.`, "
            "`_`, `-`; at most 64."
        ),
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="Seed of everything random: generated arrivals, random tokens, initial weights.",
    )
    cluster: Cluster = Cluster()
    nodes: Nodes = Nodes()
    model: Model = Model()
    engine: Engine = Engine()
    serving: Serving | None = None
    training: Training | None = None
    policy: Policy = Policy()
    slo: Slo = Slo()
    simulate: Simulate = Simulate()
    report: Report = Report()
    profile: Profile = Profile()

    @property
    def cores(self) -> int:
        """Of each rank of a job. A leader with an engine's server in it has three busy threads, and that engine's process."""
        return self.cluster.cpus_per_task or (4 if self.engine.has_scheduler else 1)

    @property
    def in_flight(self) -> int:
        """Micro-batches of a node between the first stage's forward and its backward, as far as the recipe says it: what it
        gives, or one for each stage."""
        given = self.training.in_flight if self.training is not None else None
        return given or self.nodes.stages

    @property
    def recomputing(self) -> int:
        """How many stages, from the first on, compute again in the backwards of `release: sync`. The last one of `1f1b` gains
        nothing by `recompute: all`: its backward follows the forward at once."""
        training, stages = self.training, self.nodes.stages
        if training is None or training.release != "sync" or training.recompute == "none":
            return 0
        return stages - 1 if training.recompute == "all" and training.schedule == "1f1b" else stages

    def recompute_on(self, stage: int) -> Recompute:
        """What a stage computes again in the backwards of `release: sync`."""
        return self.training.recompute if self.training is not None and stage < self.recomputing else "none"
