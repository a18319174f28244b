"""The scheduler rank: lets requests in as they arrive, asks the policy, sends tasks to leaders, and writes everything down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Literal

from lemix_hpc.policy.events import (
    AnswerPassed,
    BatchMeasured,
    Event,
    PassMeasured,
    Place,
    Refuse,
    RequestArrived,
    RulesChanged,
    StageFinished,
    TaskFinished,
    Tick,
)
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.records.attempts import AttemptEnd
from lemix_hpc.records.inheritance import NOTHING, Inheritance
from lemix_hpc.records.journal import Accepted, Changed, Placed
from lemix_hpc.records.sampling import Sampling, is_kept
from lemix_hpc.records.schema import HeldOutLoss, NodeMemory, ServedTask, Stretch
from lemix_hpc.records.stretches import batch_work, of_stages, with_members
from lemix_hpc.records.writer import Recorder
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.run_setup.training_feed import TrainingFeed
from lemix_hpc.runtime.http.call import Client
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.scheduler.arrivals import Arrivals
from lemix_hpc.runtime.scheduler.checkpoints import Checkpoints
from lemix_hpc.runtime.scheduler.disk_watch import DiskWatch
from lemix_hpc.runtime.scheduler.drain import Drain, Ending
from lemix_hpc.runtime.scheduler.held_out import HeldOutLosses, is_unnamed
from lemix_hpc.runtime.scheduler.live_classes import LiveClasses
from lemix_hpc.runtime.scheduler.live_settings import Change, LiveSettings, pass_on
from lemix_hpc.runtime.scheduler.progress import LiveView
from lemix_hpc.runtime.scheduler.resume import lost
from lemix_hpc.runtime.scheduler.sync_steps import Rounds, StepsTogether
from lemix_hpc.runtime.scheduler.task_table import ServingTask, TaskNames
from lemix_hpc.runtime.scheduler.training_tasks import TrainingTasks
from lemix_hpc.runtime.scheduler.watch import Watch
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.tasks import Request


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """`context`: the longest prompt and output together that the model takes, None without a limit. Live interval in s.

    `address`: of the OpenAI API, if there is one, and `keys` the file with those that it takes. `partners`: nodes that learn
    from each other, if any do. `has_losses`: whether the engine computes any. `limits_s`, in T0, and
    `limits_ms`: on interactive requests; `window`: for batch requests to be completed [s]. `on_nan`: what follows a gradient
    that is not finite; `spans`: which work is written down.
    """

    context: int | None
    live_interval: float
    address: str | None = None
    keys: str | None = None
    partners: Partners | None = None
    has_losses: bool = True
    limits_s: Sequence[float] = ()
    limits_ms: Mapping[str, float] = field(default_factory=dict)
    window: float = math.inf
    on_nan: Literal["stop_training", "stop", "skip"] = "skip"
    spans: Sampling = "all"


class SchedulerLoop:
    """The run between its start and its end. `now` gives seconds since the start."""

    def __init__(
        self,
        layout: Layout,
        scheduler: Scheduler,
        mailbox: Mailbox,
        recorder: Recorder,
        now: Callable[[], float],
        arrivals: Arrivals,
        feed: TrainingFeed | None,
        router: CallRouter,
        settings: LoopSettings,
        next_number: Callable[[], int],
        checkpoints: Checkpoints | None = None,
        inherited: Inheritance = NOTHING,
        drain: Drain | None = None,
        watch: Watch | None = None,
        disk: DiskWatch | None = None,
        live_settings: LiveSettings | None = None,
        held_out: HeldOutLosses | None = None,
    ) -> None:
        self._held_out = held_out
        self._disk = disk
        self._live_settings = live_settings
        self.changes = [*inherited.changes]
        """Of the recipe, while the run goes on."""
        self._drain = drain
        self._ending: Ending | None = None
        self._layout = layout
        self._scheduler = scheduler
        self._mailbox = mailbox
        self._recorder = recorder
        self._now = now
        # Those that are over are known by their outcomes alone.
        self._requests = arrivals.left + inherited.tally.total + len(inherited.served)
        self._arrivals = arrivals
        self._accepted = {accepted.id: accepted for accepted in inherited.waiting.values()}
        self._router = router
        self._settings = settings
        self._number = next_number
        self._checkpoints = checkpoints
        self._serving: dict[int, ServingTask] = {}
        # No batch with them is through all stages.
        self._not_begun: set[int] = set()
        self._names = TaskNames()
        partners = settings.partners
        together = StepsTogether(partners.nodes) if partners is not None and partners.mode == "sync" else None
        done = inherited.trained_before + len(inherited.trained)
        self._training = TrainingTasks(
            feed,
            self._names,
            recorder,
            together,
            steps=inherited.steps,
            skipped=inherited.skipped,
            trained=done,
            places=inherited.places,
            broken=inherited.skipped > 0 and settings.on_nan == "stop_training",
        )
        self.rounds = Rounds(partners, layout.stages) if partners is not None else None
        tally = inherited.tally.copy()
        classes = LiveClasses(settings.limits_ms, settings.window, tally)
        self._live = LiveView(
            recorder,
            layout,
            self._training,
            classes,
            settings.live_interval,
            settings.address,
            settings.keys,
            settings.limits_s,
            has_losses=settings.has_losses,
            lost_losses=inherited.lost_losses,
        )
        for task in inherited.served:
            self._live.ended(task)
        for trained in inherited.trained:
            if trained.loss is not None:
                self._live.learned(trained.loss)
        self._tick_at = scheduler.next_tick
        self._watch = watch or Watch(math.inf, now, layout, mailbox)
        self.stopped: set[tuple[int, int]] = set()
        self.memory: dict[int, NodeMemory] = {}

    @property
    def steps(self) -> int:
        """Optimizer steps so far, over all nodes, without those that changed nothing."""
        return self._training.steps - self._training.skipped

    @property
    def skipped(self) -> int:
        """Steps that changed nothing, since their gradients were not finite."""
        return self._training.skipped

    @property
    def training_stopped(self) -> bool:
        """Whether it was for such a step."""
        return self._training.broken

    @property
    def lost_losses(self) -> int:
        """Micro-batches whose loss is not finite, in all attempts."""
        return self._live.lost_losses

    @property
    def held_out(self) -> list[HeldOutLoss]:
        """The losses on held-out samples so far."""
        return [] if self._held_out is None else self._held_out.taken

    @property
    def finished(self) -> bool:
        """All is done, or what a drain has left has had its time."""
        done = self._served and self._training.finished
        return done or (self._ending is not None and self._drain is not None and self._drain.over)

    @property
    def end(self) -> AttemptEnd:
        """Why the run ends now."""
        if self._ending is None:
            return AttemptEnd("finished", "all work is done", time.time())
        return AttemptEnd(self._ending.reason, self._ending.message, time.time())

    @property
    def _served(self) -> bool:
        """All requests have come and been answered, and no client can send more."""
        return self._arrivals.over and not self._serving and self._router.idle

    def until_due(self) -> float:
        """Seconds until the next request, save or tick of the scheduler is due; inf when nothing is."""
        saving = self._checkpoints.due if self._checkpoints is not None else math.inf
        return min(self._arrivals.next, self._tick_at, self._router.due, saving) - self._now()

    def turn(self) -> bool:
        """Let in what is due, take in reports, keep training supplied. False when there was nothing to do."""
        if self._ending is None and self._drain is not None and (ending := self._drain.look()):
            self._close_doors(ending)
        if self._live_settings is not None and (change := self._live_settings.look()):
            self._change(change)
        due = self.until_due() <= 0
        for request in self._arrivals.until(self._now()):
            self._arrive(request)
        for request, client in self._router.arrivals(self._now()):
            self._arrive(request, client)
        if self._tick_at <= self._now():
            self._tell(Tick(self._now()))
        mails = self._mailbox.poll()
        for mail in mails:
            self._receive(mail)
        self._watch.check()
        if self._disk is not None:
            self._disk.look()
        self._supply_training()
        saving = self._checkpoints is not None and self._checkpoints.turn(self._training.steps)
        self.show()
        return bool(mails) or due or saving

    def end_unclaimed(self) -> None:
        """When all is done: calls of earlier attempts whose clients have not come back with their ids are lost."""
        if self._ending is None:
            for accepted in self._accepted.values():
                self._end(lost(accepted), accepted.place)

    def _change(self, change: Change) -> None:
        """A user has changed the policy."""
        now, policy = self._now(), change.policy
        for key, value in change.values.items():
            print(f"{key} is {value} from now on", flush=True)
            changed = Changed(key, value, now)
            self._recorder.promise(changed)
            self.changes.append(changed)
        pass_on(policy, self._layout, self._mailbox)
        self._tell(RulesChanged(now, policy.admission, policy.max_hold_s))

    def _close_doors(self, ending: Ending) -> None:
        """The run ends early: begin nothing any more. What nobody waits for is left to the next attempt; leaders know what of
        that has begun, and goes on."""
        print(f"draining: {ending.message}", flush=True)
        self._ending = ending
        self._arrivals.close()
        self._router.end = self._now()
        self._training.end()
        waiting: dict[int, list[int]] = {}
        for number, task in self._serving.items():
            if task.place is not None and self._router.may_wait(number):
                waiting.setdefault(task.place.node, []).append(number)
        for node, numbers in waiting.items():
            self._mailbox.send(self._layout.leader(node), Inbox.LEADER, m.Withdraw(numbers))

    def _withdrawn(self, node: int, numbers: Sequence[int]) -> None:
        """A node has not begun these tasks. They get no outcome: the next attempt serves them."""
        for number in numbers:
            del self._serving[number]
            self._not_begun.discard(number)
            self._names.retire(number)
            if self._router.carries(number):
                self._router.withdrawn(number)
            self._tell(TaskFinished(self._now(), node, number))

    def _arrive(self, request: Request, client: Client | None = None) -> None:
        """`client`: who waits for the answer, if that is a call that has just come."""
        task = ServingTask(request)
        context = self._settings.context
        if request.call is None and context is not None and request.prompt_tokens + request.output_tokens > context:
            self._end(task.rejected(), request.place, followed=request.followed)
            self._arrivals.turned_away(request.id, self._now())
            return
        accepted = self._accepted.pop(request.id, None)
        number = accepted.number if accepted is not None else self._number()
        if accepted is None:
            digest = request.call.digest if request.call is not None and client is not None else ""
            prompt, service, place = request.prompt_tokens, request.service, request.place
            self._recorder.promise(Accepted(number, request.id, request.arrival, prompt, digest, service, place))
        self._serving[number] = task
        self._not_begun.add(number)
        self._names[number] = request.id
        if request.call is not None:
            self._router.expect(number, request, client)
            self._requests += client is not None
        patient, output = request.service == "batch", request.answer_tokens
        self._tell(RequestArrived(self._now(), number, request.prompt_tokens, output, patient))

    def _supply_training(self) -> None:
        event = self._training.supply(self._now(), ahead=self._layout.nodes, served=self._served)
        if event is not None:
            self._tell(event)
        for node, order in self._training.orders().items():
            for stage in range(self._layout.stages):
                self._mailbox.send(self._layout.worker(node, stage), Inbox.STAGE, order)

    def _tell(self, event: Event) -> None:
        """Give the policy an event, write it down, and carry out what it decides."""
        self._recorder.event(event)
        decisions = self._scheduler.handle(event)
        self._tick_at = self._scheduler.next_tick
        for decision in decisions:
            if isinstance(decision, Refuse):
                self._refuse(decision.task)
                continue
            self._recorder.promise(Placed(decision.task, decision.node))
            if decision.task in self._serving:
                self._place_request(decision)
            else:
                train = m.Train(self._training.place(decision, event.time))
                self._mailbox.send(self._layout.leader(decision.node), Inbox.LEADER, train)

    def _place_request(self, place: Place) -> None:
        serving = self._serving[place.task]
        serving.place = place
        request = serving.request
        self._live.placed(place.task, request.service)
        patient = request.service == "batch"
        if request.call is not None:
            answer = max(1, request.answer_tokens)
            self._router.place(place, request.call, self._now(), answer=answer, patient=patient)
            return
        prompt, output, tokens = request.prompt_tokens, request.output_tokens, list(request.tokens)
        expected = self._now() + place.response
        message = m.PlaceRequest(place.task, prompt, output, tokens, place.key, request.arrival, patient, expected)
        self._mailbox.send(self._layout.leader(place.node), Inbox.LEADER, message)

    def _refuse(self, number: int) -> None:
        """The allocation ends too soon for a task."""
        serving = self._serving.pop(number, None)
        if serving is None:
            self._training.refuse(number)
            return
        self._not_begun.discard(number)
        self._names.retire(number)
        if serving.request.call is not None:
            self._router.refuse(number)
        self._end(serving.rejected(number), serving.request.place, followed=serving.request.followed)
        self._arrivals.turned_away(serving.request.id, self._now())

    def _receive(self, mail: Mail) -> None:
        match mail.message:
            case m.NodeReport(node, work):
                self._served_by(node, work)
            case m.SpanReport(spans):
                for span in spans:
                    self._worked(span)
            case (m.Loss() | m.Stepped() | m.RingDone() | m.Saved()) as report:
                self._trained(report)
            case m.HttpParts(parts):
                self._router.parts(parts, self._now())
            case m.Withdrawn(node, numbers):
                self._withdrawn(node, numbers)
            case m.RequestDone() as done if self._held_out is not None and is_unnamed(done.task):
                self._held_out.heard(done)
            case m.RequestDone() as done:
                self._request_done(done)
            case m.Alive() as sign:
                self._watch.heard(sign)
            case m.MemoryUsed(node, memory):
                self.memory[node] = memory
            case m.Stopped(node, stage):
                self.stopped.add((node, stage))
                self._watch.forget(self._layout.worker(node, stage))
            case other:
                raise TypeError(f"no message for the scheduler: {other!r}")

    def _trained(self, report: m.Loss | m.Stepped | m.RingDone | m.Saved) -> None:
        match report:
            case m.Loss(micro_batch, loss):
                self._training.learned(micro_batch, loss)
                self._live.learned(loss)
            case m.Stepped(node, group, version, skipped):
                self._training.stepped(node, group, version, self._now(), skipped=skipped)
                if skipped and self._settings.on_nan != "skip":
                    self._broke_down(node, version)
            case m.RingDone() as done if self.rounds is not None:
                self.rounds.add(done)
                if self._checkpoints is not None:
                    self._checkpoints.summed(done.round)
            case m.Saved() as saved if self._checkpoints is not None:
                self._checkpoints.received(saved)
            case other:
                raise TypeError(f"no message for the scheduler: {other!r}")

    def _broke_down(self, node: int, version: int) -> None:
        """A gradient was not finite. The weights are those of the last good step, and stay so."""
        message = f"the gradient of node {node}'s step to version {version} is not finite (training.on_nan)"
        self._training.broken = True
        if self._settings.on_nan == "stop" and self._drain is not None:
            self._drain.give_up(message)
        else:
            print(f"training stops: {message}", flush=True)

    def _served_by(self, node: int, work: Sequence[m.BatchRan | m.Passed | m.AnswerDone]) -> None:
        """What the stages of a node have done for requests."""
        now = self._now()
        for each in work:
            match each:
                case m.BatchRan(tasks=[task, *_]) | m.Passed(task=task) | m.AnswerDone(task=task) if is_unnamed(task):
                    continue
                case m.BatchRan():
                    self._record_batch(node, each)
                    self._router.heard(node, each.tasks, now)
                    self._live.served(node, each)
                    self._not_begun.difference_update(each.tasks)
                    self._tell(BatchMeasured(now, node, each.shape, tuple(each.worked)))
                case m.Passed(stage, task, start, end):
                    self._tell(StageFinished(now, node, stage, task, start, end))
                case m.AnswerDone(task, starts, ends):
                    self._tell(AnswerPassed(now, node, task, tuple(starts), tuple(ends)))

    def _record_batch(self, node: int, ran: m.BatchRan) -> None:
        """The work of all stages on a batch, or of those where it is to be written down."""
        kept = [is_kept(self._settings.spans, start) for start in ran.starts]
        if not any(kept):
            return
        names = list(map(self._names.__getitem__, ran.tasks))
        work = batch_work(node, ran.starts, ran.ends, ran.version, ran.batch, names)
        if all(kept):
            self._recorder.batch(work)
        else:
            for stretch in compress(of_stages(work), kept):
                self._recorder.work(stretch)

    def _worked(self, span: m.WorkSpan) -> None:
        """A stretch of training, of a weight update, or of a serving pass that does not end with it."""
        if span.tasks and is_unnamed(span.tasks[0]):
            return
        if is_kept(self._settings.spans, span.start):
            self._record(span)
        self._live.worked(span)
        if not span.complete:
            return
        now = self._now()
        if span.kind in ("forward", "backward") and span.shape is not None:
            self._tell(PassMeasured(now, span.node, span.stage, span.kind, span.shape, span.worked))
        for number in span.tasks:
            backward = span.kind == "backward"
            self._tell(StageFinished(now, span.node, span.stage, number, span.start, span.end, backward))
            if backward and span.stage == 0:
                self._training.ended(number, span.end)
                self._tell(TaskFinished(now, span.node, number))

    def _record(self, span: m.WorkSpan) -> None:
        """One stretch of work, for all of its tasks by their ids; for nobody's if there are none."""
        stretch = Stretch(span.node, span.stage, span.kind, span.start, span.end, span.version, span.batch)
        self._recorder.work(with_members(stretch, [self._names[number] for number in span.tasks]))

    def _request_done(self, done: m.RequestDone) -> None:
        outcome = self._router.done(done.task) if self._router.carries(done.task) else "finished"
        task = self._serving.pop(done.task, None)
        if task is None:
            return  # a call that needs no policy
        self._not_begun.discard(done.task)
        self._arrivals.answered(task.request.id, done.finished)
        self._names.retire(done.task)
        record = task.finished(done, outcome)
        self._end(record, task.request.place, followed=task.request.followed)
        self._tell(TaskFinished(self._now(), done.node, done.task, record.answer_tokens))

    def _end(self, record: ServedTask, place: int | None, *, followed: bool = False) -> None:
        """A request has its outcome. `place`, `followed`: as in `Request`."""
        self._live.ended(record)
        self._recorder.request(record, place, followed=followed, results=self._router.ended(record.id))

    def show(self, *, last: bool = False) -> None:
        """Show how things are, if that is due; `last`: in any case, and as the final state."""
        now = self._now()
        if not last and not self._live.due(now):
            return
        self._router.figures = self._live.show(
            now,
            self._serving,
            len(self._not_begun),
            self._scheduler.drifts,
            self._scheduler.stragglers,
            received=self._requests - self._arrivals.left,
            requests=self._requests,
            checkpoint=self._checkpoints.last_step if self._checkpoints is not None else None,
            failure=self._checkpoints.trouble if self._checkpoints is not None else None,
            disk=self._disk.trouble if self._disk is not None else None,
            draining=self._ending.message if self._ending is not None else None,
            held_out=self.held_out,
            last=last,
        )
