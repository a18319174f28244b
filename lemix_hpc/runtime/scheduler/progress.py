"""What a run shows of itself while it lasts: its progress file, and figures for those who ask over HTTP."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from lemix_hpc.policy.drift import Drift
from lemix_hpc.policy.stragglers import Straggler
from lemix_hpc.records.schema import Progress, ServedTask
from lemix_hpc.records.writer import Recorder
from lemix_hpc.runtime.http.metrics import Figures
from lemix_hpc.runtime.scheduler.live_classes import LiveClasses
from lemix_hpc.runtime.scheduler.task_table import ServingTask
from lemix_hpc.runtime.scheduler.training_tasks import TrainingTasks
from lemix_hpc.runtime.transport.messages import WorkSpan
from lemix_hpc.runtime.transport.rank_layout import Layout

RECENT = 200
"""Responses that the live median goes by; losses are averaged over a tenth of that."""


class LiveFigures:
    """Running figures for the live view: recent responses [s] and losses, and how busy each stage was since the last look."""

    def __init__(self, nodes: int, stages: int) -> None:
        self._busy = [[0.0] * stages for _ in range(nodes)]
        self._looked = 0.0
        self._responses: deque[float] = deque(maxlen=RECENT)
        self._losses: deque[float] = deque(maxlen=RECENT // 10)
        self.lost_losses = 0

    def worked(self, node: int, stage: int, seconds: float) -> None:
        self._busy[node][stage] += seconds

    def responded(self, seconds: float) -> None:
        self._responses.append(seconds)

    def learned(self, loss: float) -> None:
        """A micro-batch's loss. Behind one that is not finite the mean begins again: the last good one is no news."""
        if math.isfinite(loss):
            self._losses.append(loss)
        else:
            self._losses.clear()
            self.lost_losses += 1

    @property
    def loss(self) -> float | None:
        return sum(self._losses) / len(self._losses) if self._losses else None

    @property
    def response_ms_p50(self) -> float | None:
        ordered = sorted(self._responses)
        return 1e3 * ordered[len(ordered) // 2] if ordered else None

    def look(self, now: float) -> list[list[float]]:
        """The busy share of every stage since the last look, at most 1."""
        window = max(now - self._looked, 1e-9)
        shares = [[min(1.0, busy / window) for busy in node] for node in self._busy]
        self._busy = [[0.0] * len(node) for node in self._busy]
        self._looked = now
        return shares


class LiveView:
    """Counts what happens. `interval`: seconds between two pictures; `address`: of the OpenAI API, if there is one, and `keys`
    the file with those that it takes; `has_losses`: not so of emulated micro-batches; `lost_losses`: so many before."""

    def __init__(
        self,
        recorder: Recorder,
        layout: Layout,
        training: TrainingTasks,
        classes: LiveClasses,
        interval: float,
        address: str | None,
        keys: str | None = None,
        *,
        has_losses: bool = True,
        lost_losses: int = 0,
    ) -> None:
        self._has_losses = has_losses
        self._recorder = recorder
        self._training = training
        self._classes = classes
        self._interval = interval
        self._address = address
        self._keys = keys
        self._shown = -interval
        self._figures = LiveFigures(layout.nodes, layout.stages)
        self._figures.lost_losses = lost_losses
        self._versions = [0] * layout.nodes

    def worked(self, span: WorkSpan, serving: Mapping[int, ServingTask]) -> None:
        """A stage has ended a stretch of work; `serving`: the requests under way, by number."""
        self._classes.worked(span, serving)
        self._figures.worked(span.node, span.stage, span.end - span.start)
        self._versions[span.node] = max(self._versions[span.node], span.version)

    def learned(self, loss: float) -> None:
        self._figures.learned(loss)

    @property
    def lost_losses(self) -> int:
        """Micro-batches so far whose loss is not finite."""
        return self._figures.lost_losses if self._has_losses else 0

    def ended(self, task: ServedTask) -> None:
        """A request has its outcome."""
        self._classes.ended(task)
        if task.outcome == "finished" and task.finished is not None:
            self._figures.responded(task.finished - task.arrival)

    def due(self, now: float) -> bool:
        return now - self._shown >= self._interval

    def show(
        self,
        now: float,
        serving: Iterable[ServingTask],
        drifts: list[Drift],
        stragglers: list[Straggler],
        *,
        received: int,
        requests: int,
        checkpoint: int | None = None,
        failure: str | None = None,
        disk: str | None = None,
        last: bool = False,
    ) -> Figures:
        """Replace the picture, and return the figures of this moment.

        `received` of `requests` have come so far, `serving` are under way; `drifts` and `stragglers`: alarms so far;
        `checkpoint`: step of the newest, `failure`: why one could not be saved; `disk`: why it does not take everything.
        """
        self._shown = now
        training, loss = self._training, self._figures.loss
        self._recorder.progress(
            Progress(
                state="finished" if last else "running",
                elapsed_s=now,
                address=self._address,
                received=received,
                requests=requests,
                served=self._classes.tally.outcomes.get("finished", 0),
                trained=training.trained,
                training_total=training.total,
                steps=training.steps - training.skipped,
                skipped=training.skipped,
                training_stopped=training.broken,
                lost_losses=self.lost_losses,
                loss=loss,
                response_ms_p50=self._figures.response_ms_p50,
                checkpoint_step=checkpoint,
                checkpoint_failure=failure,
                stage_busy=self._figures.look(now),
                drift=[drift for drift in drifts if drift.until_s is None],
                stragglers=[straggler for straggler in stragglers if straggler.until_s is None],
                disk=disk,
                keys=self._keys,
                classes=self._classes.figures(),
            )
        )
        lengths = [task.request.prompt_tokens + task.request.output_tokens for task in serving]
        return Figures(
            requests=dict(self._classes.tally.outcomes.items()),
            in_flight=len(lengths),
            tokens_in_flight=sum(lengths),
            weight_versions=tuple(self._versions),
            steps=training.steps - training.skipped,
            trained=training.trained,
            samples_waiting=training.samples_waiting,
            loss=loss,
            keys=dict(self._classes.tally.keys),
        )
