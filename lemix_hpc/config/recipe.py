"""The recipe: everything that a run depends on, as read from YAML.

Reading, overriding and the messages for mistakes are in `lemix_hpc.config.load`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lemix_hpc.config.policy_section import Policy
from lemix_hpc.config.section import FilePath, Fraction, Section
from lemix_hpc.config.walltime import parse_walltime


class Cluster(Section):
    """Where the run goes. Everything but `kind` and `nodes_per_host` speaks to Slurm in Slurm's own words."""

    kind: Literal["auto", "slurm", "local", "allocation"] = "auto"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = "01:00:00"
    gres: str | None = None
    gpus_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt = 1
    mem: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    nodes_per_host: PositiveInt = 1
    container: list[str] = Field(default=[], description="command that runs another one inside the container")
    setup: list[str] = Field(default=[], description="shell lines before srun")
    srun_args: list[str] = Field(default=[], description="more arguments for srun")
    mpi: str = "pmix"

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

    count: PositiveInt = 1
    stages: PositiveInt = 1
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

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.config is not None:
            raise ValueError(
                "give either `path` (a checkpoint directory) or `config` (initialised at random), not both"
            )
        if self.config is not None and "model_type" not in self.config:
            raise ValueError(
                "`config` needs `model_type`, as in a Hugging Face config.json: llama, mistral, qwen2 or gpt2"
            )
        return self


class Engine(Section):
    kind: Literal["emulated", "torch"] = "torch"
    coefficients: FilePath | None = Field(
        default=None, description="coefficient file; `torch` measures at start when absent"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    share_devices: bool = Field(default=False, description="several stage ranks may use one GPU")
    max_batch_requests: PositiveInt = 8
    max_batch_tokens: PositiveInt = 4096
    wait: Literal["auto", "spin", "backoff"] = "auto"


class TraceSource(Section):
    """Arrivals and lengths (and text, for `openai-batch`) from a file."""

    kind: Literal["azure", "mooncake", "burstgpt", "openai-batch"]
    path: FilePath


LengthTable = Literal["azure-conv", "azure-code", "mooncake-conversation", "lmsys-chat"]


class GeneratedSource(Section):
    """Arrivals from a process, lengths from the published quantiles of a trace."""

    kind: Literal["poisson", "bursty", "constant", "daily"]
    rate: PositiveFloat = Field(description="mean requests per second; for `bursty` during the on phase")
    duration_s: PositiveFloat | None = None
    requests: PositiveInt | None = None
    lengths: LengthTable = "azure-conv"
    on_s: PositiveFloat = 1.0
    off_s: PositiveFloat = 3.0
    swing: Fraction = Field(default=0.8, description="`daily`: by what share of itself the rate swings")
    period_s: PositiveFloat = Field(default=86400.0, description="`daily`: seconds of one swing")

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.duration_s is None and self.requests is None:
            raise ValueError("a generated workload needs `duration_s`, `requests`, or both")
        return self


class Window(Section):
    """The part of the trace to replay; times in seconds of the trace, before rate scaling."""

    start_s: float = Field(default=0.0, ge=0.0)
    end_s: PositiveFloat | None = None
    limit: PositiveInt | None = Field(default=None, description="at most this many requests")

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"`end_s` ({self.end_s}) must come after `start_s` ({self.start_s})")
        return self


class TextFields(Section):
    """Which fields of a JSON line hold the text: `text` alone, or `prompt` and `completion`."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None

    @model_validator(mode="after")
    def _text_or_pair(self) -> Self:
        if self.text is not None and (self.prompt or self.completion):
            raise ValueError("map either `text`, or `prompt` and `completion`")
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` go together")
        return self


class TextData(Section):
    """JSON lines of text. With no `fields`, each line has `text`, or `prompt` and `completion`."""

    path: FilePath
    fields: TextFields = TextFields()


class Conversations(Section):
    """Every `turns` requests that follow one another in the source make a conversation."""

    turns: PositiveInt = Field(description="requests in a conversation")
    think_s: PositiveFloat = Field(description="mean seconds from an answer to the next turn, exponential")


class Serving(Section):
    source: Annotated[TraceSource | GeneratedSource, Field(discriminator="kind")]
    mode: Literal["score", "generate"] = Field(default="score", description="NLL of the prompt, or new tokens")
    rate_scale: PositiveFloat = Field(default=1.0, description="2 replays the trace twice as fast")
    window: Window = Window()
    max_prompt_tokens: PositiveInt | None = Field(default=None, description="longer prompts are cut to this")
    max_new_tokens: PositiveInt | None = Field(default=None, description="longer outputs are cut to this")
    prompts: TextData | None = Field(
        default=None, description="text that fills prompts; without it seeded random tokens"
    )
    temperature: float = Field(default=0.0, ge=0.0, description="0 is greedy")
    conversations: Conversations | None = Field(default=None, description="turns that wait for the answer before")


class Training(Section):
    """Text to train on, how it is cut into micro-batches, when they are released, and the optimizer.

    Without `share` and `micro_batches` training goes on, over as many epochs as it takes, while serving lasts.
    """

    data: TextData | None = Field(default=None, description="needed by every engine that computes")
    sequence_length: PositiveInt = 128
    lengths: LengthTable | None = Field(
        default=None, description="emulated: micro-batch lengths drawn from this table instead of sequence_length"
    )
    micro_batch_size: PositiveInt = 1
    packing: Literal["packed", "padded"] = "packed"
    share: Fraction | None = Field(default=None, description="training micro-batches / all tasks")
    micro_batches: PositiveInt | None = Field(default=None, description="how many to train on in all")
    release: Literal["async", "sync"] = "async"
    schedule: Literal["1f1b", "gpipe"] = Field(default="1f1b", description="order within a `sync` group")
    micro_batches_per_step: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    gradient_clipping: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.share is not None and self.micro_batches is not None:
            raise ValueError("give `share` or `micro_batches`, not both")
        return self


class Slo(Section):
    """Limits on the response time as multiples of T0, the mean unloaded response, and limits in milliseconds."""

    factors: list[PositiveFloat] = Field(default=[1, 5, 10], description="in units of T0")
    ttft_ms: PositiveFloat | None = Field(default=None, description="limit on the time to the first token")
    tpot_ms: PositiveFloat | None = Field(default=None, description="limit on the time per further token")
    response_ms: PositiveFloat | None = Field(default=None, description="limit on the response time")


class Simulate(Section):
    """What only `lemix simulate` and its grids use."""

    latency_error: float = Field(
        default=0.0, ge=0.0, description="relative spread (log-normal) of pass times around the coefficient file's"
    )


class Profile(Section):
    """What `lemix profile` measures: forwards and backwards of all `batches` x `lengths`, decode steps of all `batches` x
    `contexts`, as far as `engine.max_batch_tokens` and the model's positions let them."""

    batches: list[PositiveInt] = Field(default=[1, 2, 4, 8], min_length=1)
    lengths: list[PositiveInt] = Field(default=[8, 16, 32, 64, 128, 256, 512, 1024, 2048], min_length=1)
    contexts: list[PositiveInt] = Field(default=[16, 64, 256, 1024], description="cached tokens under a decode step")
    warm_up: PositiveInt = Field(default=2, description="passes before those that count")
    repeats: PositiveInt = Field(default=7, description="passes that count")
    pause_s: float = Field(default=0.0, ge=0.0, description="rest before each pass, as a stage rests between requests")
    time_budget_s: PositiveFloat = Field(default=1200.0, description="points not measured by then are left out")


class Report(Section):
    live_interval_s: PositiveFloat = Field(default=0.5, description="seconds between updates of the live progress")


class Recipe(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    seed: int = Field(default=0, ge=0)
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
