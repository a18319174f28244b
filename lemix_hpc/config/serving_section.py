"""The `serving` section of a recipe: which requests come, when, and how they are served."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lemix_hpc.config.api_keys import RIGHTS, ApiKey, Right, usable
from lemix_hpc.config.section import LONGEST_S, FilePath, Fraction, Part, Seconds, Section, Tokens
from lemix_hpc.config.workload_section import LengthTable, TextData


class TraceSource(Section):
    """Arrivals and lengths (and text, for `openai-batch`) from a file."""

    kind: Literal["azure", "mooncake", "burstgpt", "openai-batch"] = Field(
        description=(
            "`azure`, `mooncake`, `burstgpt` or `openai-batch` read a file; `poisson`, `bursty`, `constant` or "
            "`daily` generate arrivals."
        )
    )
    path: FilePath = Field(description="The file. For the kinds that read one.")


class GeneratedSource(Section):
    """Arrivals from a process, lengths from the published quantiles of a trace."""

    kind: Literal["poisson", "bursty", "constant", "daily"]
    rate: PositiveFloat = Field(
        description=(
            "Mean requests per second; for `bursty` during the on phase. This key and those below are for the "
            "kinds that generate."
        )
    )
    duration_s: Seconds | None = Field(
        default=None, description="Generate for so many seconds. Give this, `requests`, or both."
    )
    requests: PositiveInt | None = Field(default=None, description="Generate so many requests.")
    lengths: LengthTable = Field(
        default="azure-conv",
        description="Published lengths to draw from: `azure-conv`, `azure-code`, `mooncake-conversation` or `lmsys-chat`.",
    )
    on_s: Seconds = Field(default=1.0, description="`bursty`: mean length of the on phase, seconds.")
    off_s: Seconds = Field(default=3.0, description="`bursty`: mean length of the off phase, seconds.")
    swing: Fraction = Field(
        default=0.8,
        description="`daily`: amplitude of the rate, as a share of its mean; the rate is lowest at the start.",
    )
    period_s: float = Field(default=86400.0, ge=1e-3, le=LONGEST_S, description="`daily`: period of the rate, seconds.")

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.duration_s is None and self.requests is None:
            raise ValueError("a generated workload needs `duration_s`, `requests`, or both")
        return self


class Window(Section):
    """The part of the trace to replay; times in seconds of the trace, before rate scaling."""

    start_s: float = Field(
        default=0.0,
        ge=0.0,
        le=LONGEST_S,
        description="Replay from this time of the trace, seconds before rate scaling.",
    )
    end_s: Seconds | None = Field(default=None, description="Replay up to this time of the trace.")
    limit: PositiveInt | None = Field(default=None, description="At most so many requests.")

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"`end_s` ({self.end_s}) must come after `start_s` ({self.start_s})")
        return self


class Conversations(Section):
    """Every `turns` requests that follow one another in the source make a conversation."""

    turns: PositiveInt = Field(description=("So many consecutive requests of the source make a conversation."))
    think_s: Seconds = Field(description="Mean seconds from an answer to the next turn, exponential and seeded.")


class Munge(Section):
    """Users of the cluster who may come in with a MUNGE credential in place of a key."""

    users: list[str] = Field(
        default=[],
        description=(
            "Users of the cluster who may come in with a [MUNGE credential](http.md#munge) in place of a key, "
            "besides you."
        ),
    )
    groups: list[str] = Field(default=[], description="Groups all of whose users may.")
    rights: list[Right] = Field(default=["serve"], min_length=1, description="What they may do. You may do everything.")
    requests_per_s: PositiveFloat | None = Field(
        default=None, description="What each of them may ask for, requests per second."
    )
    tokens_per_min: PositiveFloat | None = Field(default=None, description="The same in tokens per minute.")
    socket: FilePath | None = Field(default=None, description="The socket of `munged`, where it is not the usual one.")

    def key_of(self, user: str, *, owns: bool) -> ApiKey:
        """What a user may do, as if by a key."""
        rights = list(RIGHTS) if owns else self.rights
        limits = {} if owns else {"requests_per_s": self.requests_per_s, "tokens_per_min": self.tokens_per_min}
        return ApiKey(name=f"munge:{user}", key="of MUNGE", rights=rights, **limits)


class Http(Section):
    """The OpenAI API at the scheduler rank. It lasts `duration_s`, or until it is told to end."""

    host: str = Field(
        default="127.0.0.1", description="Address that the OpenAI API listens on, on the scheduler rank's host."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Its port; 0 takes a free one.")
    api_key: str | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description=(
            "What clients have to send as their bearer token. Without it the run takes `LEMIX_API_KEY` of the "
            "environment, or makes a key; see [keys](http.md#keys). It is not written into the run directory's "
            "recipe."
        ),
    )
    api_key_file: FilePath | None = Field(
        default=None,
        description="A file, readable by its owner alone, with that key, or with [several](http.md#several-keys).",
    )
    munge: Munge | None = Field(
        default=None, description="Take [MUNGE credentials](http.md#munge), too; `{}` takes your own."
    )
    duration_s: Seconds | None = Field(
        default=None,
        description=(
            "Seconds until no more requests are taken; without it, until it is [told to end](http.md#how-it-ends)."
        ),
    )
    max_body_mb: PositiveFloat = Field(default=16.0, description="Larger requests are refused, MB.")

    @field_validator("api_key")
    @classmethod
    def _lets_not_everybody_in(cls, key: str | None) -> str | None:
        return None if key is None else usable(key)

    @model_validator(mode="after")
    def _has_its_keys_from_one_place(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("`api_key` and `api_key_file` are given; remove one of them")
        return self


class Serving(Section):
    source: Annotated[TraceSource | GeneratedSource, Field(discriminator="kind")] | None = None
    http: Http | None = Field(
        default=None,
        description="Serve clients over the [OpenAI API](http.md), with `engine.kind: vllm`; `{}` takes all defaults.",
    )
    mode: Literal["score", "generate"] = Field(
        default="score", description="`score`: likelihood of the prompt. `generate`: new tokens."
    )
    batch_requests: Part | None = Field(
        default=None,
        description=(
            "Share of the source's requests that are of [class](policy.md#classes-of-requests) `batch`, seeded: 0 "
            "to 1. By default 1 for `openai-batch`, else 0."
        ),
    )
    rate_scale: float = Field(default=1.0, ge=1e-6, le=1e6, description="2 replays the requests twice as fast.")
    window: Window = Window()
    max_prompt_tokens: Tokens | None = Field(default=None, description="Cut longer prompts to this.")
    max_new_tokens: Tokens | None = Field(default=None, description="Cut longer outputs to this.")
    prompts: TextData | None = Field(
        default=None, description="Text that fills the prompts; without it they are seeded random tokens."
    )
    temperature: float = Field(
        default=0.0, ge=0.0, le=100.0, description="Sampling temperature of `generate`; 0 is greedy."
    )
    conversations: Conversations | None = Field(
        default=None, description="Requests that wait for the answer to the one before; without it all are independent."
    )
