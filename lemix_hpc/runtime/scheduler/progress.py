"""What a run shows of itself while it lasts: its progress file, and figures for those who ask over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.policy.drift import Drift, Straggler
from lemix_hpc.records.schema import HeldOutLoss, Progress, ServedTask
from lemix_hpc.records.writer import Recorder
from lemix_hpc.runtime.http.metrics import Figures
from lemix_hpc.runtime.scheduler.live_classes import LiveClasses
from lemix_hpc.runtime.scheduler.live_figures import LiveFigures
from lemix_hpc.runtime.scheduler.progress_log import ProgressLog
from lemix_hpc.runtime.scheduler.task_table import ServingTask
from lemix_hpc.runtime.scheduler.training_tasks import TrainingTasks
from lemix_hpc.runtime.transport.messages import BatchRan, WorkSpan
from lemix_hpc.runtime.transport.rank_layout import Layout


class LiveView:
    """Counts what happens. `interval`: seconds between two pictures; `address`: of the OpenAI API, if there is one, and `keys`
    the file with those that it takes; `limits_s`: on interactive responses; `has_losses`: not so of emulated micro-batches;
    `lost_losses`: so many before."""

    def __init__(
        self,
        recorder: Recorder,
        layout: Layout,
        training: TrainingTasks,
        classes: LiveClasses,
        interval: float,
        address: str | None,
        keys: str | None = None,
        limits_s: Sequence[float] = (),
        *,
        has_losses: bool = True,
        lost_losses: int = 0,
    ) -> None:
        self._has_losses = has_losses
        self._recorder = recorder
        self._log = ProgressLog()
        self._training = training
        self._classes = classes
        self._interval = interval
        self._address = address
        self._keys = keys
        self._limits_s = limits_s
        self._shown = -interval
        self._figures = LiveFigures(layout.nodes, layout.stages)
        self._figures.lost_losses = lost_losses
        self._versions = [0] * layout.nodes

    def worked(self, span: WorkSpan) -> None:
        """A stage has ended a stretch of work that is no whole pass of a batch."""
        self._figures.worked(span.node, span.stage, span.kind, span.end - span.start)
        self._versions[span.node] = max(self._versions[span.node], span.version)

    def placed(self, number: int, service: ServiceClass) -> None:
        """A request goes to a node."""
        self._classes.placed(number, service)

    def served(self, node: int, ran: BatchRan) -> None:
        """A batch is through all stages of a node."""
        self._classes.served(ran)
        self._figures.served(node, ran.starts, ran.ends)
        self._versions[node] = max(self._versions[node], ran.version)

    def learned(self, loss: float) -> None:
        self._figures.learned(loss)

    @property
    def lost_losses(self) -> int:
        """Micro-batches so far whose loss is not finite."""
        return self._figures.lost_losses if self._has_losses else 0

    def ended(self, task: ServedTask) -> None:
        """A request has its outcome."""
        self._classes.ended(task)
        self._figures.ended(task)

    def due(self, now: float) -> bool:
        return now - self._shown >= self._interval

    def show(
        self,
        now: float,
        serving: Mapping[int, ServingTask],
        waiting: int,
        drifts: list[Drift],
        stragglers: list[Straggler],
        *,
        received: int,
        requests: int,
        checkpoint: int | None = None,
        failure: str | None = None,
        disk: str | None = None,
        draining: str | None = None,
        held_out: Sequence[HeldOutLoss] = (),
        last: bool = False,
    ) -> Figures:
        """Replace the picture, and return the figures of this moment.

        `received` of `requests` have come so far, `serving` are under way, by number, and `waiting` of them have not begun;
        `drifts` and `stragglers`: alarms so far;
        `checkpoint`: step of the newest, `failure`: why one could not be saved; `disk`: why it does not take everything;
        `draining`: why the run ends early; `held_out`: losses on held-out samples.
        """
        self._shown = now
        training, figures, loss = self._training, self._figures, self._figures.loss
        served = self._classes.tally.outcomes.get("finished", 0)
        lately = figures.look(now, served, training.tokens)
        self._publish(
            Progress(
                state="finished" if last else "running",
                elapsed_s=now,
                address=self._address,
                received=received,
                requests=requests,
                served=served,
                trained=training.trained,
                training_total=training.total,
                steps=training.steps - training.skipped,
                skipped=training.skipped,
                training_stopped=training.broken,
                lost_losses=self.lost_losses,
                loss=loss,
                response_ms_p50=figures.response_ms_p50,
                checkpoint_step=checkpoint,
                checkpoint_failure=failure,
                stages=lately.stages,
                drift=[drift for drift in drifts if drift.until_s is None],
                stragglers=[straggler for straggler in stragglers if straggler.until_s is None],
                disk=disk,
                keys=self._keys,
                classes=self._classes.figures(),
                draining=draining,
                requests_per_s=lately.requests_per_s,
                tokens_per_s=lately.tokens_per_s,
                under_way=len(serving),
                waiting=waiting,
                held=training.held,
                losses=figures.curve.points,
                forecast_error=figures.forecast_error,
                attainment=figures.attainment(self._limits_s),
                versions=self._versions,
                held_out=list(held_out),
            )
        )
        lengths = [task.request.prompt_tokens + task.request.output_tokens for task in serving.values()]
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

    def _publish(self, progress: Progress) -> None:
        self._recorder.progress(progress)
        self._log.tell(progress)
