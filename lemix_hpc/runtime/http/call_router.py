"""The scheduler loop's side of HTTP: calls to the nodes and their answers back, with an eye on the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lemix_hpc.policy.events import Place
from lemix_hpc.records.schema import Outcome
from lemix_hpc.runtime.http.batch_results import BatchResults
from lemix_hpc.runtime.http.call import Client, ResponsePart
from lemix_hpc.runtime.http.errors import closing, cut_short, no_answer
from lemix_hpc.runtime.http.metrics import Figures
from lemix_hpc.runtime.http.server import HttpServer
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.tasks import ApiCall, Request


@dataclass(slots=True)
class _UnderWay:
    """`status` of its answer, 0 before that has begun. `over`: the client has all it will get. `gone`: it has hung up."""

    client: Client
    node: int
    status: int = 0
    over: bool = False
    gone: bool = False


class CallRouter:
    """Calls from their arrival until the node has no more to do with them. Without a `server` and `results` there are none.

    `timeout`: seconds without a sign of life of a call (for an unhurried client, of any call on its node), after which the
    client is told so; the node has as long again to end it, or the run fails. `end`: when the server closes [s].
    """

    def __init__(
        self,
        layout: Layout,
        mailbox: Mailbox,
        number: Callable[[], int],
        timeout: float,
        *,
        server: HttpServer | None = None,
        end: float = math.inf,
        results: BatchResults | None = None,
    ) -> None:
        self._layout = layout
        self._mailbox = mailbox
        self._number = number
        self._timeout = timeout
        self._server = server
        self._results = results
        self._waiting: dict[int, Client] = {}
        self._calls: dict[int, _UnderWay] = {}
        # In the order of the last sign of life.
        self._heard: dict[int, float] = {}
        self._node_heard = [0.0] * layout.nodes
        self.end = end
        self.closed = server is None
        self.figures = Figures()
        """What those who ask are shown; replaced as a whole."""

    @property
    def idle(self) -> bool:
        """No call is under way, and none will come."""
        return self.closed and not self._calls

    @property
    def due(self) -> float:
        """When to look at the time again [s], inf if there is no need."""
        silent = next(iter(self._heard.values()), math.inf) + self._timeout
        return silent if self.closed else min(silent, self.end)

    def arrivals(self, now: float) -> Iterator[tuple[Request, Client]]:
        """Requests that have come from clients. What generates nothing goes straight to its node."""
        self._look_at_time(now)
        if self._server is None:
            return
        if not self.closed and now >= self.end:
            self._server.stop_accepting()
            self.closed = True
        for call in self._server.poll():
            if call.gone:
                self._hang_up(call.number, now)
            elif call.lengths is not None:
                yield Request(call.id, call.arrived, *call.lengths, call=call.api, service=call.service), call
            else:
                number = call.number = self._number()
                self._send(number, call.node, now, call.api, call, now, answer=0, patient=False)

    def expect(self, number: int, request: Request, client: Client | None) -> None:
        """A request has become a task. A line of a batch is its own client."""
        if client is None:
            assert self._results is not None, "calls without a client are from a batch"
            client = self._results.client(request.id)
        client.number = number
        self._waiting[number] = client

    def place(self, place: Place, call: ApiCall, now: float, *, answer: int, patient: bool) -> None:
        """The policy sends a call to a node. `answer`: tokens of each of its answers; `patient`: it is of class batch."""
        client = self._waiting.pop(place.task)
        self._send(place.task, place.node, place.key, call, client, now, answer=answer, patient=patient)

    def refuse(self, number: int) -> None:
        """The policy refuses a call: the allocation ends."""
        self._waiting.pop(number).fail(closing())

    def may_wait(self, number: int) -> bool:
        """Whether nobody would miss the answer to a call before the next attempt gives it."""
        call = self._calls.get(number)
        return call is None or call.client.patient

    def withdrawn(self, number: int) -> None:
        """A node has not begun a call, and will not."""
        self._calls.pop(number)
        self._heard.pop(number)

    def cut(self) -> None:
        """The run ends now: tell the clients that still wait."""
        for call in self._calls.values():
            if not call.over and not call.client.patient:
                call.over = True
                call.client.fail(closing())

    def ended(self, request: str) -> int:
        """A request has its outcome. Returns how many lines `results.jsonl` has with it."""
        return 0 if self._results is None else self._results.ended(request)

    def carries(self, number: int) -> bool:
        """Whether a task is a call that is with a node."""
        return number in self._calls

    def parts(self, parts: Sequence[m.HttpPart], now: float) -> None:
        """Pieces of answers have come."""
        for part in parts:
            call = self._calls[part.task]
            self._node_heard[call.node] = now
            self._wait_from(part.task, now)
            if call.over:
                continue
            call.status = call.status or part.status
            call.over = not part.more
            call.client.part(ResponsePart(part.status, part.headers, part.body, part.more))

    def heard(self, node: int, tasks: Sequence[int], now: float) -> None:
        """A node has done something for these tasks, as far as they are calls."""
        if not self._calls:
            return
        for number in tasks:
            if number in self._calls:
                self._node_heard[node] = now
                self._wait_from(number, now)

    def done(self, number: int) -> Outcome:
        """A node has no more to do with a call: what became of it."""
        call = self._calls.pop(number)
        self._heard.pop(number)
        if call.gone:
            return "aborted"
        if not call.over:
            call.client.fail(cut_short())
        return "rejected" if call.status >= 400 else "finished" if call.over and call.status else "lost"

    def _send(
        self,
        number: int,
        node: int,
        key: float,
        call: ApiCall,
        client: Client,
        now: float,
        *,
        answer: int,
        patient: bool,
    ) -> None:
        self._calls[number] = _UnderWay(client, node)
        self._heard[number] = now
        message = m.HttpCall(number, call.method, call.path, list(call.headers), call.body, key, patient, answer)
        self._mailbox.send(self._layout.leader(node), Inbox.LEADER, message)

    def _hang_up(self, number: int | None, now: float) -> None:
        """A client has gone; perhaps before its call was let in, or after it had its answer."""
        call = self._calls.get(number) if number is not None else None
        if number is not None and call is not None and not call.over:
            call.gone = True
            self._give_up(number, call, now)

    def _give_up(self, number: int, call: _UnderWay, now: float) -> None:
        call.over = True
        self._wait_from(number, now)
        self._mailbox.send(self._layout.leader(call.node), Inbox.LEADER, m.HttpAbort(number))

    def _wait_from(self, number: int, now: float) -> None:
        self._heard.pop(number)
        self._heard[number] = now

    def _look_at_time(self, now: float) -> None:
        while self._heard:
            number, since = next(iter(self._heard.items()))
            if now - since < self._timeout:
                return
            call = self._calls[number]
            if call.over:
                raise RuntimeError(
                    f"node {call.node} has not ended a call within {self._timeout:g} s of its answer or abort"
                )
            if call.client.unhurried and now - self._node_heard[call.node] < self._timeout:
                self._wait_from(number, now)
                continue
            call.status = 0
            call.client.fail(no_answer(self._timeout))
            self._give_up(number, call, now)
