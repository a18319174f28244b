"""The stage worker's loop: the product's hot path.

Each turn takes in what has arrived, picks by the policy's rules, and runs one piece of work up to its next yield point.
A training pass, or the preparation of a weight update, can rest between two pieces while serving goes first. WeightUpdates are
committed in the same ordered channel as the activations, so every batch meets one weight version on all stages.
"""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from lemix_hpc.checkpoints.resumption import NodeStart
from lemix_hpc.engines.meter import DeviceMemoryError
from lemix_hpc.engines.protocol import EngineOrder, MicroBatch, Payload, ServeBatch, StageEngine
from lemix_hpc.policy.execution_rules import BACKWARD, COMMIT, FORWARD, SERVE, debt_after, pick, reports_ahead
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.stage.data_parallel import DataParallel
from lemix_hpc.runtime.stage.links import StageLinks, StagePlace
from lemix_hpc.runtime.stage.passes import Passes
from lemix_hpc.runtime.stage.saves import Saves
from lemix_hpc.runtime.stage.version_queue import VersionQueue
from lemix_hpc.runtime.stage.weight_updates import Update, WeightUpdates
from lemix_hpc.runtime.stage.work_items import Arrived, Pass
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.idle_wait import Waiter
from lemix_hpc.runtime.transport.mailbox import Mail, Mailbox
from lemix_hpc.runtime.transport.run_clock import RunClock

MOST_TRIES = 3
"""How often a pass is run again that does not fit into the device's memory."""


@dataclass(frozen=True, slots=True)
class StageRules:
    """The order on a stage. `sync`: no forward between the last backward of a group and its step. `yield_training`: training
    rests for serving; `minimum_training_share` of the stage's busy time goes to it, if it has work, all the same. `paced`:
    the leader waits with its batches while the first stage has training, and is told when that is idle. `limited`: the first
    stage asks the leader for memory before each forward. `in_flight`: micro-batches of a node between the first stage's forward
    and its backward, at most; 0: one for each stage."""

    sync: bool
    gpipe: bool
    serving_first: bool
    yield_training: bool
    minimum_training_share: float
    paced: bool = False
    limited: bool = False
    in_flight: int = 0


class StageWorker:
    """One stage of one node, driven by messages until it is told to stop.

    `_urgent` is a serving pass or a weight update's publication, which run to their end; `_training` a training pass or an
    update's preparation, which may rest.
    `_debt`: stage seconds that training is owed. `_pieces`: how many the last forward, and the last backward, had.
    """

    def __init__(
        self,
        place: StagePlace,
        engine: StageEngine,
        mailbox: Mailbox,
        clock: RunClock,
        waiter: Waiter,
        rules: StageRules,
        partners: Partners | None = None,
        start: NodeStart = NodeStart(),  # noqa: B008  it never changes
        pool: Executor | None = None,
    ) -> None:
        """`start`: how far the node is; `pool`: where files are written, by default a thread of its own."""
        self._place = place
        self._engine = engine
        self._mailbox = mailbox
        self._clock = clock
        self._waiter = waiter
        self._rules = rules
        self._links = StageLinks(place, mailbox)
        self._updates = WeightUpdates(self._links, engine, clock.now, self._published, version=start.version)
        self._passes = Passes(
            self._links,
            engine,
            self._updates,
            clock.now,
            self._group_done,
            in_flight=rules.in_flight or place.layout.stages,
            gpipe=rules.gpipe,
            flush=rules.sync,
        )
        self._across = DataParallel(
            partners, self._links, engine, self._updates, self._passes, clock.now, steps=start.steps
        )
        self._saves = Saves(self._links, engine, self._updates, clock.now, waiter.wake, start=start, pool=pool)
        self._queue: VersionQueue[Arrived[m.Serve], Arrived[MicroBatch], Arrived[m.Commit]] = VersionQueue()
        self._urgent: Pass | None = None
        self._training: Pass | None = None
        self._debt = 0.0
        self._pieces: dict[str, int] = {}
        self._tells_idle = rules.paced and place.first
        self._asks = rules.limited and place.first
        self._retry: Pass | None = None
        self._asked = -1
        self._granted = -1
        self._told_idle = False
        self._stopping = False

    def run(self) -> None:
        """Report ready, turn until told to stop and everything is done and sent, and report that."""
        takes = self._engine.takes if self._rules.limited else None
        self._links.to_leader(m.EngineReady(self._place.node, self._place.stage, takes))
        while not self._finished():
            if self._turn():
                self._waiter.reset()
            else:
                self._waiter.idle(self._passes.resting.until_settled, in_transit=self._mailbox.in_transit)
        self._saves.close()
        self._links.to_leader(m.Stopped(self._place.node, self._place.stage))

    def _group_done(self, group: int) -> None:
        self._across.group_done(group)

    def _published(self, update: Update) -> None:
        self._across.published(update)
        self._saves.published(update)

    def _turn(self) -> bool:
        """Take in what arrived and run one piece of work. False when there was nothing to do."""
        arrived = self._take_in()
        if self._retry is not None:
            return arrived  # it comes before all else
        if self._urgent is None and self._training is None:
            self._updates.settle()
            self._start(self._pick())
        elif self._urgent is None and self._gives_way:
            self._start(SERVE)
        running = self._urgent or self._training
        if self._tells_idle:
            self._tell_idle(running)
        if running is not None:
            self._advance(running)
        return running is not None or arrived

    def _tell_idle(self, running: Pass | None) -> None:
        """Tell the leader when nothing runs and no training waits any more, and when that is over: then it need not wait with
        its batches. Weight updates do not count."""
        if running is not None and running.kind not in ("serve", "forward", "backward"):
            return
        idle = running is None and self._queue.next_train is None
        if idle != self._told_idle:
            self._told_idle = idle
            self._links.to_leader(m.FirstStageIdle(self._clock.now() if idle else math.inf))

    def _take_in(self) -> bool:
        """What has arrived, in order. False if nothing has."""
        mails = self._mailbox.poll()
        for mail in mails:
            self._receive(mail)
        orders = self._engine.orders()
        for order in orders:
            self._ordered(order)
        written, moved = self._saves.poll(), self._passes.settle()
        return bool(mails or orders or written or moved)

    def _finished(self) -> bool:
        running = self._urgent or self._training or self._retry
        idle = running is None and not len(self._queue) and self._saves.idle
        at_rest = idle and self._passes.idle and not self._updates.stepping
        return self._stopping and at_rest and self._across.leave() and self._mailbox.sent_all

    def _receive(self, mail: Mail) -> None:
        match mail.message:
            case (m.Serve() | m.Expect() | m.Forget()) as order:
                self._receive_of_serving(order, mail.payload)
            case m.Train(micro_batch) | m.Forward(micro_batch):
                self._queue.add_train(Arrived(micro_batch, mail.payload, self._clock.now()))
            case m.Backward(micro_batch):
                self._passes.groups.gradient_arrived(micro_batch, mail.payload, self._clock.now())
            case m.Sealed() as sealed:
                self._passes.seals.sealed_behind(sealed)
            case m.TiedGradient(group):
                self._passes.seals.tied_arrived(group, mail.payload)
            case m.Commit() as commit:
                # Without a flush between steps, training is stale by nature, and keeps no batch behind the update waiting.
                self._queue.add_update(Arrived(commit, None, self._clock.now()), before_training=not self._rules.sync)
            case (m.Offload() | m.GrantMemory() | m.TryAgain()) as order:
                self._receive_of_memory(order)
            case m.Go(start_time):
                self._clock.start(start_time)
                self._told_idle = False  # what the leader was told before was by another zero
            case m.Stop():
                self._stopping = True
            case m.ShareTime(share):
                self._rules = replace(self._rules, minimum_training_share=share)
            case other:
                self._receive_of_weights(other, mail.payload)

    def _receive_of_serving(self, order: m.Serve | m.Expect | m.Forget, payload: Payload | None) -> None:
        match order:
            case m.Serve() as serve:
                self._queue.add_serve(Arrived(serve, payload, self._clock.now()), serve.key)
            case m.Expect(batch):
                self._passes.expected.told(Arrived(batch, None, self._clock.now()))
            case m.Forget() as forget:
                self._passes.forget(forget)

    def _receive_of_memory(self, order: m.Offload | m.GrantMemory | m.TryAgain) -> None:
        match order:
            case m.Offload():
                self._passes.resting.leave(order)
            case m.GrantMemory(micro_batch):
                self._granted = micro_batch
            case m.TryAgain():
                self._try_again()

    def _receive_of_weights(self, message: m.AnyMessage, payload: Payload | None) -> None:
        match message:
            case m.Prepare() as prepare:
                self._updates.prepare(prepare, payload)
            case m.Prepared(version):
                self._updates.prepared_behind(version)
            case m.WeightsPart() as part:
                self._updates.copy_arrived(part, payload)
            case m.SaveNext() as order:
                self._saves.ask(order)
            case m.Save() as save:
                self._saves.order(save)
            case other:
                self._across.receive(other, payload)

    def _ordered(self, order: EngineOrder) -> None:
        """From the scheduler of an engine that has one."""
        now = self._clock.now()
        if isinstance(order, ServeBatch):
            self._links.behind(m.Expect(order))
            self._queue.add_serve(Arrived(m.Serve(order, order.version, order.id), None, now), order.id)
        else:
            self._queue.add_update(Arrived(self._updates.permitted(), None, now), before_training=True)

    @property
    def _next_commit(self) -> Arrived[m.Commit] | None:
        """The update to put in force now: the first stage decides on that, the others follow its marker in the channel."""
        if self._place.first and not self._updates.asked:
            return self._updates.decided
        return self._queue.update if self._updates.may_publish() else None

    @property
    def _gives_way(self) -> bool:
        """Whether the training pass that has begun rests for serving now, or goes on resting."""
        return self._rules.yield_training and self._debt <= 0 and self._serve_since < math.inf

    @property
    def _serve_since(self) -> float:
        """Since when there is a batch to serve, or to prepare [s]; inf if there is none."""
        return min(_since(self._queue.next_serve), _since(self._passes.expected.next))

    def _pick(self) -> int:
        """What to start, when no pass has begun."""
        kind = self._choose(forward=True)
        if kind != FORWARD or self._has_memory():
            return kind
        return self._choose(forward=False)

    def _has_memory(self) -> bool:
        """Whether the next forward can run: on the first stage it first needs room on all of them."""
        train = self._queue.next_train
        if not self._asks or train is None or self._granted == train.message.id:
            return True
        if self._asked != train.message.id:
            self._asked = train.message.id
            self._links.to_leader(m.AskMemory(train.message.id, train.message.rows * train.message.length))
        return False

    def _choose(self, *, forward: bool) -> int:
        """`forward`: whether a training forward can run."""
        train, groups = self._queue.next_train, self._passes.groups
        may_forward = train is not None and groups.may_forward(train.message)
        holding = self._holding
        held = holding or (self._rules.sync and (self._updates.stepping or self._passes.seals.open))
        # What needs the old weights must have run before they change.
        waits = holding and self._updates.may_publish()
        preparing = min(self._seal_since, self._updates.preparation_since, self._across.since, self._saves.since)
        return pick(
            self._serve_since,
            min(_since(self._next_commit), preparing),
            math.inf if waits else self._passes.backward_since,
            _since(train if forward and may_forward and not held else None),
            self._rules.serving_first,
            self._debt > 0,
        )

    @property
    def _holding(self) -> bool:
        """Whether no training pass may begin, since an update is about to be committed."""
        # With a flush between steps nothing is in flight when they are committed; averages come at any time, and holding
        # back the passes that stages before this one wait for would keep those from committing.
        return self._updates.asked or (self._updates.holding and not self._rules.sync)

    @property
    def _seal_since(self) -> float:
        """Since when a group's gradient can be sealed [s]; inf if none can."""
        return math.inf if self._holding else self._passes.seals.since

    def _start(self, kind: int) -> None:
        if kind == SERVE:
            self._urgent = self._start_serving()
        elif kind == COMMIT:
            self._start_update()
        elif kind == BACKWARD:
            self._training = self._passes.backward()
        elif kind == FORWARD:
            self._training = self._passes.forward(self._queue.take_train())

    def _start_serving(self) -> Pass:
        if self._queue.next_serve is None:
            return self._passes.expect(self._passes.expected.take())
        return self._passes.serve(self._queue.take_serve())

    def _start_update(self) -> None:
        commit = self._next_commit
        if commit is None:
            # The stages before wait for the norm of what is sealed. Snapshots of the weights go before the preparation of the
            # next step, which may change the master copy.
            if self._seal_since < math.inf:
                self._training = self._passes.seals.take()
            elif self._saves.since < math.inf:
                self._training = self._saves.take()
            elif self._across.since < math.inf:
                self._training = self._across.take_preparation()
            else:
                self._training = self._updates.take_preparation()
            return
        if commit is self._queue.update:
            self._queue.pass_update()
        self._urgent = self._updates.publish(commit.message)

    def _advance(self, running: Pass) -> None:
        """Run one piece; a pass that something else comes in between of gets one span per stretch."""
        resting = self._training
        if resting is not None and resting is not running and resting.since is not None:
            self._close_stretch(resting, complete=False)
        if self._reports_ahead(running):
            self._updates.report()
        if running.since is None:
            running.since = running.until = self._clock.now()
        running.pieces += 1
        try:
            next(running.work)
        except StopIteration as end:
            self._worked(running)
            # It became ready before what this pass makes ready.
            self._take_in()
            self._complete(running, end.value)
        except DeviceMemoryError:
            self._worked(running)
            if running.again is None or running.tries == MOST_TRIES:
                raise
            self._out_of_memory(running, running.again())
        else:
            self._worked(running)

    def _out_of_memory(self, failed: Pass, again: Pass) -> None:
        """Let others make room, and then run it again."""
        self._close_stretch(failed, complete=False)
        if failed is self._training:
            self._training = None
        else:
            self._urgent = None
        again.tries, again.worked = failed.tries + 1, failed.worked
        self._retry = again
        begun = next((each for each in (failed, self._training) if each and each.kind == "backward"), None)
        self._links.to_leader(m.OutOfMemory(self._place.stage, begun.tasks[0] if begun else -1))

    def _try_again(self) -> None:
        if self._retry is not None and self._retry.kind == "serve":
            self._urgent = self._retry
        else:
            self._training = self._retry
        self._retry = None

    def _reports_ahead(self, running: Pass) -> bool:
        """Whether updates that are ready are reported now, as the next piece is likely the last of a training pass."""
        place, backward = self._place, running.kind == "backward"
        last = running.pieces + 1 == self._pieces.get(running.kind)
        return last and reports_ahead(place.stage, place.layout.stages, backward, self._rules.sync)

    def _worked(self, running: Pass) -> None:
        """A piece has run: what training is owed follows the pieces, so that it can get no more in one go than that."""
        now = self._clock.now()
        seconds = now - running.until
        served, trained = (seconds, 0.0) if running.kind == "serve" else (0.0, seconds)
        self._debt = debt_after(self._debt, self._rules.minimum_training_share, served, trained)
        running.until = now

    def _complete(self, running: Pass, result: object) -> None:
        if running is self._training:
            self._training = None
            if running.kind in ("forward", "backward"):
                self._pieces[running.kind] = running.pieces
        else:
            self._urgent = None
        self._close_stretch(running, complete=True)
        running.done(result)
        self._links.tell()

    def _close_stretch(self, stopped: Pass, *, complete: bool) -> None:
        place, since = self._place, stopped.since
        assert since is not None, "a stretch is closed once"
        stopped.worked += stopped.until - since
        stopped.since = None
        if stopped.prepares or (stopped.kind == "serve" and not stopped.tasks):
            return  # the pass that follows tells; or there is none, only word of what is over
        span = (
            place.node,
            place.stage,
            stopped.kind,
            stopped.tasks,
            since,
            stopped.until,
            self._updates.version,
            stopped.batch,
            complete,
            stopped.shape,
            stopped.worked,
            list(stopped.partial),
        )
        self._links.worked(m.WorkSpan(*span))


def _since(ready: Arrived[Any] | None) -> float:
    return math.inf if ready is None else ready.since
