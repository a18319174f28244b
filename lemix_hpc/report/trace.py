"""The work and the decisions of a run as a trace that Perfetto and Chrome open: JSON in the trace event format.

See "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. Times in it are
microseconds since the start of the run.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from lemix_hpc.records.reader import Records
from lemix_hpc.records.schema import ServedTask, Stretch, TrainedTask
from lemix_hpc.report.recent import in_order

Event = dict[str, Any]
SCHEDULER = 1
DECISIONS = 1
"""The thread of the scheduler's process that shows its decisions."""
_ROWS = 8
"""Threads that a stage may have, at most."""
_THREADS = 10_000
"""More than a process has."""


def write_trace(run: Records, path: Path, name: str) -> int:
    """Write the trace of a run called `name`, compressed if `path` ends in .gz; the number of its events.

    Records are read one by one and not kept. The file is there only once it is whole. Raises OSError, and UserError for broken
    records.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                    count = _write(run, cast(BinaryIO, packed), name)
            else:
                count = _write(run, raw, name)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _write(run: Records, file: BinaryIO, name: str) -> int:
    encoder = msgspec.json.Encoder()
    about = {"run": name, "policy": run.facts.policy, "engine": run.facts.engine, "spans": run.facts.spans}
    file.write(b'{"displayTimeUnit":"ms","otherData":' + encoder.encode(about) + b',"traceEvents":[\n')
    count = 0
    for count, event in enumerate(trace_events(run), start=1):
        file.write((b",\n" if count > 1 else b"") + encoder.encode(event))
    file.write(b"\n]}\n")
    return count


def trace_events(run: Records) -> Iterator[Event]:
    """First what happened to each task, then the work of all stages, each read once."""
    yield from _process(SCHEDULER, "scheduler")
    yield _named("thread_name", SCHEDULER, DECISIONS, "decisions")
    for task in run.tasks():
        yield from _request(task) if isinstance(task, ServedTask) else _micro_batch(task)
    yield from _work(in_order(run.stretches()))


def _request(task: ServedTask) -> Iterator[Event]:
    """What was decided, and its life on its node: from its arrival to its end, and in it to its first token."""
    if task.placed is None or task.node is None:
        at = task.arrival if task.finished is None else task.finished
        yield _decision("request " + task.outcome, at, {"task": task.id, "prompt_tokens": task.prompt_tokens})
        return
    facts = {
        "task": task.id,
        "node": task.node,
        "class": task.service,
        "prompt_tokens": task.prompt_tokens,
        "waited_ms": _ms(task.placed - task.arrival),
        "predicted_response_ms": _ms(task.predicted_response_s),
        "predicted_ttft_ms": _ms(task.predicted_ttft_s),
        "predicted_tpot_ms": _ms(task.predicted_tpot_s),
    }
    yield _decision("place request", task.placed, {key: value for key, value in facts.items() if value is not None})
    if task.finished is None:
        return
    end = {"outcome": task.outcome, "output_tokens": len(task.output), "versions": task.versions}
    yield _phase("b", task, task.node, "request", task.arrival, {"task": task.id})
    if task.first_token is not None and task.arrival <= task.first_token <= task.finished:
        yield _phase("n", task, task.node, "first token", task.first_token, {})
    yield _phase("e", task, task.node, "request", task.finished, end)


def _phase(phase: str, task: ServedTask, node: int, name: str, at: float, args: Event) -> Event:
    where = {"ts": _us(at), "pid": _pid(node), "tid": _tid(_pid(node), 0)}
    return {"name": name, "cat": "request", "ph": phase, "id": task.id, **where, "args": args}


def _micro_batch(task: TrainedTask) -> Iterator[Event]:
    if task.placed is None or task.node is None:
        yield _decision("training " + task.outcome, task.eligible, {"task": task.id})
        return
    held = _ms(task.placed - task.eligible)
    yield _decision("place training", task.placed, {"task": task.id, "node": task.node, "held_ms": held})


def _decision(name: str, at: float, args: Event) -> Event:
    where = {"ts": _us(at), "pid": SCHEDULER, "tid": _tid(SCHEDULER, DECISIONS)}
    return {"name": name, "cat": "decision", "ph": "i", "s": "t", **where, "args": args}


def _work(stretches: Iterable[Stretch]) -> Iterator[Event]:
    """A thread for each stage. What runs there beside other work, such as a pass on a GPU's second stream, has one more."""
    until: dict[tuple[int, int], list[float]] = {}
    nodes: set[int] = set()
    for stretch in stretches:
        if stretch.node not in nodes:
            nodes.add(stretch.node)
            yield from _process(_pid(stretch.node), f"node {stretch.node}")
        start, end = _us(stretch.start), _us(stretch.end)
        ends = until.setdefault((stretch.node, stretch.stage), [])
        row = next((row for row, free in enumerate(ends) if free <= start), min(len(ends), _ROWS - 1))
        thread = 1 + stretch.stage * _ROWS + row
        if row == len(ends):
            ends.append(end)
            title = f"stage {stretch.stage}" + (f", beside it {row}" if row else "")
            yield _named("thread_name", _pid(stretch.node), thread, title)
            yield _sorted("thread_sort_index", _pid(stretch.node), thread, thread)
        ends[row] = end
        yield _complete(stretch, thread, start, end)


def _complete(stretch: Stretch, thread: int, start: float, end: float) -> Event:
    args: Event = {"version": stretch.version}
    if stretch.batch >= 0:
        args["batch"] = stretch.batch
    if len(stretch.members) == 1:
        args["task"] = stretch.members[0]
    elif stretch.members:
        args |= {"requests": len(stretch.members), "tasks": stretch.members}
    where = {"pid": _pid(stretch.node), "tid": _tid(_pid(stretch.node), thread)}
    times = {"ts": start, "dur": round(max(0.0, end - start), 3)}
    return {"name": stretch.kind, "cat": "work", "ph": "X", **times, **where, "args": args}


def _process(pid: int, name: str) -> Iterator[Event]:
    yield _named("process_name", pid, 0, name)
    yield _sorted("process_sort_index", pid, 0, pid)


def _named(what: str, pid: int, thread: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": _tid(pid, thread), "args": {"name": name}}


def _sorted(what: str, pid: int, thread: int, index: int) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": _tid(pid, thread), "args": {"sort_index": index}}


def _pid(node: int) -> int:
    return SCHEDULER + 1 + node


def _tid(pid: int, thread: int) -> int:
    """Threads have numbers of their own over all processes, as the kernel's have."""
    return pid * _THREADS + thread


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)
