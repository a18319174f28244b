"""What the scheduler is told and what it decides. All times are in seconds since the start of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lemix_hpc.policy.latency import Shape

PassKind = Literal["serve", "forward", "backward"]
"""What a stage computes: serving prompts and decodes, training forwards, training backwards."""
AdmissionName = Literal["slack", "paper", "none"]


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request of `prompt` tokens that asks for `output` new ones (0: its prompt is only scored). `patient`: it is of class
    batch."""

    time: float
    task: int
    prompt: int
    output: int
    patient: bool = False


@dataclass(frozen=True, slots=True)
class GroupOffered:
    """Training micro-batches that make one optimizer step together: each has `rows` sequences of its own length in tokens.

    `node`: the one that they must go to, since they went there before; None leaves that to the policy.
    """

    time: float
    group: int
    tasks: tuple[int, ...]
    rows: int
    lengths: tuple[int, ...]
    node: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingClosed:
    """No more training: groups that were offered and not begun are dropped."""

    time: float


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage has run a task's forward or backward; not told of requests that generate several tokens, see `AnswerPassed`."""

    time: float
    node: int
    stage: int
    task: int
    start: float
    end: float
    backward: bool = False


@dataclass(frozen=True, slots=True)
class AnswerPassed:
    """All stages of a node have run the passes of a request that generates several tokens: on each from the begin of the first
    one to the end of the last one."""

    time: float
    node: int
    task: int
    starts: tuple[float, ...]
    ends: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """A task has its outcome, whatever that is. `output`: tokens that a request has really produced."""

    time: float
    node: int
    task: int
    output: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened, but it is time to look at training that is held back again."""

    time: float


@dataclass(frozen=True, slots=True)
class PassMeasured:
    """A stage has run a micro-batch of this shape in `seconds` of work, rests in between not counted."""

    time: float
    node: int
    stage: int
    kind: PassKind
    shape: Shape
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchMeasured:
    """All stages of a node have run a batch of this shape, in so many `seconds` each."""

    time: float
    node: int
    shape: Shape
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RulesChanged:
    """From now on training is admitted so, and held back no longer than that [s]."""

    time: float
    admission: AdmissionName
    max_hold: float


Event = (
    RequestArrived
    | GroupOffered
    | TrainingClosed
    | StageFinished
    | AnswerPassed
    | TaskFinished
    | Tick
    | PassMeasured
    | BatchMeasured
    | RulesChanged
)


@dataclass(frozen=True, slots=True)
class Place:
    """Send a task to a node. `eligible` is when the release rule let it go; `response` is the predicted response time.

    `key` orders the requests that wait on a node, the lowest first; it is in seconds. `first_token`, `token`: of a request that
    generates, predicted seconds to its first token and for each further one.
    """

    task: int
    node: int
    eligible: float
    response: float
    key: float
    first_token: float | None = None
    token: float | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not start a task: it is predicted to outlive the allocation. A refused micro-batch takes its group with it."""

    task: int


Decision = Place | Refuse
