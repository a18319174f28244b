"""Traces that Perfetto and Chrome open."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.reader import stream_run
from lemix_hpc.records.schema import RunFacts, ServedTask, Span, TrainedTask
from lemix_hpc.report.trace import write_trace
from tests.records.conftest import EXAMPLE_FACTS

RunBuilder = Callable[..., Path]
SCHEMA = json.loads(Path(__file__).with_name("trace_event_format.json").read_text())


def traced(run_dir: Path, name: str = "trace.json") -> list[dict[str, Any]]:
    """The events of a run's trace, which keeps to the format."""
    path = run_dir / name
    count = write_trace(stream_run(run_dir), path, "run")
    trace = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    errors = [error.message for error in Draft202012Validator(SCHEMA).iter_errors(trace)]
    assert errors == []
    events: list[dict[str, Any]] = trace["traceEvents"]
    assert len(events) == count
    _threads_hold_one_thing_at_a_time(events)
    _lives_have_a_beginning_and_an_end(events)
    return events


def _threads_hold_one_thing_at_a_time(events: list[dict[str, Any]]) -> None:
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    until: dict[tuple[int, int], float] = defaultdict(float)
    for event in events:
        if event["ph"] == "X":
            thread = event["pid"], event["tid"]
            assert thread in named
            assert event["ts"] >= until[thread] - 1e-6
            until[thread] = event["ts"] + event["dur"]


def _lives_have_a_beginning_and_an_end(events: list[dict[str, Any]]) -> None:
    lives: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] in "bne":
            lives[event["id"]].append((event["ph"], event["ts"]))
    for life in lives.values():
        assert (life[0][0], life[-1][0]) == ("b", "e")
        assert [at for _, at in life] == sorted(at for _, at in life)


def of(events: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [event for event in events if all(event.get(key) == value for key, value in wanted.items())]


def threads(events: list[dict[str, Any]]) -> list[str]:
    """The names of a node's, in the order in which they are shown."""
    names = {event["tid"]: event["args"]["name"] for event in of(events, name="thread_name") if event["pid"] > 1}
    order = {event["tid"]: event["args"]["sort_index"] for event in of(events, name="thread_sort_index")}
    return [names[tid] for tid in sorted(names, key=lambda tid: order[tid])]


def test_work_and_decisions_of_the_example(example_run: Path) -> None:
    events = traced(example_run)
    first, *_ = of(events, ph="X")
    assert (first["name"], first["ts"], first["dur"]) == ("serve", 1e6, 0.5e6)
    assert first["args"] == {"version": 0, "batch": 1, "requests": 2, "tasks": ["a", "b"]}
    assert [event["name"] for event in of(events, ph="X", tid=first["tid"])] == [
        *("serve", "forward", "backward", "step", "serve")
    ]
    assert threads(events) == ["stage 0", "stage 1"]
    assert [event["args"]["name"] for event in of(events, name="process_name")] == ["scheduler", "node 0"]
    placed, *_ = of(events, name="place request")
    assert placed["args"] == {
        "task": "a",
        "node": 0,
        "class": "interactive",
        "prompt_tokens": 10,
        "waited_ms": 0.0,
        "predicted_response_ms": 1250.0,
    }
    (held,) = of(events, name="place training")
    assert held["ts"] == 2e6 and held["args"]["held_ms"] == 500.0
    (refused,) = of(events, name="request rejected")
    assert refused["ts"] == 3e6
    life = [(event["ph"], event["ts"]) for event in of(events, id="c")]
    assert life == [("b", 6e6), ("n", 8.5e6), ("e", 9e6)]


def test_a_compressed_trace_is_the_same(example_run: Path) -> None:
    assert traced(example_run, "trace.json.gz") == traced(example_run)


def test_a_run_without_work_has_a_trace(empty_run: Path) -> None:
    assert [event["ph"] for event in traced(empty_run)] == ["M", "M", "M"]


def test_work_beside_other_work_has_a_thread_of_its_own(write_run: RunBuilder) -> None:
    """On a GPU training has a stream of its own, and a save goes on beside everything."""
    spans = [
        Span(1, 0, "m", "forward", 0.0, 4.0, 0),
        Span(1, 0, "a", "serve", 1.0, 2.0, 0, 1),
        Span(1, 0, "", "save", 1.5, 6.0, 0),
        Span(1, 0, "b", "serve", 2.0, 3.0, 0, 2),
        Span(1, 1, "b", "serve", 3.0, 4.0, 0, 2),
    ]
    events = traced(write_run(EXAMPLE_FACTS, spans, ()))
    assert threads(events) == ["stage 0", "stage 0, beside it 1", "stage 0, beside it 2", "stage 1"]


def test_tasks_that_came_to_nothing(write_run: RunBuilder) -> None:
    tasks = [
        ServedTask("lost", "lost", 1.0, 10, 0, 1.0),
        ServedTask("aborted", "aborted", 1.0, 10, 0, 1.0, None, 2.0),
        TrainedTask("refused", "rejected", 1.0, 10),
    ]
    events = traced(write_run(EXAMPLE_FACTS, (), tasks))
    assert [event["name"] for event in of(events, ph="i")] == ["place request", "place request", "training rejected"]
    assert {event["id"] for event in of(events, ph="b")} == {"aborted"}


def test_a_broken_record_leaves_no_trace(write_run: RunBuilder) -> None:
    run = write_run(RunFacts("pack", "torch", 1, 1, [1.0], 0.1, 3.0, 0))
    (run / "spans.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match=r"spans\.jsonl, line 1"):
        write_trace(stream_run(run), run / "trace.json", "run")
    assert not list(run.glob("trace.json*"))
