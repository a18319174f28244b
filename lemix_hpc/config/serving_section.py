"""The `serving` section of a recipe: which requests come, when, and how they are served."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lemix_hpc.config.api_keys import RIGHTS, ApiKey, Right, usable
from lemix_hpc.config.section import LONGEST_S, FilePath, Fraction, Part, Seconds, Section, Tokens
from lemix_hpc.config.workload_section import LengthTable, TextData


class TraceSource(Section):
    """Arrivals and lengths (and text, for `openai-batch`) from a file."""

    kind: Literal["azure", "mooncake", "burstgpt", "openai-batch"]
    path: FilePath


class GeneratedSource(Section):
    """Arrivals from a process, lengths from the published quantiles of a trace."""

    kind: Literal["poisson", "bursty", "constant", "daily"]
    rate: PositiveFloat = Field(description="mean requests per second; for `bursty` during the on phase")
    duration_s: Seconds | None = None
    requests: PositiveInt | None = None
    lengths: LengthTable = "azure-conv"
    on_s: Seconds = 1.0
    off_s: Seconds = 3.0
    swing: Fraction = Field(default=0.8, description="`daily`: by what share of itself the rate swings")
    period_s: float = Field(default=86400.0, ge=1e-3, le=LONGEST_S, description="`daily`: seconds of one swing")

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.duration_s is None and self.requests is None:
            raise ValueError("a generated workload needs `duration_s`, `requests`, or both")
        return self


class Window(Section):
    """The part of the trace to replay; times in seconds of the trace, before rate scaling."""

    start_s: float = Field(default=0.0, ge=0.0, le=LONGEST_S)
    end_s: Seconds | None = None
    limit: PositiveInt | None = Field(default=None, description="at most this many requests")

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"`end_s` ({self.end_s}) must come after `start_s` ({self.start_s})")
        return self


class Conversations(Section):
    """Every `turns` requests that follow one another in the source make a conversation."""

    turns: PositiveInt = Field(description="requests in a conversation")
    think_s: Seconds = Field(description="mean seconds from an answer to the next turn, exponential")


class Munge(Section):
    """Users of the cluster who may come in with a MUNGE credential in place of a key."""

    users: list[str] = Field(default=[], description="names of users, besides the run's own")
    groups: list[str] = Field(default=[], description="names of groups, all of whose users may come in")
    rights: list[Right] = Field(default=["serve"], min_length=1, description="what they may do; the run's own all")
    requests_per_s: PositiveFloat | None = Field(default=None, description="what each may ask for")
    tokens_per_min: PositiveFloat | None = Field(default=None, description="prompts and answers of each")
    socket: FilePath | None = Field(default=None, description="munged's, where it is not the usual one")

    def key_of(self, user: str, *, owns: bool) -> ApiKey:
        """What a user may do, as if by a key."""
        rights = list(RIGHTS) if owns else self.rights
        limits = {} if owns else {"requests_per_s": self.requests_per_s, "tokens_per_min": self.tokens_per_min}
        return ApiKey(name=f"munge:{user}", key="of MUNGE", rights=rights, **limits)


class Http(Section):
    """The OpenAI API at the scheduler rank. It lasts `duration_s`, or until it is told to end."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    api_key: str | None = Field(
        default=None, exclude=True, repr=False, description="what clients send as their bearer token"
    )
    api_key_file: FilePath | None = Field(default=None, description="a file with that, or with several keys")
    munge: Munge | None = Field(default=None, description="take MUNGE credentials, too")
    duration_s: Seconds | None = Field(default=None, description="seconds until no more requests are taken")
    max_body_mb: PositiveFloat = Field(default=16.0, description="larger requests are refused, MB")

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
    http: Http | None = Field(default=None, description="serve clients over the OpenAI API (engine vllm)")
    mode: Literal["score", "generate"] = Field(default="score", description="NLL of the prompt, or new tokens")
    batch_requests: Part | None = Field(
        default=None,
        description="share of the source's requests that are of class batch; default 1 for `openai-batch`, else 0",
    )
    rate_scale: float = Field(default=1.0, ge=1e-6, le=1e6, description="2 replays the trace twice as fast")
    window: Window = Window()
    max_prompt_tokens: Tokens | None = Field(default=None, description="longer prompts are cut to this")
    max_new_tokens: Tokens | None = Field(default=None, description="longer outputs are cut to this")
    prompts: TextData | None = Field(
        default=None, description="text that fills prompts; without it seeded random tokens"
    )
    temperature: float = Field(default=0.0, ge=0.0, le=100.0, description="0 is greedy")
    conversations: Conversations | None = Field(default=None, description="turns that wait for the answer before")
