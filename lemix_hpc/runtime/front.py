"""The scheduler rank: lets requests in as they arrive, asks the policy, sends tasks to leaders, and writes everything down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lemix_hpc.policy.events import (
    Event,
    GroupOffered,
    PassMeasured,
    Place,
    Refuse,
    RequestArrived,
    StageFinished,
    TaskFinished,
    Tick,
    TrainingClosed,
)
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.runtime import messages as m
from lemix_hpc.runtime.arrivals import Arrivals
from lemix_hpc.runtime.layout import Layout
from lemix_hpc.runtime.ledger import ServingTask, TaskNames, TrainingTask
from lemix_hpc.runtime.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.recorder import LiveFigures, Recorder
from lemix_hpc.runtime.records import Progress, Span
from lemix_hpc.runtime.training_feed import FedGroup, TrainingFeed
from lemix_hpc.workload.tasks import Request


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """`context`: the longest prompt and output together that the model takes, None without a limit. Live interval in s."""

    context: int | None
    live_interval: float


class Front:
    """The run between its start and its end. `now` gives seconds since the start."""

    def __init__(
        self,
        layout: Layout,
        scheduler: Scheduler,
        mailbox: Mailbox,
        recorder: Recorder,
        now: Callable[[], float],
        requests: Sequence[Request],
        feed: TrainingFeed | None,
        settings: FrontSettings,
        next_number: Callable[[], int],
    ) -> None:
        self._layout = layout
        self._scheduler = scheduler
        self._mailbox = mailbox
        self._recorder = recorder
        self._now = now
        self._requests = len(requests)
        self._arrivals = Arrivals(requests)
        self._feed = feed
        self._settings = settings
        self._number = next_number
        self._live = LiveFigures(layout.nodes, layout.stages)
        self._served = 0
        self._serving: dict[int, ServingTask] = {}
        self._training: dict[int, TrainingTask] = {}
        self._offered: dict[int, FedGroup] = {}
        self._begun: dict[int, FedGroup] = {}
        self._names = TaskNames()
        self._trained = 0
        self._steps: dict[tuple[int, int], int] = {}
        self._committed = 0
        self._closed = feed is None
        self._refused = False
        self._tick_at = scheduler.next_tick
        self._shown = -settings.live_interval
        self.stopped: set[tuple[int, int]] = set()

    @property
    def steps(self) -> int:
        """Optimizer steps so far, over all nodes."""
        return self._committed

    @property
    def finished(self) -> bool:
        return self._arrivals.left == 0 and not self._serving and self._closed and not self._begun

    def until_due(self) -> float:
        """Seconds until the next request or the scheduler's next tick is due; inf when nothing is."""
        return min(self._arrivals.next, self._tick_at) - self._now()

    def turn(self) -> bool:
        """Let in what is due, take in reports, keep training supplied. False when there was nothing to do."""
        due = self.until_due() <= 0
        for request in self._arrivals.until(self._now()):
            self._arrive(request)
        if self._tick_at <= self._now():
            self._tell(Tick(self._now()))
        mails = self._mailbox.poll()
        for mail in mails:
            self._receive(mail)
        self._supply_training()
        self._show()
        return bool(mails) or due

    def _arrive(self, request: Request) -> None:
        task = ServingTask(request)
        context = self._settings.context
        if context is not None and request.prompt_tokens + request.output_tokens > context:
            self._recorder.task(task.rejected())
            self._arrivals.turned_away(request.id, self._now())
            return
        number = self._number()
        self._serving[number] = task
        self._names[number] = request.id
        self._tell(RequestArrived(self._now(), number, request.prompt_tokens, request.output_tokens))

    def _supply_training(self) -> None:
        """Offer groups ahead of the policy's need, one for every node.

        Training without an end ends with serving, and any training when the policy refuses some: the allocation ends.
        """
        if self._feed is None or self._closed:
            return
        served = self._arrivals.left == 0 and not self._serving
        if self._refused or (self._feed.total is None and served):
            self._closed = True
            self._tell(TrainingClosed(self._now()))
        elif self._feed.exhausted:
            self._closed = not self._offered
        elif len(self._offered) < self._layout.nodes:
            self._offer(self._feed.next_group())

    def _offer(self, group: FedGroup) -> None:
        self._offered[group.number] = group
        for task_id, micro_batch in zip(group.ids, group.micro_batches, strict=True):
            self._training[micro_batch.id] = TrainingTask(task_id, micro_batch)
            self._names[micro_batch.id] = task_id
        tasks = tuple(micro_batch.id for micro_batch in group.micro_batches)
        lengths = tuple(micro_batch.length for micro_batch in group.micro_batches)
        self._tell(GroupOffered(self._now(), group.number, tasks, group.micro_batches[0].rows, lengths))

    def _tell(self, event: Event) -> None:
        """Give the policy an event, write it down, and carry out what it decides."""
        self._recorder.event(event)
        decisions = self._scheduler.handle(event)
        self._tick_at = self._scheduler.next_tick
        for decision in decisions:
            if isinstance(decision, Refuse):
                self._refuse(decision.task)
            elif decision.task in self._serving:
                self._place_request(decision)
            else:
                self._place_micro_batch(decision, event.time)

    def _place_request(self, place: Place) -> None:
        serving = self._serving[place.task]
        serving.place = place
        request = serving.request
        tokens = list(request.tokens)
        message = m.PlaceRequest(place.task, request.prompt_tokens, request.output_tokens, tokens, place.key)
        self._mailbox.send(self._layout.leader(place.node), Inbox.LEADER, message)

    def _place_micro_batch(self, place: Place, now: float) -> None:
        training = self._training[place.task]
        training.place, training.placed = place, now
        group = training.micro_batch.group
        if group in self._offered:
            self._begun[group] = self._offered.pop(group)
        self._mailbox.send(self._layout.leader(place.node), Inbox.LEADER, m.Train(training.micro_batch))

    def _refuse(self, number: int) -> None:
        """The allocation ends too soon for a task. A group is refused as a whole, before it has begun."""
        self._names.retire(number)
        serving = self._serving.pop(number, None)
        if serving is not None:
            self._recorder.task(serving.rejected(number))
            self._arrivals.turned_away(serving.request.id, self._now())
            return
        self._refused = True
        self._offered.pop(self._training.pop(number).micro_batch.group, None)

    def _receive(self, mail: Mail) -> None:
        match mail.message:
            case m.Work(spans):
                for span in spans:
                    self._worked(span)
            case m.Loss(micro_batch, loss):
                self._training[micro_batch].loss = loss
                self._live.learned(loss)
                self._close_group(self._training[micro_batch].micro_batch.group)
            case m.Stepped(node, group, version):
                self._committed += 1
                self._steps[node, group] = version
                self._close_group(group)
            case m.RequestDone() as done:
                self._request_done(done)
            case m.Stopped(node, stage):
                self.stopped.add((node, stage))
            case other:
                raise TypeError(f"no message for the scheduler: {other!r}")

    def _worked(self, span: m.WorkSpan) -> None:
        for task in [self._names[number] for number in span.tasks] or [""]:
            self._recorder.span(
                Span(span.node, span.stage, task, span.kind, span.start, span.end, span.version, span.batch)
            )
        self._live.worked(span.node, span.stage, span.end - span.start)
        if not span.complete:
            return
        if span.kind in ("serve", "forward", "backward") and span.shape is not None:
            self._tell(PassMeasured(self._now(), span.node, span.stage, span.kind, span.shape, span.worked))
        for number in span.tasks:
            self._pass_done(number, span)

    def _pass_done(self, number: int, span: m.WorkSpan) -> None:
        serving = self._serving.get(number)
        last, start = serving.passed(span.stage, span.start) if serving is not None else (True, span.start)
        backward = span.kind == "backward"
        now = self._now()
        self._tell(StageFinished(now, span.node, span.stage, number, start, span.end, backward, last))
        if backward and span.stage == 0:
            training = self._training[number]
            training.finished_at = span.end
            self._tell(TaskFinished(now, span.node, number))
            self._close_group(training.micro_batch.group)

    def _close_group(self, group: int) -> None:
        """Write a group's micro-batches down once its step is committed and all losses and ends are known."""
        fed = self._begun.get(group)
        if fed is None:
            return
        members = [self._training[micro_batch.id] for micro_batch in fed.micro_batches]
        node = members[0].place.node if members[0].place else -1
        if (node, group) not in self._steps or any(t.loss is None or t.finished_at is None for t in members):
            return
        step = self._steps.pop((node, group))
        for member in members:
            self._recorder.task(member.record(step))
            del self._training[member.micro_batch.id]
            self._names.retire(member.micro_batch.id)
        self._trained += len(members)
        del self._begun[group]

    def _request_done(self, done: m.RequestDone) -> None:
        task = self._serving.pop(done.task)
        self._arrivals.answered(task.request.id, done.finished)
        self._names.retire(done.task)
        self._served += 1
        self._live.responded(done.finished - task.request.arrival)
        self._recorder.task(task.finished(done))
        self._tell(TaskFinished(self._now(), done.node, done.task, len(done.output)))

    def _show(self, *, last: bool = False) -> None:
        now = self._now()
        if now - self._shown < self._settings.live_interval and not last:
            return
        self._shown = now
        self._recorder.progress(
            Progress(
                state="finished" if last else "running",
                elapsed_s=now,
                received=self._requests - self._arrivals.left,
                requests=self._requests,
                served=self._served,
                trained=self._trained,
                training_total=self._feed.total if self._feed else 0,
                steps=self._committed,
                loss=self._live.loss,
                response_ms_p50=self._live.response_ms_p50,
                stage_busy=self._live.look(now),
                drift=[drift for drift in self._scheduler.drifts if drift.until_s is None],
            )
        )

    def close(self) -> None:
        """Show the final state."""
        self._show(last=True)
