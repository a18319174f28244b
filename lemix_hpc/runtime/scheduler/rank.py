"""The scheduler rank's script, from the first engine that is ready to the last file written."""

from __future__ import annotations

import errno
import functools
import importlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.policy.scheduler import Scheduler, compile_policy
from lemix_hpc.profiling.coefficients import save_coefficients
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.records.attempts import Attempt, AttemptEnd
from lemix_hpc.records.event_log import EVENTS
from lemix_hpc.records.files import patiently
from lemix_hpc.records.inheritance import Inheritance
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.schema import (
    COEFFICIENTS,
    FACTS,
    LEARNED,
    PROGRESS,
    SPANS,
    TASKS,
    LearnedTimes,
    Progress,
    RunFacts,
    SchedulerMemory,
    SettingChange,
    TaskRecord,
)
from lemix_hpc.records.writer import Recorder
from lemix_hpc.run_setup import recollection
from lemix_hpc.run_setup.data_memory import text_start
from lemix_hpc.run_setup.memory_limits import memory_use
from lemix_hpc.run_setup.scheduler_setup import (
    allocation_end,
    limits_ms,
    make_scheduler,
    mean_unloaded_response,
    pace_of,
    partners,
    placement_of,
    split,
)
from lemix_hpc.run_setup.training_feed import feed_of
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.http.endpoint import Endpoint
from lemix_hpc.runtime.leader.make_leader import AnyLeader, engines_in
from lemix_hpc.runtime.scheduler.arrivals import Arrivals
from lemix_hpc.runtime.scheduler.checkpoints import Checkpoints
from lemix_hpc.runtime.scheduler.disk_watch import DiskWatch
from lemix_hpc.runtime.scheduler.drain import Drain, EndedEarlyError
from lemix_hpc.runtime.scheduler.held_out import HeldOutLosses
from lemix_hpc.runtime.scheduler.live_settings import LiveSettings
from lemix_hpc.runtime.scheduler.loop import LoopSettings, SchedulerLoop
from lemix_hpc.runtime.scheduler.pace_orders import send_pace
from lemix_hpc.runtime.scheduler.resume import DISK_TIMEOUT_S, arrivals_of, lost, oldest_versions, poisonous, without
from lemix_hpc.runtime.scheduler.save_plan import save_plan
from lemix_hpc.runtime.scheduler.stage_times import believed_file, hardware_of
from lemix_hpc.runtime.scheduler.warm_up import Probe, ProbeTimes, warm_up
from lemix_hpc.runtime.scheduler.watch import Watch
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.idle_wait import ALONE_ON_HOST_S, Waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.runtime.transport.run_clock import RunClock
from lemix_hpc.workload.api_lengths import context_of
from lemix_hpc.workload.demand import Demand
from lemix_hpc.workload.load import Workload, load_workload

PUBLISHED = (SPANS, TASKS, EVENTS, FACTS, PROGRESS, COEFFICIENTS, LEARNED)
FACTS_EVERY_S = 5.0
SECURE_TIMEOUT_S = 60.0
"""How long a checkpoint does; then it is tried again."""


class SchedulerRank:
    """Rank 0 of one run. Node 0's leader shares the rank and gets its turns here."""

    def __init__(
        self,
        recipe: Recipe,
        layout: Layout,
        attempt: Attempt,
        inherited: Inheritance,
        mailbox: Mailbox,
        clock: RunClock,
        waiter: Waiter,
        leader: AnyLeader,
        drain: Drain,
        kinds: tuple[int, ...],
    ) -> None:
        """`kinds`: that of each node, by its devices."""
        self._recipe = recipe
        self._kinds = kinds
        self._layout = layout
        self._attempt = attempt
        self._mailbox = mailbox
        self._clock = clock
        self._waiter = waiter
        self._leader = leader
        self._drain = drain
        self._inherited = inherited
        self._watch = Watch(recipe.engine.timeout_s, clock.monotonic, layout, mailbox)
        self._endpoint = Endpoint(recipe, attempt, self._inherited, clock.now, waiter.wake, self._policy_end)
        self._recorder = Recorder(attempt.path)
        # Only when these lines are safe may the journal begin with a fold that has not got them.
        tasks: list[TaskRecord] = [*self._inherited.served, *self._inherited.trained]
        fold = msgspec.structs.replace(
            self._inherited.fold, reach=self._recorder.inherited(tasks, DISK_TIMEOUT_S), results=0
        )
        self._journal = Journal(attempt.path, fold, self._endpoint.sync, self._settle, self._saved)
        self._recorder.journal = self._journal
        self._disk = DiskWatch(
            self._recorder, self._journal, lambda: self._endpoint.trouble, self._endpoint.hold, clock.monotonic
        )
        attempt.publish(*PUBLISHED)
        attempt.make_current()
        plan = save_plan(recipe, attempt.run_dir, inherited.steps)
        self._checkpoints = (
            None if plan is None else Checkpoints(plan, layout, mailbox, clock.now, waiter.wake, secure=self._secure)
        )

    def run(self) -> AttemptEnd:
        """Load the work, wait for the engines, predict, serve and train, stop everyone, write the facts.

        Returns why it ended. Raises EndedEarlyError if it is to end before it has begun.
        """
        endpoint = self._endpoint
        self._tell("loading the workload")
        work = load_workload(self._recipe)
        for notice in work.notices:
            print(notice, flush=True)
        self._look_back()
        arrivals = arrivals_of(work.requests, self._inherited)
        # While others build their engines; once the run has started, everybody would wait for it.
        self._tell("compiling the scheduler, while the engines are built")
        compile_policy()
        if believed_file(self._recipe) is None and self._recipe.engine.computes:
            importlib.import_module("scipy.optimize")  # stage times are fitted to the warm-up
        if self._checkpoints is not None:
            self._checkpoints.clear()
        self._await_engines(engines_in(self._recipe))
        times = self._warm_up(work.requests.demand) if self._recipe.engine.computes else None
        apart = split(self._recipe)
        held_out = self._held_out(work, apart.serving if apart else range(self._layout.nodes))
        overhead = 0.0 if times is None else max(kind.overhead for kind in times)
        hardware = hardware_of(self._recipe, times, self._kinds)
        patiently(
            lambda: save_coefficients(hardware.believed[0], self._attempt.path / COEFFICIENTS),
            DISK_TIMEOUT_S,
            lambda: self._drain.look() is not None,
        )
        reference = hardware.reference.latency(self._layout.stages)
        t0 = mean_unloaded_response(reference, work.requests.demand, self._recipe)
        pace = pace_of(self._recipe, reference, work.requests.demand)
        ttft, tpot = (0.0, 0.0) if pace is None else (pace.ttft, pace.tpot)
        scheduler = make_scheduler(
            self._recipe,
            hardware,
            t0,
            overhead,
            self._policy_end,
            tpot,
            ttft,
            # Where ranks share cores, passes take as long as the kernel lets them: nothing would predict them better.
            drift_limit=math.inf if times is not None and self._waiter.crowded else None,
        )
        coefficients = recollection.digest(hardware)
        self._recall(scheduler, hardware, coefficients)
        # The time of the run goes on where the last attempt ended.
        trainers = apart.training if apart else range(self._layout.nodes)
        send_pace(self._mailbox, self._layout, hardware, pace, trainers, self._recipe.policy.batch_share)
        start_time = self._clock.monotonic() - self._inherited.clock
        self._order(m.Go(start_time), range(self._layout.nodes))
        self._clock.start(start_time)
        next_number = functools.partial(next, itertools.count(self._inherited.next_number))
        router = endpoint.router(self._layout, self._mailbox, next_number, work, self._recorder.promise)
        loop = self._make_loop(work, arrivals, scheduler, endpoint, router, next_number, t0, held_out)
        outside = work.requests.demand.outside([reference])
        constant = self._constant_facts(t0, pace, work.lines_left_out, outside)

        def facts(duration: float) -> RunFacts:
            return self._facts(constant, loop, duration, scheduler)

        with endpoint.open(router):
            turn = self._turn(loop, lambda now: self._write_down(facts(now), scheduler, coefficients))
            self._turn_until(lambda: loop.finished, turn, loop.until_due)
            router.cut()
        loop.end_unclaimed()
        duration = self._clock.now()
        self._save_the_last(loop)
        self._take_last_loss(loop, held_out)
        self._stop(loop)
        self._write_down(facts(duration), scheduler, coefficients)
        self._recorder.learned(self._learned(scheduler))
        return self._close(loop)

    def _close(self, loop: SchedulerLoop) -> AttemptEnd:
        """Wait until the disk has everything. Returns why the run ended."""
        self._recorder.close(DISK_TIMEOUT_S, lambda: self._drain.hopeless)
        self._endpoint.close(DISK_TIMEOUT_S, lambda: self._drain.hopeless)
        self._journal.close(DISK_TIMEOUT_S)
        self._attempt.must_count()
        end, failure = loop.end, self._checkpoints.unsaved if self._checkpoints is not None else None
        if end.reason not in ("finished", "drained"):
            return end
        patiently(self._endpoint.put_together, DISK_TIMEOUT_S, lambda: self._drain.hopeless)
        if failure is None:
            return end
        # What was learned may not be lost in silence.
        return AttemptEnd("unsaved", f"{end.message}, but the training state could not be saved: {failure}", end.time)

    def _recall(self, scheduler: Scheduler, hardware: Hardware, coefficients: str) -> None:
        """Go on from what the scheduler of the attempt before has learned."""
        last = self._inherited.last
        memory = recollection.left_by(last.path, hardware) if last is not None else None
        if memory is not None:
            scheduler.recall(memory)
            self._recorder.recalled(SchedulerMemory(coefficients, memory))

    def _write_down(self, facts: RunFacts, scheduler: Scheduler, coefficients: str) -> None:
        self._recorder.facts(facts)
        self._recorder.memory(SchedulerMemory(coefficients, scheduler.memory))

    def _turn(self, loop: SchedulerLoop, write_down: Callable[[float], None]) -> Callable[[], bool]:
        """The loop's turn. Now and then it leaves what a report and the next attempt need, should the run end at once.

        Raises RuntimeError in an attempt that was taken for dead, and was left behind.
        """
        due = -math.inf

        def turn() -> bool:
            nonlocal due
            now = self._clock.now()
            if now >= due:
                write_down(now)
                due = now + FACTS_EVERY_S
                self._attempt.must_count()
            return loop.turn()

        return turn

    def _secure(self) -> None:
        """Before a checkpoint counts, the disk must know what is in it; nobody may build on one of an attempt that was left
        behind. Raises OSError. In a thread."""
        if not self._journal.flush(SECURE_TIMEOUT_S):
            raise OSError(errno.EIO, self._journal.trouble, str(self._attempt.path))
        self._must_count()

    def _settle(self) -> None:
        """Before the journal is cut, the disk must have the outcomes in it; one of an attempt that was left behind stays as it
        is. Raises OSError. In a thread."""
        self._recorder.settle()
        self._must_count()

    def _must_count(self) -> None:
        if self._attempt.superseded:
            raise OSError(errno.ESTALE, "a later attempt goes on with the run", str(self._attempt.path))

    def _saved(self) -> Mapping[int, int] | None:
        """The versions of the oldest weights that training may go back to; None if it never does. In a thread."""
        return oldest_versions(self._recipe, self._attempt.run_dir)

    def _look_back(self) -> None:
        """Do not try again what may have broken the attempts before."""
        gone = poisonous(self._inherited)
        for accepted in gone:
            self._recorder.request(lost(accepted), accepted.place)
        self._inherited = without(self._inherited, gone)

    def _make_loop(
        self,
        work: Workload,
        arrivals: Arrivals,
        scheduler: Scheduler,
        endpoint: Endpoint,
        router: CallRouter,
        next_number: Callable[[], int],
        t0: float,
        held_out: HeldOutLosses | None,
    ) -> SchedulerLoop:
        recipe = self._recipe
        feed = feed_of(recipe, work, next_number, endpoint.samples)
        if feed is not None:
            start = text_start(work.batches, self._attempt.run_dir, self._inherited.elsewhere)
            inherited = self._inherited
            feed.go_on(inherited.cuts, inherited.done, endpoint.posted, start, inherited.behind)
        settings = LoopSettings(
            self._context,
            recipe.report.live_interval_s,
            endpoint.address,
            endpoint.keys,
            partners(recipe),
            has_losses=recipe.engine.computes,
            limits_s=[factor * t0 for factor in recipe.slo.factors],
            limits_ms=limits_ms(recipe),
            window=recipe.slo.completion_window_s,
            on_nan=recipe.training.on_nan if recipe.training is not None else "skip",
            spans=recipe.report.spans,
        )
        return SchedulerLoop(
            self._layout,
            scheduler,
            self._mailbox,
            self._recorder,
            self._clock.now,
            arrivals,
            feed,
            router,
            settings,
            next_number,
            self._checkpoints,
            self._inherited,
            self._drain,
            self._watch,
            self._disk,
            LiveSettings(self._attempt.run_dir, self._recipe, self._clock.now),
            held_out,
        )

    def _held_out(self, work: Workload, nodes: Sequence[int]) -> HeldOutLosses | None:
        """Take the loss on held-out samples, unless an earlier attempt has."""
        if work.held_out is None:
            return None
        losses = HeldOutLosses(work.held_out, self._layout, nodes, self._mailbox, self._attempt.run_dir)
        if not losses.taken:
            self._tell("taking the loss on held-out samples")
            losses.ask(0.0, self._inherited.steps)
            while losses.awaited:
                for message in self._collect(1):
                    losses.heard(message)
        return losses

    def _take_last_loss(self, loop: SchedulerLoop, held_out: HeldOutLosses | None) -> None:
        """On held-out samples, of a run that has finished or was asked to stop, as far as there is time for that."""
        if held_out is None or loop.steps <= held_out.taken[-1].steps:
            return
        if loop.end.reason in ("finished", "drained"):
            held_out.ask(self._clock.now(), loop.steps)
            self._turn_until(lambda: not held_out.awaited or self._drain.over, loop.turn, loop.until_due)

    def _save_the_last(self, loop: SchedulerLoop) -> None:
        """Save what has been learned since the last checkpoint."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            return
        checkpoints.finish()
        self._turn_until(lambda: checkpoints.at_rest or self._drain.hopeless, loop.turn, loop.until_due)
        if checkpoints.at_rest:
            checkpoints.close()

    @property
    def _context(self) -> int | None:
        """The longest prompt and output together that the engine takes, None without a limit."""
        engine = self._recipe.engine
        if not engine.computes:
            return None
        return context_of(self._recipe) if engine.serves_http else describe(self._recipe.model).max_positions

    @property
    def _policy_end(self) -> float:
        """When nothing may run any more [s of the run]. In an allocation the drain sees to that, by its real end."""
        return math.inf if self._drain.in_allocation else allocation_end(self._recipe)

    def _constant_facts(self, t0: float, pace: Pace | None, left_out: int, outside: int) -> RunFacts:
        """What is known of the run from its beginning."""
        recipe = self._recipe
        return RunFacts(
            policy=placement_of(recipe),
            engine=recipe.engine.kind,
            nodes=self._layout.nodes,
            stages=self._layout.stages,
            slo_factors=list(recipe.slo.factors),
            slo_ms=limits_ms(recipe),
            t0_s=t0,
            duration_s=0.0,
            steps=0,
            malformed_lines=left_out,
            outside_range=outside,
            pace_s=pace._asdict() if pace is not None else {},
            completion_window_s=recipe.slo.completion_window_s,
            spans=recipe.report.spans,
        )

    def _facts(self, constant: RunFacts, loop: SchedulerLoop, duration: float, scheduler: Scheduler) -> RunFacts:
        return msgspec.structs.replace(
            constant,
            duration_s=duration,
            steps=loop.steps,
            skipped_steps=loop.skipped,
            training_stopped=loop.training_stopped,
            lost_losses=loop.lost_losses,
            drift=scheduler.drifts,
            stragglers=scheduler.stragglers,
            across_nodes=loop.rounds.facts() if loop.rounds is not None else None,
            overhead_s=scheduler.rules.overhead,
            checkpoints=self._checkpoints.facts() if self._checkpoints is not None else None,
            refuses_after_s=scheduler.rules.end if scheduler.rules.end < math.inf else None,
            disk=self._disk.facts(),
            changes=[SettingChange(change.key, change.value, change.time) for change in loop.changes],
            memory=memory_use(list(loop.memory.values())),
            held_out=loop.held_out,
        )

    def _learned(self, scheduler: Scheduler) -> LearnedTimes:
        source = believed_file(self._recipe)
        return LearnedTimes(
            None if source is None else str(source), self._recipe.policy.recalibrate, list(scheduler.learned)
        )

    def _tell(self, message: str) -> None:
        self._recorder.progress(Progress("starting", message=message, since=time.time()))

    def _await_engines(self, engines: int) -> None:
        since, built = time.time(), 0
        while built < engines:
            awaited = Progress("starting", message="building the engines", since=since, built=built, engines=engines)
            self._recorder.progress(awaited)
            built += len(self._collect(1))

    def _order(self, order: m.Go | m.Stop, nodes: Sequence[int]) -> None:
        for node in nodes:
            self._mailbox.send(self._layout.leader(node), Inbox.LEADER, order)

    def _turn_until(
        self, done: Callable[[], bool], turn: Callable[[], bool], at_most: Callable[[], float] = lambda: ALONE_ON_HOST_S
    ) -> None:
        """Give the scheduler and the first leader their turns."""
        while not done():
            busy = turn()
            if self._leader.turn() or busy:
                self._waiter.reset()
            else:
                at_most_s = min(at_most(), self._leader.until_due())
                self._waiter.idle(at_most_s, in_transit=self._mailbox.in_transit or self._leader.in_transit)

    def _collect(self, count: int) -> list[m.AnyMessage]:
        """The next messages for the scheduler, at least as many as asked for."""
        mails: list[Mail] = []

        def turn() -> bool:
            if (ending := self._drain.look()) is not None:
                raise EndedEarlyError(ending)
            arrived = self._mailbox.poll()
            for mail in arrived:
                if isinstance(mail.message, m.Alive):
                    self._watch.heard(mail.message)
                else:
                    mails.append(mail)
            return bool(arrived)

        self._turn_until(lambda: len(mails) >= count, turn)
        return [mail.message for mail in mails]

    def _warm_up(self, demand: Demand) -> list[ProbeTimes]:
        """Run ordinary requests that nobody waits for."""
        self._tell("warming up")
        if max(self._kinds):
            print(f"nodes have {max(self._kinds) + 1} kinds of devices; each is measured for itself", flush=True)
        return warm_up(self._recipe, demand, self._context, self._kinds, self._run_probes)

    def _run_probes(self, together: Sequence[Probe]) -> tuple[float, Sequence[m.WorkSpan]]:
        sent, spans, left = self._clock.now(), list[m.WorkSpan](), 0
        for probe in together:
            self._mailbox.send(self._layout.leader(probe.node), Inbox.LEADER, probe.request)
            left += self._layout.stages * max(1, probe.request.output)
        done = 0
        while len(spans) < left or done < len(together):
            for message in self._collect(1):
                if isinstance(message, m.NodeReport):
                    spans += message.spans()
                done += isinstance(message, m.RequestDone)
        return sent, spans

    def _stop(self, loop: SchedulerLoop) -> None:
        """Stop training nodes first: their last weight copies must find the serving nodes still listening."""
        apart = split(self._recipe)
        parts = (apart.training, apart.serving) if apart else (range(self._layout.nodes),)
        for part in parts:
            self._order(m.Stop(), part)
            stages = {(node, stage) for node in part for stage in range(self._layout.stages)}
            self._turn_until(lambda: loop.stopped >= stages or self._drain.hopeless, loop.turn)  # noqa: B023
        loop.show(last=True)
        self._turn_until(lambda: self._leader.finished or self._drain.hopeless, lambda: False)
