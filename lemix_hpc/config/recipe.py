"""The recipe: everything that a run depends on, as read from YAML.

Reading, overriding and the messages for mistakes are in `lemix_hpc.config.load`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

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
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.validation_messages import show
from lemix_hpc.config.vllm_args import why_not
from lemix_hpc.config.walltime import parse_walltime

OF_OTHER_KEYS = {
    "nodes": "nodes.count and cluster.nodes_per_host",
    "ntasks": "nodes.count and nodes.stages",
    "ntasks-per-node": "nodes.stages and cluster.nodes_per_host",
    "job-name": "`name`",
    "requeue": "cluster.requeue: true",
    "no-requeue": "cluster.requeue: false",
    "signal": "policy.drain_reserve_s",
    "output": "LEMIX_RUNS or --out: the output is in the run's directory",
    "error": "LEMIX_RUNS or --out: the output is in the run's directory",
    "open-mode": "nothing: the output of all attempts is kept",
    "array": "another seed for each run: a run is one job",
    "wrap": "cluster.setup",
    "test-only": "--dry-run",
    "parsable": "--json",
    "wait": "`lemix run` instead of `lemix submit`",
} | {
    name.replace("_", "-"): f"cluster.{name}"
    for name in (
        "partition",
        "account",
        "qos",
        "time",
        "gres",
        "gpus_per_node",
        "cpus_per_task",
        "mem",
        "constraint",
        "nodelist",
        "exclude",
        "reservation",
    )
}
"""Options of sbatch that `cluster.sbatch` must not give, and what gives them."""


class Cluster(Section):
    """Where the run goes. Everything but `kind` and `nodes_per_host` speaks to Slurm in Slurm's own words."""

    kind: Literal["auto", "slurm", "local", "allocation"] = "auto"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = "01:00:00"
    gres: str | None = None
    gpus_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt | None = Field(default=None, description="cores of each rank; default 1, with vllm 4")
    mem: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    nodes_per_host: PositiveInt = 1
    container: list[str] = Field(default=[], description="command that runs another one inside the container")
    setup: list[str] = Field(default=[], description="shell lines before srun")
    srun_args: list[str] = Field(default=[], description="more arguments for srun")
    sbatch: dict[str, str | int | float | bool] = Field(
        default={}, description="more options of sbatch, by their long names"
    )
    mpi: str = "pmix"
    requeue: bool = Field(default=True, description="Slurm may start the job again, so that the run goes on")
    restarts: NonNegativeInt = Field(
        default=3, description="crashes without progress after which the run is given up, in one allocation"
    )

    @field_validator("*")
    @classmethod
    def _on_one_line(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "setup":
            return value
        texts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if any(isinstance(text, str) and any(ord(char) < ord(" ") for char in text) for text in texts):
            raise ValueError(
                "has a line break or another control character, and stands on one line of the job's script"
            )
        return value

    @field_validator("setup")
    @classmethod
    def _setup_has_no_options(cls, value: list[str]) -> list[str]:
        for line in "\n".join(value).splitlines():
            if re.match(r"\s*#SBATCH\b", line):
                raise ValueError(
                    f"{line.strip()!r} would do nothing: Slurm reads no options behind the first command of a script; give "
                    "it in cluster.sbatch, such as {mem-per-cpu: 2G}"
                )
        return value

    @field_validator("sbatch", mode="before")
    @classmethod
    def _sbatch_has_values(cls, value: Any) -> Any:
        # One sentence instead of pydantic's one for each member of the union.
        for name, given in value.items() if isinstance(value, dict) else ():
            if not isinstance(given, (str, int, float)):
                raise ValueError(
                    f"{name}: expected text, a number, or true for an option without a value; found {show(given)}"
                )
        return value

    @field_validator("sbatch")
    @classmethod
    def _sbatch_has_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                raise ValueError(f"{name!r} is no option of sbatch; write its long name, such as mail-user")
            if name in OF_OTHER_KEYS:
                raise ValueError(f"{name} is decided elsewhere; give {OF_OTHER_KEYS[name]}")
        return value

    @field_validator("time")
    @classmethod
    def _time_is_slurm_time(cls, value: str) -> str:
        parse_walltime(value)
        return value


class NodeKind(Section):
    """Nodes that are alike, for the emulated engine and the simulator."""

    count: PositiveInt
    coefficients: FilePath | None = Field(default=None, description="coefficient file; default engine.coefficients")
    memory_gb: PositiveFloat | None = Field(
        default=None, description="of a stage, GB; default policy.memory.capacity_gb"
    )


class Nodes(Section):
    """`count` replicas of the model, each cut into `stages` pipeline stages, one device per stage."""

    count: Annotated[int, Field(gt=0, le=MOST_NODES)] = 1
    stages: Annotated[int, Field(gt=0, le=MOST_STAGES)] = 1
    kinds: list[NodeKind] | None = Field(
        default=None, min_length=1, description="nodes of different speed or memory, in the order of their numbers"
    )

    @model_validator(mode="after")
    def _kinds_add_up(self) -> Self:
        if self.kinds is not None and (total := sum(kind.count for kind in self.kinds)) != self.count:
            raise ValueError(f"the counts of `kinds` add up to {total}, and `count` is {self.count}; make them equal")
        return self


class Model(Section):
    """A Hugging Face checkpoint directory, or a Hugging Face config to initialise at random."""

    path: FilePath | None = None
    config: dict[str, Any] | None = None
    resize: bool = Field(
        default=False, description="add rows to the embedding of a checkpoint whose tokenizer has more tokens"
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
        default="shared", description="one copy for serving and training, or a second one that every step updates"
    )
    kv_cache_gb: PositiveFloat | None = Field(
        default=None,
        description="KV cache of a stage, GB; default 0.25 on a CPU, on a GPU what training leaves, by the memory plan",
    )
    args: dict[str, Any] = Field(default={}, description="more arguments of `vllm serve`, with underscores")

    @field_validator("args")
    @classmethod
    def _leave_the_endpoint_alone(cls, args: dict[str, Any]) -> dict[str, Any]:
        if wrong := [reason for name in args if (reason := why_not(name)) is not None]:
            raise ValueError("; ".join(wrong))
        return args


class Engine(Section):
    kind: str = "torch"
    coefficients: FilePath | None = Field(
        default=None, description="coefficient file; `torch` measures at start when absent"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    share_devices: bool = Field(default=False, description="several stage ranks may use one GPU")
    device_buffers: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="MPI sends a GPU's memory; by default if it says so and a transfer at the start works",
    )
    max_batch_requests: PositiveInt = 8
    max_batch_tokens: Tokens = 4096
    wait: Literal["auto", "spin", "backoff"] = "auto"
    timeout_s: Seconds = Field(default=120.0, description="a stage that does not answer for so long has failed")
    vllm: Vllm = Vllm()

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
    def serves_http(self) -> bool:
        """Whether it answers calls of the OpenAI API."""
        return ENGINE_KINDS[self.kind].serves_http


class Slo(Section):
    """Limits on the response time as multiples of T0, the mean unloaded response, and limits in milliseconds; they are those of
    interactive requests. Batch requests have a completion window."""

    factors: list[PositiveFloat] = Field(default=[1, 5, 10], min_length=1, description="in units of T0")
    ttft_ms: Milliseconds | None = Field(default=None, description="limit on the time to the first token")
    tpot_ms: Milliseconds | None = Field(default=None, description="limit on the time per further token")
    response_ms: Milliseconds | None = Field(default=None, description="limit on the response time")
    completion_window_s: Seconds = Field(default=86400.0, description="limit on the response time of batch requests")


class Simulate(Section):
    """What only `lemix simulate` and its grids use."""

    latency_error: float = Field(
        default=0.0,
        ge=0.0,
        le=10.0,
        description="relative spread (log-normal) of pass times around the coefficient file's",
    )
    between_passes_ms: float = Field(
        default=0.0,
        ge=0.0,
        description="from what a stage has to do until it does that; a run's report says what it was",
    )


class Profile(Section):
    """What `lemix profile` measures: forwards and backwards of all `batches` x `lengths`, decode steps of all `batches` x
    `contexts`, as far as `engine.max_batch_tokens` and the model's positions let them."""

    batches: list[PositiveInt] = Field(default=[1, 2, 4, 8], min_length=1)
    lengths: list[PositiveInt] = Field(default=[8, 16, 32, 64, 128, 256, 512, 1024, 2048], min_length=1)
    contexts: list[PositiveInt] = Field(default=[16, 64, 256, 1024], description="cached tokens under a decode step")
    warm_up: PositiveInt = Field(default=2, description="passes before those that count")
    repeats: PositiveInt = Field(default=7, description="passes that count")
    pause_s: SecondsOrNone = Field(default=0.0, description="rest before each pass, as a stage rests between requests")
    time_budget_s: Seconds = Field(default=1200.0, description="points not measured by then are left out")


class Report(Section):
    live_interval_s: float = Field(
        default=0.5, ge=0.05, le=LONGEST_S, description="seconds between updates of the live progress"
    )
    spans: Literal["all", "sampled", "off"] = Field(
        default="all", description="work of stages that is written down: all, that of one second in ten, or none"
    )


class Recipe(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
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
