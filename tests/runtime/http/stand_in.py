"""Ranks of a run whose nodes only pretend: `mpiexec -n N python -m mpi4py stand_in.py RUN_DIR`.

Everything at the scheduler's rank is the product's own. Each node's leader answers calls over the real mailboxes, and
pretends to train at once. What a prompt says decides what happens to it: see `Node._generate`.
"""

import json
import math
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from mpi4py import MPI

from lemix_hpc.checkpoints.manifest import SavedFile
from lemix_hpc.checkpoints.resumption import NodeStart
from lemix_hpc.checkpoints.stage_state import StageState, file_name, write_state
from lemix_hpc.config.load import load_recipe
from lemix_hpc.policy.latency import Shape
from lemix_hpc.records import journal_writer
from lemix_hpc.records.attempts import claim
from lemix_hpc.runtime.scheduler.drain import Drain
from lemix_hpc.runtime.scheduler.rank import SchedulerRank
from lemix_hpc.runtime.scheduler.resume import take_over
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.idle_wait import Waiter, make_waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout
from lemix_hpc.runtime.transport.run_clock import RunClock, synchronise

JSON = [("content-type", "application/json")]
EVENTS = [("content-type", "text/event-stream; charset=utf-8")]
PACE_S = 0.02
WORDS = ("one ", "two ", "three ", "four ")


class Node:
    """A leader that answers by itself. Answers under way are generators that yield messages, or None to be called again."""

    def __init__(self, layout: Layout, node: int, mailbox: Mailbox, clock: RunClock, version: int) -> None:
        self._layout = layout
        self._node = node
        self._mailbox = mailbox
        self._clock = clock
        self._answers: dict[int, Any] = {}
        self._next = 0.0
        self._version = version
        self._training: deque[Any] = deque()
        self.stopped = False
        for stage in range(-1, layout.stages):
            self._tell(m.EngineReady(node, stage))

    def turn(self) -> bool:
        mails = self._mailbox.poll()
        for mail in mails:
            self._receive(mail.message)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PACE_S
            if self._training:
                self._train(self._training.popleft())
            for task in list(self._answers):
                message = next(self._answers[task])
                if message is not None:
                    self._tell(message)
                if isinstance(message, m.RequestDone):
                    del self._answers[task]
        return bool(mails)

    def until_due(self) -> float:
        return math.inf

    @property
    def finished(self) -> bool:
        return self.stopped and self._mailbox.sent_all

    @property
    def in_transit(self) -> bool:
        return self._mailbox.in_transit

    def _receive(self, message: m.AnyMessage) -> None:
        match message:
            case m.HttpCall() as call:
                self._answers[call.task] = self._answer(call)
            case m.HttpAbort(task):
                print(f"abort of {task}", flush=True)
                if task in self._answers:
                    self._answers[task] = iter([self._done(task, 0)])
            case m.PlaceRequest() as request:
                self._warm_up(request)
            case m.Train(micro_batch):
                self._training.append(micro_batch)
            case m.Go(start_time):
                if self._node:
                    self._clock.start(start_time)
            case m.Withdraw():
                self._tell(m.Withdrawn(self._node, []))
            case m.Stop():
                self.stopped = True
                for stage in range(self._layout.stages):
                    self._mailbox.send(self._layout.worker(self._node, stage), Inbox.STAGE, message)
                    self._tell(m.Stopped(self._node, stage))
            case other:
                raise TypeError(f"not pretended: {other!r}")

    def _warm_up(self, request: m.PlaceRequest) -> None:
        for _ in range(max(1, request.output)):
            times, worked = [self._clock.now()] * self._layout.stages, [0.0] * self._layout.stages
            ran = m.BatchRan(-1, [request.task], [], self._version, Shape.of((1,)), times, times, worked)
            self._tell(m.NodeReport(self._node, [ran]))
        self._tell(self._done(request.task, request.output))

    def _train(self, micro_batch: Any) -> None:
        now, task = self._clock.now(), micro_batch.id
        for kind in ("forward", "backward"):
            self._tell(m.SpanReport([m.WorkSpan(self._node, 0, kind, [task], now, now, self._version, -1, True)]))
        self._tell(m.Loss(task, 2.5))
        if micro_batch.index == micro_batch.group_size - 1:
            self._version += 1
            stepped = m.Stepped(self._node, micro_batch.group, self._version)
            self._tell(stepped)
            for stage in range(self._layout.stages):
                self._mailbox.send(self._layout.worker(self._node, stage), Inbox.STAGE, stepped)

    def _answer(self, call: m.HttpCall) -> Any:
        if call.method == "GET":
            yield from self._facts(call)
            yield self._done(call.task, 0)
            return
        if call.path == "/tokenize":
            yield from self._whole(call.task, 200, {"tokens": [1, 2, 3], "count": 3})
            yield self._done(call.task, 0)
            return
        body = json.loads(call.body)
        yield from self._generate(call, body, body.get("prompt") or body["messages"][-1]["content"])

    def _generate(self, call: m.HttpCall, body: dict[str, Any], prompt: str) -> Any:
        """`bad` is refused, `die` ends without an answer, `never` is never answered, `stall` stops after one piece."""
        if prompt == "bad":
            error = {"message": "no such thing", "type": "BadRequestError", "param": None, "code": 400}
            yield from self._whole(call.task, 400, {"error": error})
            yield self._done(call.task, 0)
            return
        while prompt == "never":
            yield None
        if prompt == "die":
            yield self._done(call.task, 0)
            return
        words = WORDS[: body.get("max_tokens", 4)]
        chat, usage = call.path.startswith("/v1/chat"), {"prompt_tokens": 1, "completion_tokens": len(words)}
        usage["total_tokens"] = 1 + len(words)
        common: dict[str, Any] = {"id": f"cmpl-lemix-{call.task}", "created": 1, "model": "stand-in"}
        # What a test wants to see of the call.
        common["system_fingerprint"] = json.dumps([self._node, call.path, call.headers, call.key])
        if body.get("stream"):
            first = True
            for word in words:
                choice: dict[str, Any] = {"index": 0, "finish_reason": None, "logprobs": None}
                choice |= {"delta": {"content": word}} if chat else {"text": word}
                kind = "chat.completion.chunk" if chat else "text_completion"
                event = json.dumps(common | {"object": kind, "choices": [choice]})
                yield m.HttpPart(call.task, 200 * first, EVENTS if first else [], f"data: {event}\n\n".encode(), True)
                first = False
                while prompt == "stall":
                    yield None
            yield m.HttpPart(call.task, 0, [], b"data: [DONE]\n\n", False)
        else:
            text = "".join(words)
            choice = {"index": 0, "finish_reason": "length", "logprobs": None}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            kind = "chat.completion" if chat else "text_completion"
            yield from self._whole(call.task, 200, common | {"object": kind, "choices": [choice], "usage": usage})
        yield self._done(call.task, len(words))

    def _facts(self, call: m.HttpCall) -> Any:
        if call.path == "/health":
            yield m.HttpPart(call.task, 200, [], b"", False)
        elif call.path == "/metrics":
            text = "# HELP vllm:x Some.\n# TYPE vllm:x gauge\n" + f'vllm:x{{engine="0"}} {self._node}.5\n'
            yield m.HttpPart(call.task, 200, [("content-type", "text/plain")], text.encode(), False)
        else:
            yield from self._whole(call.task, 200, {"object": "list", "data": [{"id": "stand-in", "object": "model"}]})

    def _whole(self, task: int, status: int, content: dict[str, Any]) -> Any:
        yield m.HttpPart(task, status, JSON, json.dumps(content).encode(), False)

    def _done(self, task: int, tokens: int) -> m.RequestDone:
        now = self._clock.now()
        return m.RequestDone(task, self._node, now, now, 0.0, 0, [7] * tokens, (self._version, self._version))

    def _tell(self, message: m.AnyMessage | m.HttpPart) -> None:
        whole = m.HttpParts([message]) if isinstance(message, m.HttpPart) else message
        self._mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, whole)


def save_nothing(layout: Layout, rank: int, mailbox: Mailbox, waiter: Waiter, steps: int) -> None:
    """A stage: it has no weights, and saves that; the first one does for all."""
    node, stopped = layout.node_of(rank), False
    while not (stopped and mailbox.sent_all):
        mails = mailbox.poll()
        for message in (mail.message for mail in mails):
            stopped = stopped or isinstance(message, m.Stop)
            if isinstance(message, m.Stepped):
                steps = message.version
            if isinstance(message, m.SaveNext):
                for stage in range(layout.stages):
                    saved = save(message, node, stage, steps)
                    mailbox.send(SCHEDULER_RANK, Inbox.SCHEDULER, saved)
        if not mails:
            waiter.idle(in_transit=mailbox.in_transit)


def save(order: m.SaveNext, node: int, stage: int, steps: int) -> m.Saved:
    name = file_name(node, stage)
    written = write_state(StageState({}, steps, steps, "float32"), Path(order.directory, name))
    file = SavedFile(name, stage, written.nbytes, written.sha256, 0.0, 0.0)
    return m.Saved(order.number, node, steps, steps, -1, steps, steps, "float32", file, "")


def main(run_dir: Path) -> None:
    # A journal's reserved space that few calls use up, and parts that few fill.
    journal_writer.PART = int(os.environ.get("STAND_IN_PART", journal_writer.PART))
    journal_writer.RESERVE = int(os.environ.get("STAND_IN_RESERVE", journal_writer.RESERVE))
    recipe = load_recipe(run_dir / "recipe.yaml")
    layout = Layout(recipe.nodes.count, recipe.nodes.stages)
    comm = MPI.COMM_WORLD.Dup()
    rank = comm.Get_rank()
    clock = synchronise(comm)
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    bell = hang_doorbell(comm, host)
    waiter = make_waiter(host, bell, "backoff")
    attempt = claim(run_dir) if rank == SCHEDULER_RANK else None
    taken_over = take_over(recipe, attempt) if attempt is not None else None
    starts = comm.bcast(taken_over and taken_over[0].starts, SCHEDULER_RANK)
    start = starts.get(layout.node_of(rank), NodeStart())
    if layout.stage_of(rank) is not None:
        save_nothing(layout, rank, Mailbox(comm, Inbox.STAGE, bell), waiter, start.steps)
        return
    node = Node(layout, layout.node_of(rank), Mailbox(comm, Inbox.LEADER, bell), clock, start.version)
    if attempt is not None and taken_over is not None:
        drain = Drain(run_dir / "stop", recipe.policy.drain_reserve_s)
        signal.signal(signal.SIGTERM, lambda number, _: drain.heard(number))
        mailbox = Mailbox(comm, Inbox.SCHEDULER, bell)
        SchedulerRank(
            recipe, layout, attempt, taken_over[1], mailbox, clock, waiter, node, drain, (0,) * layout.nodes
        ).run()
        return
    while not node.finished:
        if node.turn():
            waiter.reset()
        else:
            waiter.idle(in_transit=node.in_transit)


main(Path(sys.argv[1]))
