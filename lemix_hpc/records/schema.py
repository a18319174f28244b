"""The records in the files of a run. All times are in seconds since the start of the run."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.policy.drift import Drift, Straggler
from lemix_hpc.policy.memory import Learned, Memory
from lemix_hpc.records.sampling import Sampling

COEFFICIENTS = "coefficients.yaml"
"""The stage times that a run started from, in its directory."""
FACTS = "facts.json"
"""What a report needs besides spans and tasks."""
SPANS = "spans.jsonl"
TASKS = "tasks.jsonl"
SAMPLES = "samples.jsonl"
RESULTS = "results.jsonl"
PROGRESS = "progress.json"
"""The live figures."""
LEARNED = "learned.json"
"""What it has learned of them."""
MEMORY = "memory.json"
"""All that its scheduler has learned."""
RECALLED = "recalled.json"
"""What its scheduler started with, if an earlier attempt has left something."""

SpanKind = Literal["serve", "forward", "backward", "step", "copy", "save"]
Outcome = Literal["finished", "rejected", "lost", "aborted"]
"""Of a call over HTTP: `rejected` if its answer was an error, `lost` without an answer, `aborted` if the client hung up."""


class Span(msgspec.Struct, frozen=True):
    """Uninterrupted work on one stage for one task.

    A batch of k requests gives k spans with the same `batch` and times. A training pass that rested for serving gives one
    span before and one after each rest. `task` is the task's id, empty for steps, weight copies and saves. `version` is the
    weight version that the work used. `batch` is -1 for everything but serving.
    """

    node: int
    stage: int
    task: str
    kind: SpanKind
    start: float
    end: float
    version: int
    batch: int = -1


class Stretch(msgspec.Struct, frozen=True, omit_defaults=True):
    """Uninterrupted work on one stage: the spans of all its tasks, written down once (`spans.jsonl`).

    `task`: the id of its task, empty where there is none; or `tasks`: those of the requests of a batch, if they are several.
    """

    node: int
    stage: int
    kind: SpanKind
    start: float
    end: float
    version: int
    batch: int = -1
    task: str = ""
    tasks: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """The ids of all its tasks."""
        return self.tasks or ((self.task,) if self.task else ())


class BatchWork(msgspec.Struct, frozen=True, omit_defaults=True, tag="serve", tag_field="kind"):
    """What the stages have done for a batch, all in one line of `spans.jsonl`: a stretch on each, by `starts` and `ends`; the
    rest is as in `Stretch`."""

    node: int
    starts: tuple[float, ...]
    ends: tuple[float, ...]
    version: int
    batch: int
    task: str = ""
    tasks: tuple[str, ...] = ()


class ServedTask(msgspec.Struct, frozen=True, tag="serving", tag_field="kind"):
    """One request (`tasks.jsonl`). Fields for events that did not happen are None.

    `placed`: when the policy chose its node. `nll`: negative log-likelihood of the prompt, the sum over its `scored_tokens` in
    nats. `output`: token ids. `versions`: first and last weight version. `predicted_response_s`: the forecast when it was
    placed, seconds, and of a request that generates `predicted_ttft_s` to its first token and `predicted_tpot_s` for each
    further one. `number` is its task in `events.jsonl`. `key`: the name of its client's; `service`: its class.
    `answers`: how many `output` is of, which were generated side by side.
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
    key: str | None = None
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    service: ServiceClass = "interactive"
    answers: Annotated[int, msgspec.Meta(ge=1)] = 1

    @property
    def answer_tokens(self) -> int:
        """Of one answer, in the mean."""
        return -(-len(self.output) // self.answers)


class TrainedTask(msgspec.Struct, frozen=True, tag="training", tag_field="kind"):
    """One training micro-batch (`tasks.jsonl`). Fields for events that did not happen are None.

    `eligible`: when it was released; `placed`: when it was sent to its node, after a hold if there was one. `tokens`: rows x
    length. `loss`: mean over its labelled tokens, nats per token. `step`: the weight version that its optimizer step made.
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


class PostedSample(msgspec.Struct, frozen=True):
    """A training sample of a client, as far as reports need it (`samples.jsonl`). `key`: the name of the client's key."""

    id: str
    key: str = ""


class ClassFigures(msgspec.Struct, frozen=True):
    """The requests of one class: how many came and finished; response, time to the first token, per output token and between
    tokens [ms], as means and percentiles; the shares within each limit, or within the `window`; tokens per second."""

    received: int
    finished: int
    response_ms: dict[str, float | None]
    ttft_ms: dict[str, float | None]
    tpot_ms: dict[str, float | None]
    inter_token_ms: dict[str, float | None]
    attainment: dict[str, float | None]
    tokens_per_s: float | None


class MemoryWaits(msgspec.Struct, frozen=True):
    """Waits for memory longer than 0: their number, and their mean and longest in seconds, None without any."""

    count: int
    mean_s: float | None
    max_s: float | None


class StageMemoryPeaks(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a stage: all there are (None without an end), what always rests there, and what tasks have held at most, in all
    and of each kind; and how often a task had to wait for this stage, activations left it (with how many bytes), and a
    request lost its cache for it."""

    capacity: float | None = None
    resting: int = 0
    peak: int = 0
    peak_activations: int = 0
    peak_cache: int = 0
    waits: int = 0
    offloads: int = 0
    offloaded: int = 0
    preemptions: int = 0


class NodeMemory(msgspec.Struct, frozen=True, array_like=True):
    """What a node has made of its memory: by stage; the waits for it of serving and of training, their sum and the longest [s];
    and how often requests lost their caches, with the tokens that were computed again."""

    stages: list[StageMemoryPeaks]
    serving_waits: int = 0
    serving_waited: float = 0.0
    serving_longest: float = 0.0
    training_waits: int = 0
    training_waited: float = 0.0
    training_longest: float = 0.0
    preemptions: int = 0
    recomputed: int = 0


class StageMemoryShares(msgspec.Struct, frozen=True):
    """The largest use of a stage's memory / its capacity: in all (`peak`) and of each kind. Kinds peak at different times. And
    over all nodes: tasks that have waited for this stage, activations that have left it, and caches lost for it."""

    peak: float
    resting: float
    activations: float
    cache: float
    waits: int = 0
    offloads: int = 0
    preemptions: int = 0


class MemoryUse(msgspec.Struct, frozen=True):
    """What limited memory has cost. `stages`: first to last, each figure from the node where it was largest."""

    stages: list[StageMemoryShares]
    serving_waits: MemoryWaits
    training_waits: MemoryWaits
    offloads: int
    offloaded_bytes: int
    preemptions: int
    recomputed_tokens: int


class SumsOverNodes(msgspec.Struct, frozen=True):
    """Averages (`average`) or steps (`sync`) of all nodes that were committed on every stage.

    `mean_s`, `max_s`: seconds from the first stage's snapshot or gradient to the last stage's commit, None without any;
    `nbytes`: bytes that all stages sent.
    """

    mode: Literal["average", "sync"]
    count: int
    mean_s: float | None
    max_s: float | None
    nbytes: int


class CheckpointFacts(msgspec.Struct, frozen=True):
    """The checkpoints of a run: `saved` and `failed` ones, and the bytes of all that were saved.

    `last_step`: of the newest, None without one; `last_failure`: why one could not be saved. `snapshot_max_s`: the longest that
    a stage took to copy its state, serving in between included; `write_max_s`: to write it, None without any. `unsaved_steps`:
    how many steps at the end of the run are in none, since the last save never worked.
    """

    saved: int
    failed: int
    last_step: int | None
    last_failure: str | None
    nbytes: int
    snapshot_max_s: float | None
    write_max_s: float | None
    unsaved_steps: int = 0


class DiskFacts(msgspec.Struct, frozen=True):
    """That the disk did not take everything: why at last, for how many seconds in all, and how many spans and events were left
    out for that."""

    why: str
    seconds: float
    left_out: int


class SettingChange(msgspec.Struct, frozen=True):
    """A key of the recipe that a user changed while the run went on. `value`: in YAML; `at_s`: of the run."""

    key: str
    value: str
    at_s: float


class HeldOutLoss(msgspec.Struct, frozen=True):
    """The mean loss, in nats per token, on `tokens` of `documents` that are never trained on, after so many `steps`."""

    steps: int
    loss: float
    documents: int
    tokens: int


class RunFacts(msgspec.Struct, frozen=True):
    """What the report needs in addition to spans and tasks (`facts.json`).

    `slo_factors`: limits on responses, in T0; `steps`: optimizer steps over all nodes; `slo_ms`: those limits on `ttft`,
    `tpot` and `response` that the recipe gives, ms; `malformed_lines`: lines of input files that were left out;
    `outside_range`: requests longer than the coefficient file's range; `drift`: alarms on stage times; `stragglers`: stages
    that were slower than those of other nodes; `memory`: None if it has no limit; `across_nodes`: None if every node keeps its
    own updates; `overhead_s`: what forecasts added, at the start, to the stage times of each pass of a response;
    `checkpoints`: None if nothing is saved; `refuses_after_s`: when the policy let nothing run any more, None if that was not
    limited; `disk`: None if it took everything; `pace_s`: the limits on `ttft` and `tpot` that decode was paced to, if it was;
    `skipped_steps`: whose gradients were not finite, so that they changed nothing and are none of the `steps`;
    `training_stopped`: whether it was for that; `lost_losses`: micro-batches whose loss was not finite; `completion_window_s`:
    limit on responses of batch requests; `changes`: of the recipe, while the run went on; `spans`: how much of the work is in
    `spans.jsonl`; `held_out`: losses before training and at its end, in order, as far as they were taken.
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
    stragglers: list[Straggler] = []
    memory: MemoryUse | None = None
    across_nodes: SumsOverNodes | None = None
    overhead_s: float = 0.0
    checkpoints: CheckpointFacts | None = None
    refuses_after_s: float | None = None
    disk: DiskFacts | None = None
    pace_s: dict[str, float] = {}
    skipped_steps: int = 0
    training_stopped: bool = False
    lost_losses: int = 0
    completion_window_s: float | None = None
    changes: list[SettingChange] = []
    spans: Sampling = "all"
    held_out: list[HeldOutLoss] = []


class LearnedTimes(msgspec.Struct, frozen=True):
    """What a run learned about stage times (`learned.json`): corrections to the `coefficients.yaml` beside it.

    `source`: the coefficient file that the run started with, None if it measured at the start. `applied`: whether forecasts
    used the corrections (`policy.recalibrate`).
    """

    source: str | None
    applied: bool
    learned: list[Learned]


class SchedulerMemory(msgspec.Struct, frozen=True):
    """What forecasts go by and an attempt has learned (`memory.json`), for the next one; also what it started with
    (`recalled.json`). `coefficients`: a digest of the stage times that it corrects."""

    coefficients: str
    memory: Memory


class AttemptFacts(msgspec.Struct, frozen=True):
    """One attempt at a run. `started`, `ended`: seconds since the epoch; `reason` and `message`: why it ended. None where
    nobody knows, or it has not ended. `damage`: what it could not read of what those before it had left."""

    number: int
    started: float
    ended: float | None = None
    reason: str | None = None
    message: str | None = None
    damage: list[str] = []


class StageUse(msgspec.Struct, frozen=True, array_like=True):
    """The shares of a stage's time, 0..1, that went into each kind of work; `other`: copies and saves."""

    serve: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    step: float = 0.0
    other: float = 0.0

    @property
    def idle(self) -> float:
        return max(0.0, 1.0 - self.serve - self.forward - self.backward - self.step - self.other)


class Progress(msgspec.Struct, frozen=True):
    """The live figures of a run (`progress.json`, replaced as a whole every `report.live_interval_s`).

    `address`: of its OpenAI API; `keys`: the file with the keys that it takes. `loss`: mean of the last micro-batches, nats per
    token. `stages`: what each did in the last seconds, by node and stage. `measured` of `to_measure` points and `left_s` s are
    for profiling jobs. `checkpoint_step`: of the newest checkpoint; `checkpoint_failure`: why one could not be saved and is to
    be tried again. `disk`: why it does not take everything, None while it does. `skipped`:
    steps beside `steps` that changed nothing, since their gradients were not finite; `training_stopped`: for that;
    `lost_losses`: micro-batches whose loss was not. `classes`: of requests, by those that ended last.

    While it starts: `message`: what is awaited, `since` then [s since the epoch], and `built` of `engines`. `draining`: why it
    ends before its work is done. `requests_per_s` that finished, and `tokens_per_s` trained, in the last seconds. Of the
    requests `under_way`, the `waiting` ones have no pass behind them; `held`: training micro-batches that are held back.
    `losses`: their course over all of training, as means of equally many. `forecast_error`: median of |forecast - response| /
    response; `attainment`: limits on interactive responses [s] and the shares within; both of the last requests. `versions`:
    the newest weights of each node. `held_out`: losses before training and at its end, as far as they were taken.
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
    checkpoint_step: int | None = None
    checkpoint_failure: str | None = None
    measured: int = 0
    to_measure: int = 0
    left_s: float | None = None
    stages: list[list[StageUse]] = []
    drift: list[Drift] = []
    stragglers: list[Straggler] = []
    disk: str | None = None
    skipped: int = 0
    training_stopped: bool = False
    lost_losses: int = 0
    keys: str | None = None
    classes: dict[str, ClassFigures] = {}
    since: float | None = None
    built: int = 0
    engines: int = 0
    draining: str | None = None
    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    under_way: int = 0
    waiting: int = 0
    held: int = 0
    losses: list[float] = []
    forecast_error: float | None = None
    attainment: list[tuple[float, float]] = []
    versions: list[int] = []
    held_out: list[HeldOutLoss] = []
