"""Every task of a run from acceptance to outcome, as the scheduler rank knows it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.policy.events import Place
from lemix_hpc.records.schema import Outcome, ServedTask, TrainedTask
from lemix_hpc.runtime.transport.messages import RequestDone
from lemix_hpc.workload.tasks import Request

LATE_REPORTS = 4096
"""How many finished tasks keep their name: reports of different stages are not ordered among each other."""


class TaskNames(dict[int, str]):
    """The ids behind task numbers, of tasks under way and of those that ended a short while ago."""

    def __init__(self) -> None:
        super().__init__()
        self._ended: deque[int] = deque()

    def retire(self, number: int) -> None:
        """The task has its outcome; only late reports still name it."""
        self._ended.append(number)
        if len(self._ended) > LATE_REPORTS:
            del self[self._ended.popleft()]


@dataclass(slots=True)
class ServingTask:
    """A request under way."""

    request: Request
    place: Place | None = None

    def rejected(self, number: int | None = None) -> ServedTask:
        """Its record; `number` if the scheduler was asked."""
        request = self.request
        return ServedTask(
            request.id,
            "rejected",
            request.arrival,
            request.prompt_tokens,
            number=number,
            key=self._key,
            service=request.service,
        )

    @property
    def _key(self) -> str | None:
        """The name of the client's key, if it came from one."""
        return self.request.call.key or None if self.request.call is not None else None

    def finished(self, done: RequestDone, outcome: Outcome) -> ServedTask:
        """Its record, once a node has no more to do with it."""
        assert self.place is not None, "finished after it was placed"
        worked = bool(done.output or done.scored or outcome == "finished")
        return ServedTask(
            id=self.request.id,
            outcome=outcome,
            arrival=self.request.arrival,
            prompt_tokens=self.request.prompt_tokens,
            node=done.node,
            placed=self.place.eligible,
            first_token=done.first_token if worked else None,
            finished=done.finished,
            nll=done.nll if done.scored else None,
            scored_tokens=done.scored,
            output=done.output,
            versions=done.versions if worked else None,
            predicted_response_s=self.place.response,
            predicted_ttft_s=self.place.first_token,
            predicted_tpot_s=self.place.token,
            number=done.task,
            key=self._key,
            service=self.request.service,
            answers=self.request.answers,
        )


@dataclass(slots=True)
class TrainingTask:
    """A micro-batch under way. It was `placed` when it really went to its node; until then it may have been held back."""

    id: str
    micro_batch: MicroBatch
    samples: tuple[str, ...] = ()
    place: Place | None = None
    placed: float = 0.0
    loss: float | None = None
    finished_at: float | None = None

    def record(self, step: int) -> TrainedTask:
        """Its record; `step` is the node's optimizer step that it went into."""
        assert self.place is not None, "recorded after it was placed"
        return TrainedTask(
            id=self.id,
            outcome="finished",
            eligible=self.place.eligible,
            tokens=self.micro_batch.rows * self.micro_batch.length,
            node=self.place.node,
            placed=self.placed,
            finished=self.finished_at,
            loss=self.loss,
            step=step,
            number=self.micro_batch.id,
            samples=list(self.samples),
        )
