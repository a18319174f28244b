"""The node leader: the node's request queue, batches formed per iteration, and the relay of what the stages report."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from lemix_hpc.engines.protocol import ServeBatch, ServeSequence
from lemix_hpc.policy.execution_rules import may_form_batch
from lemix_hpc.policy.pacer import Pacer
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.profiling.coefficients import CoefficientFile
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.runtime.transport.run_clock import RunClock


@dataclass(slots=True)
class _Request:
    """A request on this node. `cached`: tokens whose keys and values the stages keep; `next`: what to compute next, of which
    its batch has taken a `part`."""

    task: int
    key: float
    output_wanted: int
    next_length: int
    next_tokens: list[int]
    arrival: float
    part: int = 0
    cached: int = 0
    output: list[int] = field(default_factory=list)
    nll: float = 0.0
    scored: int = 0
    first_token: float | None = None
    versions: tuple[int, int] | None = None

    @property
    def partial(self) -> bool:
        """Whether more of its prompt follows."""
        return self.part < self.next_length

    @property
    def produced(self) -> int:
        return len(self.output)

    def sequence(self) -> ServeSequence:
        tokens, generate = self.next_tokens[: self.part], self.output_wanted > 0
        return ServeSequence(self.task, self.part, self.cached, generate, tokens, self.partial)

    def advance(self, next_length: int, next_tokens: list[int]) -> None:
        """Its part is computed; what comes next."""
        self.cached += self.part
        self.next_length, self.next_tokens = next_length, next_tokens


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
    ) -> None:
        self._layout = layout
        self._node = node
        self._mailbox = mailbox
        self._clock = clock
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._ready: deque[_Request] = deque()
        self._waiting: list[tuple[float, int, _Request]] = []  # a heap
        self._in_batch: dict[int, dict[int, _Request]] = {}
        self._generating = 0
        self._at_first_stage = 0
        self._batches = 0
        self._running = layout.stages
        self._stopped = False
        self._pacer: Pacer | None = None
        self._due = -math.inf

    def turn(self) -> bool:
        """Take in what arrived and keep the first stage supplied. False when there was nothing to do."""
        mails = self._mailbox.poll()
        for mail in mails:
            self._receive(mail)
        if mails:
            self._look_when_due()
        formed = False
        while self.until_due() <= 0.0:
            members = self._next_members()
            self._at_first_stage += 1
            serve = m.Serve(self._batch(members), -1, min(request.key for request in members))
            self._mailbox.send(self._layout.worker(self._node, 0), Inbox.STAGE, serve)
            self._look_when_due()
            formed = True
        return bool(mails) or formed

    def until_due(self) -> float:
        """Seconds until the next batch is to be formed, inf when none is or may be before something comes."""
        return self._due - self._clock.now() if self._may_form() else math.inf

    def _look_when_due(self) -> None:
        if self._pacer is not None and self._next() is not None:
            self._due = self._pacer.due(self._ready, [request for *_, request in self._waiting])

    def _may_form(self) -> bool:
        request, stages = self._next(), self._layout.stages
        return (
            request is not None
            and not self._stopped
            and may_form_batch(
                request.output_wanted > 0, self._at_first_stage, len(self._in_batch), self._generating, stages
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
            case m.PlaceRequest(task, prompt, output, tokens, key, arrival):
                heapq.heappush(self._waiting, (key, task, _Request(task, key, output, prompt, tokens, arrival)))
            case m.Train() as train:
                self._mailbox.send(self._layout.worker(self._node, 0), Inbox.STAGE, train)
            case m.Served() as served:
                self._served(served)
            case m.SpanReport(spans) as work:
                self._at_first_stage -= sum(s.kind == "serve" and s.stage == 0 and s.complete for s in spans)
                self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, work)
            case (m.EngineReady() | m.Loss() | m.Stepped() | m.RingDone() | m.Saved() | m.Stopped()) as report:
                self._running -= isinstance(report, m.Stopped)
                self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, report)
            case (m.KeepPace() | m.FirstStageIdle()) as message:
                self._keep_pace(message)
            case m.Withdraw(tasks):
                self._withdraw(set(tasks))
            case (m.Go() | m.Stop()) as order:
                self._order(order)
            case other:
                raise TypeError(f"no message for a leader: {other!r}")

    def _keep_pace(self, message: m.KeepPace | m.FirstStageIdle) -> None:
        if isinstance(message, m.KeepPace):
            latency = CoefficientFile.model_validate_json(message.coefficients).latency(self._layout.stages)
            self._pacer = Pacer(Pace(message.ttft, message.tpot), latency)
        elif self._pacer is not None:  # stages tell again when the run starts
            self._pacer.idle_since = message.since

    def _order(self, order: m.Go | m.Stop) -> None:
        if isinstance(order, m.Go):
            self._clock.start(order.start_time)
        # A run that ends early may have left requests here.
        self._stopped = isinstance(order, m.Stop)
        for stage in range(self._layout.stages):
            self._mailbox.send(self._layout.worker(self._node, stage), Inbox.STAGE, order)

    def _withdraw(self, tasks: set[int]) -> None:
        """Let go of those that are in no batch yet."""
        gone = [task for _, task, request in self._waiting if task in tasks and not request.cached]
        self._waiting = [waiting for waiting in self._waiting if waiting[1] not in gone]
        heapq.heapify(self._waiting)
        self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, m.Withdrawn(self._node, gone))

    def _next_members(self) -> list[_Request]:
        """Of the next batch: as many requests as the limits allow, at least one if any is there."""
        members: list[_Request] = []
        tokens, parts = 0, None
        while len(members) < self._max_requests and (request := self._next()):
            request.part = request.next_length
            if self._pacer is not None and not self._ready:
                if parts is None:
                    parts = self._pacer.prompt_parts(members)
                if parts is not None:
                    request.part = parts.take(request)
            tokens += request.part
            if request.part == 0 or (members and tokens > self._max_tokens):
                break
            members.append(self._take())
        return members

    def _batch(self, members: list[_Request]) -> ServeBatch:
        self._batches += 1
        self._in_batch[self._batches] = {request.task: request for request in members}
        self._generating += any(request.output_wanted for request in members)
        return ServeBatch(self._batches, [request.sequence() for request in members], self._temperature)

    def _next(self) -> _Request | None:
        """The request that goes into the next batch first."""
        if self._ready:
            return self._ready[0]
        return self._waiting[0][-1] if self._waiting else None

    def _take(self) -> _Request:
        return self._ready.popleft() if self._ready else heapq.heappop(self._waiting)[-1]

    def _served(self, served: m.Served) -> None:
        members = self._in_batch.pop(served.batch)
        self._generating -= any(request.output_wanted for request in members.values())
        if self._pacer is not None:
            self._pacer.passed(list(members.values()), served.time)
        over: list[_Request] = []
        for result in served.results:
            request = members[result.request]
            request.versions = (request.versions[0] if request.versions else served.version, served.version)
            request.nll += result.nll
            request.scored += result.scored
            if request.partial:
                request.advance(request.next_length - request.part, request.next_tokens[request.part :])
                heapq.heappush(self._waiting, (request.key, request.task, request))
                continue
            request.first_token = served.time if request.first_token is None else request.first_token
            if result.next_token is not None:
                request.output.append(result.next_token)
            if len(request.output) >= request.output_wanted:
                over.append(request)
            else:
                request.advance(1, [] if result.next_token is None else [result.next_token])
                self._ready.append(request)
        for request in over:
            self._finish(request, served.time)
        kept = [request.task for request in over if request.output_wanted]
        if kept:
            self._mailbox.send(self._layout.worker(self._node, 0), Inbox.STAGE, m.Forget(kept))

    def _finish(self, request: _Request, time: float) -> None:
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
        self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, done)
