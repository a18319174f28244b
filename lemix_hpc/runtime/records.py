"""What a run writes about itself, one JSON object per line. All times are in seconds since the start of the run."""

from __future__ import annotations

from typing import Literal

import msgspec

from lemix_hpc.policy.drift import Drift
from lemix_hpc.policy.recalibration import Learned

SpanKind = Literal["serve", "forward", "backward", "step", "copy"]
Outcome = Literal["finished", "rejected", "lost", "aborted"]
"""Of a call over HTTP: `rejected` if its answer was an error, `lost` without an answer, `aborted` if the client hung up."""


class Span(msgspec.Struct, frozen=True):
    """One stretch of work on one stage for one task (`spans.jsonl`).

    A batch of k requests gives k spans with the same `batch` and times; a training pass that stopped in between gives one
    span per stretch. `task` is empty for steps and weight copies. `version` is the weight version that the work saw.
    """

    node: int
    stage: int
    task: str
    kind: SpanKind
    start: float
    end: float
    version: int
    batch: int = -1


class ServedTask(msgspec.Struct, frozen=True, tag="serving", tag_field="kind"):
    """One request (`tasks.jsonl`). Fields that it never reached are None. `versions`: first and last weight version.

    `number` is its task in `events.jsonl`.
    """

    id: str
    outcome: Outcome
    arrival: float
    prompt_tokens: int
    node: int | None = None
    placed: float | None = None
    first_token: float | None = None
    finished: float | None = None
    nll: float | None = None
    scored_tokens: int = 0
    output: list[int] = []
    versions: tuple[int, int] | None = None
    predicted_response_s: float | None = None
    number: int | None = None


class TrainedTask(msgspec.Struct, frozen=True, tag="training", tag_field="kind"):
    """One training micro-batch (`tasks.jsonl`). `eligible`: when the release rule let it go; `placed`: when it went.

    `number` is its task in `events.jsonl`; `samples`: ids of the clients' samples in it, as in `samples.jsonl`.
    """

    id: str
    outcome: Outcome
    eligible: float
    tokens: int
    node: int | None = None
    placed: float | None = None
    finished: float | None = None
    loss: float | None = None
    step: int | None = None
    number: int | None = None
    samples: list[str] = []


TaskRecord = ServedTask | TrainedTask


class MemoryWaits(msgspec.Struct, frozen=True):
    """Waits for memory that lasted: seconds, None without any."""

    count: int
    mean_s: float | None
    max_s: float | None


class StageMemoryShares(msgspec.Struct, frozen=True):
    """The most that a stage held of its capacity, in all and of each kind; the kinds peak at different times."""

    peak: float
    resting: float
    activations: float
    cache: float


class MemoryUse(msgspec.Struct, frozen=True):
    """What limited memory has cost. `stages`: first to last, each of the node where it was fullest."""

    stages: list[StageMemoryShares]
    serving_waits: MemoryWaits
    training_waits: MemoryWaits
    offloads: int
    offloaded_bytes: int
    preemptions: int
    recomputed_tokens: int


class SumsOverNodes(msgspec.Struct, frozen=True):
    """Averages (`average`) or steps (`sync`) of all nodes that came into force everywhere.

    `mean_s`, `max_s`: from the first stage's snapshot or gradient to the last stage's commit; `nbytes`: sent by all stages.
    """

    mode: Literal["average", "sync"]
    count: int
    mean_s: float | None
    max_s: float | None
    nbytes: int


class RunFacts(msgspec.Struct, frozen=True):
    """What the report needs beside spans and tasks (`facts.json`).

    `steps`: optimizer steps over all nodes; `slo_ms`: limits in ms on `ttft`, `tpot` and `response`, those given;
    `drift`: stages whose times left the coefficient file's; `memory`: None where it has no limit;
    `across_nodes`: None where every node keeps its own updates; `overhead_s`: what forecasts added to a pass's work at first.
    """

    policy: str
    engine: str
    nodes: int
    stages: int
    slo_factors: list[float]
    t0_s: float
    duration_s: float
    steps: int
    slo_ms: dict[str, float] = {}
    malformed_lines: int = 0
    outside_range: int = 0
    drift: list[Drift] = []
    memory: MemoryUse | None = None
    across_nodes: SumsOverNodes | None = None
    overhead_s: float = 0.0


class LearnedTimes(msgspec.Struct, frozen=True):
    """What a run learned about stage times (`learned.json`), on top of the `coefficients.yaml` beside it.

    `source`: the file that the run started from, None when it measured itself. `applied`: whether forecasts made use of it.
    """

    source: str | None
    applied: bool
    learned: list[Learned]


class Progress(msgspec.Struct, frozen=True):
    """A live picture of the run (`progress.json`, replaced as a whole every so often). `address`: of its OpenAI API.

    `measured` of `to_measure` points, and `left_s` seconds to go, are there while profiling.
    """

    state: Literal["starting", "running", "finished", "failed"]
    elapsed_s: float = 0.0
    message: str = ""
    address: str | None = None
    received: int = 0
    requests: int = 0
    served: int = 0
    trained: int = 0
    training_total: int | None = None
    steps: int = 0
    loss: float | None = None
    response_ms_p50: float | None = None
    measured: int = 0
    to_measure: int = 0
    left_s: float | None = None
    stage_busy: list[list[float]] = []
    drift: list[Drift] = []
