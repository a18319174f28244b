"""The leader of a node that vLLM serves: its scheduler forms the batches, in the engine process beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lemix_hpc.engines.vllm.priority import priority_of
from lemix_hpc.runtime.leader.memory_gate import MemoryGate, NodeMemoryLimits
from lemix_hpc.runtime.leader.node_reports import NodeReports
from lemix_hpc.runtime.leader.training_time import trained_seconds
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.runtime.transport.run_clock import RunClock

if TYPE_CHECKING:
    from lemix_hpc.engines.vllm import server
    from lemix_hpc.engines.vllm.server import Event, NodeServer

TOLD_AT_ONCE = 0.1
"""Its server hears of so much training, in what decode is paced to, at once: each message wakes the engine process."""


class EngineLeader:
    """Passes requests to the node's server and its answers to the scheduler, and relays what the stages report."""

    def __init__(
        self,
        layout: Layout,
        node: int,
        mailbox: Mailbox,
        server: NodeServer,
        clock: RunClock,
        *,
        temperature: float,
        memory: NodeMemoryLimits,
    ) -> None:
        """`memory`: of the node's stages, of which vLLM has taken its part; the rest is for training."""
        self._layout = layout
        self._node = node
        self._mailbox = mailbox
        self._server = server
        self._clock = clock
        self._temperature = temperature
        self._stopped = False
        self._tpot = 0.0  # what decode is paced to [s], 0: it is not
        self._patient: set[int] = set()
        self._untold = 0.0
        self._running = layout.stages
        self._gate = MemoryGate(memory, clock.now, self._send_stage)
        self._reports = NodeReports(node, layout.stages, self._send_scheduler)

    def turn(self) -> bool:
        """Take in what arrived from the run and from the server. False when there was nothing to do."""
        mails = self._mailbox.poll()
        for mail in mails:
            self._receive(mail)
        if mails or self._gate.due:
            self._gate.look()
        events: list[Event] = []
        if not self._stopped:
            self._tell_of_training()
            events = self._server.poll()
        self._tell_events(events)
        self._reports.tell()
        return bool(mails or events)

    def until_due(self) -> float:
        """Its server forms batches, when they are due, and rings when there is something: only memory is looked for here."""
        return self._gate.until - self._clock.now()

    @property
    def finished(self) -> bool:
        """All stages have left their loops, and everything is passed on."""
        return self._running == 0 and self._mailbox.sent_all

    @property
    def in_transit(self) -> bool:
        """Whether MPI still has something to move for this leader."""
        return self._mailbox.in_transit

    def _receive(self, mail: Mail) -> None:
        match mail.message:
            case m.PlaceRequest(task, _, output, tokens, key, arrival, patient):
                priority = self._priority(task, key, patient=patient)
                self._server.generate(task, tokens, output, self._temperature, priority, arrival)
                self._reports.expect(task, max(1, output))
            case m.HttpCall(task, method, path, headers, body, key, patient, answer):
                priority = self._priority(task, key, patient=patient)
                self._server.call(task, method, path, headers, body, priority)
                self._reports.expect(task, answer)
            case m.HttpAbort(task):
                self._server.abort(task)
            case m.Withdraw(tasks):
                self._withdraw(tasks)
            case (m.KeepPace() | m.FirstStageIdle()) as message:
                self._keep_pace(message)
            case m.Train() as train:
                self._send_stage(0, train)
            case m.SpanReport(spans):
                self._worked(spans)
            case (m.EngineReady() | m.Loss() | m.Stepped() | m.RingDone() | m.Saved() | m.Stopped()) as report:
                self._account(report)
                self._tell(report)
            case (m.AskMemory() | m.Moved() | m.OutOfMemory() | m.HoldTraining()) as message:
                self._gate.heard(message)
            case (m.Go() | m.Stop()) as order:
                self._order(order)
            case other:
                raise TypeError(f"no message for the leader of an engine: {other!r}")

    def _account(self, report: m.AnyMessage) -> None:
        if isinstance(report, m.EngineReady):
            self._gate.heard(report)
        elif isinstance(report, m.Stopped):
            self._running -= 1
            if self._running == 0 and self._gate.limited:
                self._tell(m.MemoryUsed(self._node, self._gate.used))

    def _withdraw(self, tasks: Sequence[int]) -> None:
        """Let go of those that have not begun."""
        gone = self._server.withdraw(tasks)
        self._patient.difference_update(gone)
        for each in gone:
            self._reports.ended(each)
        self._tell(m.Withdrawn(self._node, gone))

    def _worked(self, spans: Sequence[m.WorkSpan]) -> None:
        self._gate.worked(spans)
        self._untold += trained_seconds(spans)
        others = self._reports.take(spans)
        if others:
            self._tell(m.SpanReport(others))
        if (used := self._gate.news()) is not None:
            self._tell(m.MemoryUsed(self._node, used))

    def _send_stage(self, stage: int, message: m.AnyMessage) -> None:
        self._mailbox.send(self._layout.worker(self._node, stage), Inbox.STAGE, message)

    def _keep_pace(self, message: m.KeepPace | m.FirstStageIdle) -> None:
        if isinstance(message, m.KeepPace):
            self._server.keep_pace(message.ttft, message.tpot, message.coefficients, message.batch_share)
            self._tpot = message.tpot
        elif self._tpot and not self._stopped:  # stages tell again when the run starts
            self._server.first_stage_idle(message.since)

    def _priority(self, task: int, key: float, *, patient: bool) -> int:
        if patient:
            self._patient.add(task)
        return priority_of(key, patient=patient)

    def _tell_of_training(self) -> None:
        """What batch requests are owed grows with training. While there are none it is enough to know that some goes on."""
        most = TOLD_AT_ONCE if self._patient else 1.0
        if self._untold > most * self._tpot > 0.0:
            self._server.trained(self._untold)
            self._untold = 0.0

    def _order(self, order: m.Go | m.Stop) -> None:
        if isinstance(order, m.Stop):
            self._server.close()
            self._stopped = True
        else:
            self._clock.start(order.start_time)
            self._server.run_began()
        for stage in range(self._layout.stages):
            self._send_stage(stage, order)

    def _tell_events(self, events: Sequence[Event]) -> None:
        """In order; pieces of answers that come together go together."""
        from lemix_hpc.engines.vllm import server

        parts: list[m.HttpPart] = []
        for event in events:
            if isinstance(event, server.ResponsePart):
                parts.append(m.HttpPart(event.task, event.status, event.headers, event.body, event.more))
                continue
            if parts:
                self._tell(m.HttpParts(parts))
                parts = []
            self._tell(self._report(event))
        if parts:
            self._tell(m.HttpParts(parts))

    def _report(self, event: server.Ready | server.Done) -> m.AnyMessage:
        from lemix_hpc.engines.vllm import server

        match event:
            case server.Ready():
                return m.EngineReady(self._node, -1)
            case server.Done(task, first_token, finished, nll, scored, output, versions):
                self._patient.discard(task)
                self._reports.ended(task)
                return m.RequestDone(task, self._node, first_token, finished, nll, scored, output, versions)

    def _tell(self, message: m.AnyMessage) -> None:
        """Let the scheduler know, behind what it is to hear of work."""
        self._reports.tell()
        self._send_scheduler(message)

    def _send_scheduler(self, message: m.AnyMessage) -> None:
        self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, message)
