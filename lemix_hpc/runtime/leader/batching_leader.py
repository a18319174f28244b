"""The node leader: the node's request queue, batches formed per iteration, and what the stages report put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lemix_hpc.engines.protocol import ServeBatch
from lemix_hpc.policy.batch_share import BatchParts, BatchShare, next_due
from lemix_hpc.policy.classes import waits_as_batch
from lemix_hpc.policy.execution_rules import may_form_batch
from lemix_hpc.policy.pacer import Pacer, PromptParts
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.profiling.coefficients import CoefficientFile
from lemix_hpc.runtime.leader.memory_gate import MemoryGate, NodeMemoryLimits
from lemix_hpc.runtime.leader.node_reports import NodeReports
from lemix_hpc.runtime.leader.request_queues import NodeRequest, RequestQueues
from lemix_hpc.runtime.leader.training_time import trained_seconds
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.runtime.transport.run_clock import RunClock


@dataclass(frozen=True, slots=True)
class _Members:
    """The requests of a batch, of which the first ones are `interactive`, or are treated so."""

    requests: list[NodeRequest]
    interactive: int


class Leader:
    """One node's leader. Requests that generate go before new ones, so that they finish; new ones in the policy's order.

    Batches are formed as soon as possible, or once a `_pacer` says that they are due.
    """

    def __init__(
        self,
        layout: Layout,
        node: int,
        mailbox: Mailbox,
        clock: RunClock,
        *,
        max_requests: int,
        max_tokens: int,
        temperature: float,
        memory: NodeMemoryLimits,
    ) -> None:
        self._layout = layout
        self._node = node
        self._mailbox = mailbox
        self._clock = clock
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._queues = RequestQueues()
        self._in_batch: dict[int, _Members] = {}
        self._generating = 0
        self._at_first_stage = 0
        self._batches = 0
        self._running = layout.stages
        self._stopped = False
        self._pacer: Pacer | None = None
        self._share: BatchShare | None = None
        self._due = -math.inf
        self._alone = False
        self._gate = MemoryGate(memory, clock.now, self._send_stage, self._queues.most_spare, self._preempt)
        self._lacks_memory = False
        self._reports = NodeReports(node, layout.stages, self._send_scheduler)

    def _send_scheduler(self, message: m.AnyMessage) -> None:
        self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, message)

    def _tell(self, message: m.AnyMessage) -> None:
        """Let the scheduler know, behind what it is to hear of work."""
        self._reports.tell()
        self._send_scheduler(message)

    def _send_stage(self, stage: int, message: m.AnyMessage) -> None:
        self._mailbox.send(self._layout.worker(self._node, stage), Inbox.STAGE, message)

    def turn(self) -> bool:
        """Take in what arrived and keep the first stage supplied. False when there was nothing to do."""
        mails = self._mailbox.poll()
        for mail in mails:
            self._receive(mail)
        self._reports.tell()
        now, formed = self._clock.now(), False
        look = bool(mails) or self._gate.due
        self._lacks_memory &= not look
        if look or self._due <= now:
            self._look_when_due(now)
        while self._due <= now and self._may_form() and self._has_memory():
            members = self._next_members(now)
            self._at_first_stage += 1
            serve = m.Serve(self._batch(members), -1, min(request.key for request in members.requests))
            self._send_stage(0, serve)
            self._look_when_due(now)
            formed = True
        if (look or formed) and self._gate.limited:
            if not self._lacks_memory:
                self._gate.forget_claim()
            self._lacks_memory &= not self._gate.look()
            self._look_when_due(now)  # requests that have lost their caches wait as new ones
        return look or formed

    def until_due(self) -> float:
        """Seconds until the next batch, or memory, is to be looked for; inf when none is or may be before something comes."""
        now = self._clock.now()
        batch = self._due - now if self._may_form() and not self._lacks_memory else math.inf
        return min(batch, self._gate.until - now)

    def _has_memory(self) -> bool:
        """Whether there is memory for the next batch. If not, it is looked for again when something comes."""
        request = self._queues.first(alone=self._alone)
        if not self._gate.limited or request is None or request.output_wanted == 0:
            return True
        if self._lacks_memory:
            return False
        self._lacks_memory = not self._gate.claim_cache(request, request.next_length)
        return not self._lacks_memory

    def _look_when_due(self, now: float) -> None:
        """When is the next batch to be formed or looked for, and is one that is due now of batch requests alone?"""
        self._queues.promote(now)
        if self._pacer is None or self._share is None:
            return
        self._due, self._alone = next_due(self._pacer, self._queues), False
        if self._due > now:
            fills = self._share.due(self._queues, now, self._at_first_stage, self._generating)
            self._alone = fills <= now
            self._due = min(self._due, fills, self._queues.promotes)

    def _may_form(self) -> bool:
        request, stages = self._queues.first(alone=self._alone), self._layout.stages
        return (
            request is not None
            and not self._stopped
            and may_form_batch(
                request.output_wanted > 0,
                self._at_first_stage,
                len(self._in_batch),
                self._generating,
                stages,
                self._pacer is not None,
            )
        )

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
            case m.PlaceRequest(task, prompt, output, tokens, key, arrival, patient, expected):
                request = NodeRequest(task, key, output, prompt, tokens, arrival, patient, expected=expected)
                self._queues.wait(request, self._clock.now())
                self._reports.expect(task, max(1, output))
            case m.Train() as train:
                self._send_stage(0, train)
            case m.Served() as served:
                self._served(served)
            case m.SpanReport(spans):
                self._worked(spans)
            case (m.EngineReady() | m.Loss() | m.Stepped() | m.RingDone() | m.Saved() | m.Stopped()) as report:
                self._account(report)
                self._tell(report)
            case (m.AskMemory() | m.Moved() | m.OutOfMemory() | m.HoldTraining()) as message:
                self._gate.heard(message)
            case (m.KeepPace() | m.FirstStageIdle()) as message:
                self._keep_pace(message)
            case m.Withdraw(tasks):
                self._withdraw(set(tasks))
            case (m.Go() | m.Stop()) as order:
                self._order(order)
            case other:
                raise TypeError(f"no message for a leader: {other!r}")

    def _worked(self, spans: Sequence[m.WorkSpan]) -> None:
        self._at_first_stage -= sum(s.kind == "serve" and s.stage == 0 and s.complete for s in spans)
        if self._share is not None:
            self._share.trained(trained_seconds(spans), self._clock.now())
        self._gate.worked(spans)
        if others := self._reports.take(spans):
            self._tell(m.SpanReport(others))
        if (used := self._gate.news()) is not None:
            self._tell(m.MemoryUsed(self._node, used))

    def _account(self, report: m.AnyMessage) -> None:
        if isinstance(report, m.EngineReady):
            self._gate.heard(report)
        self._running -= isinstance(report, m.Stopped)
        if self._running == 0 and self._gate.limited:
            self._tell(m.MemoryUsed(self._node, self._gate.used))

    def _keep_pace(self, message: m.KeepPace | m.FirstStageIdle) -> None:
        if isinstance(message, m.KeepPace):
            latency = CoefficientFile.model_validate_json(message.coefficients).latency(self._layout.stages)
            self._pacer = Pacer(Pace(message.ttft, message.tpot), latency)
            self._share = BatchShare(self._pacer, message.batch_share, self._layout.stages)
        elif self._pacer is not None:  # stages tell again when the run starts
            self._pacer.idle_since = message.since

    def _order(self, order: m.Go | m.Stop) -> None:
        if isinstance(order, m.Go):
            self._clock.start(order.start_time)
        # A run that ends early may have left requests here.
        self._stopped = isinstance(order, m.Stop)
        for stage in range(self._layout.stages):
            self._send_stage(stage, order)

    def _withdraw(self, tasks: set[int]) -> None:
        """Let go of those that are in no batch yet."""
        gone = self._queues.withdraw(tasks)
        for task in gone:
            self._reports.ended(task)
        self._tell(m.Withdrawn(self._node, gone))

    def _next_members(self, now: float) -> _Members:
        """Of the next batch: as many requests as the limits allow, at least one if any is there."""
        members: list[NodeRequest] = []
        tokens, interactive = 0, 0
        prompts: PromptParts | None = None
        batch: BatchParts | None = None
        while len(members) < self._max_requests and (request := self._queues.first(alone=self._alone)):
            request.part, waits = request.next_length, waits_as_batch(request.patient, request.key, now)
            if waits and self._share is not None:
                batch = batch or self._share.parts(self._queues, members, now, alone=self._alone)
                request.part = batch.take(request)
                if self._gate.limited and 0 < request.part < request.next_length:
                    request.part = 0 if tokens else request.next_length
            elif self._pacer is not None and self._may_cut(request):
                prompts = prompts or self._pacer.prompt_parts(members, now)
                if prompts is not None:
                    request.part = prompts.take(request)
            tokens += request.part
            if request.part == 0 or (members and tokens > self._max_tokens) or not self._takes_memory(request, members):
                break
            members.append(self._queues.take(alone=self._alone))
            interactive += not waits
        if self._share is not None:
            self._share.formed(members, interactive, now)
        return _Members(members, interactive)

    def _may_cut(self, request: NodeRequest) -> bool:
        """Whether a pass may take a part of its prompt. Scoring is one pass. Where memory has an end, nothing stops half-way
        that nobody could take it from."""
        return request.output_wanted > 0 and not self._queues.interactive.ready and not self._gate.limited

    def _takes_memory(self, request: NodeRequest, members: list[NodeRequest]) -> bool:
        """Whether another request of a batch has got memory for its part; for the first one there is some."""
        if request.output_wanted == 0:
            return True
        if members and not self._gate.cache_fits(request.part):
            return False
        self._gate.take_cache(request, request.part)
        return True

    def _preempt(self, request: NodeRequest) -> int:
        """A request loses its cache: prompt and answer so far become its prompt, and it waits as a new one. How many tokens."""
        self._queues.leave(request)
        tokens = request.start_again()
        self._send_stage(0, m.Forget([request.task]))
        self._queues.wait(request, self._clock.now())
        self._lacks_memory = False  # others may find enough now
        return tokens

    def _batch(self, members: _Members) -> ServeBatch:
        self._batches += 1
        self._in_batch[self._batches] = members
        self._generating += any(request.output_wanted for request in members.requests)
        sequences = [request.sequence() for request in members.requests]
        return ServeBatch(self._batches, sequences, self._temperature)

    def _served(self, served: m.Served) -> None:
        batch, now = self._in_batch.pop(served.batch), self._clock.now()
        self._queues.promote(now)  # before others get ready behind those
        self._generating -= any(request.output_wanted for request in batch.requests)
        if self._pacer is not None and self._share is not None:
            self._pacer.passed(batch.requests, served.time)
            self._share.ended(len(batch.requests), batch.interactive)
        members = {request.task: request for request in batch.requests}
        over: list[NodeRequest] = []
        for result in served.results:
            request = members[result.request]
            request.versions = (request.versions[0] if request.versions else served.version, served.version)
            request.nll += result.nll
            request.scored += result.scored
            if request.partial:
                request.advance(request.next_length - request.part, request.next_tokens[request.part :])
                self._queues.wait(request, now)
                continue
            request.first_token = served.time if request.first_token is None else request.first_token
            if result.next_token is not None:
                request.output.append(result.next_token)
            if len(request.output) >= request.output_wanted:
                over.append(request)
            else:
                request.advance(1, [] if result.next_token is None else [result.next_token])
                self._queues.go_on(request, now)
        for request in over:
            self._gate.release_cache(request)
            self._finish(request, served.time)
        kept = [request.task for request in over if request.output_wanted]
        if kept:
            self._send_stage(0, m.Forget(kept))

    def _finish(self, request: NodeRequest, time: float) -> None:
        assert request.first_token is not None and request.versions is not None, "finished by a batch"
        done = m.RequestDone(
            task=request.task,
            node=self._node,
            first_token=request.first_token,
            finished=time,
            nll=request.nll,
            scored=request.scored,
            output=request.output,
            versions=request.versions,
        )
        self._reports.ended(request.task)
        self._tell(done)
