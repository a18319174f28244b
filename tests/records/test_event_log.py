import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.events import (
    AnswerPassed,
    BatchMeasured,
    Event,
    GroupOffered,
    PassMeasured,
    RequestArrived,
    StageFinished,
    TaskFinished,
    Tick,
    TrainingClosed,
)
from lemix_hpc.policy.latency import Shape
from lemix_hpc.records.event_log import EVENTS, EventLines, encode, read_events

TOLD: list[Event] = [
    RequestArrived(0.1 + 0.2, 0, 12, 3),
    GroupOffered(0.5, 0, (1, 2), 4, (64, 32)),
    StageFinished(1 / 3, 1, 0, 0, 1e-9, 0.3),
    AnswerPassed(1 / 3, 1, 0, (1e-9, 0.1), (0.3, 0.4)),
    TaskFinished(2.0, 1, 0, output=3),
    PassMeasured(2.5, 1, 0, "forward", Shape.of((12, 1)), 0.0123456789),
    BatchMeasured(2.5, 1, Shape.of((12, 1), (0, 40)), (0.0123456789, 1 / 3)),
    Tick(3.0),
    TrainingClosed(4.0),
]


def write(directory: Path, lines: list[bytes]) -> Path:
    (directory / EVENTS).write_bytes(b"".join(lines))
    return directory


def test_events_read_back_as_they_were_told_to_the_last_bit(tmp_path: Path) -> None:
    assert list(read_events(write(tmp_path, [encode(event) for event in TOLD]))) == TOLD


numbers = st.integers(0, 2)
times = numbers.map(float)
passes = st.builds(StageFinished, times, numbers, numbers, numbers, times, times, st.booleans())


@given(st.lists(st.one_of(passes, st.builds(Tick, numbers.map(float)))))
def test_events_of_one_pass_are_one_line_and_read_back_in_order(told: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as name:
        written: list[bytes] = []
        lines = EventLines(written.append)
        for event in told:
            lines.add(event)
        lines.end()
        assert list(read_events(write(Path(name), written))) == told


def test_a_batch_is_one_line() -> None:
    written: list[bytes] = []
    lines = EventLines(written.append)
    for task in range(3):
        lines.add(StageFinished(2.0, 0, 1, task, 0.5, 1.5))
    lines.end()
    assert written == [
        b'{"PassFinished":{"time":2.0,"node":0,"stage":1,"end":1.5,"tasks":[0,1,2],"starts":[0.5,0.5,0.5]}}\n'
    ]


def test_of_earlier_versions_only_the_last_passes_are_told(tmp_path: Path) -> None:
    one = b'{"StageFinished":{"time":2.0,"node":0,"stage":1,"task":%d,"start":0.5,"end":1.5,"backward":false,"last":%s}}\n'
    batch = b'{"PassFinished":{"time":2.0,"node":0,"stage":1,"end":1.5,"tasks":[0,1,2],"starts":[0.5,0.5,0.5],"last":[1]}}\n'
    events = read_events(write(tmp_path, [one % (4, b"false"), batch, one % (5, b"true")]))
    assert list(events) == [StageFinished(2.0, 0, 1, task, 0.5, 1.5) for task in (1, 5)]


def test_events_say_in_plain_text_what_they_are() -> None:
    assert encode(TOLD[4]) == b'{"TaskFinished":{"time":2.0,"node":1,"task":0,"output":3}}\n'


@pytest.mark.parametrize(
    "line",
    [
        b'{"TaskFinished":{"time":2.0,"no\n',
        b'{"Unheard":{"time":2.0}}\n',
        b"{}\n",
        b"[]\n",
        b'{"Tick":{}}\n',
        b"\xff\n",
        b"\n",
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    events = read_events(write(tmp_path, [encode(TOLD[0]), line]))
    assert next(events) == TOLD[0]
    with pytest.raises(UserError, match=r"events\.jsonl, line 2: expected one event"):
        next(events)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"events\.jsonl is missing"):
        next(read_events(tmp_path))


def test_a_line_that_was_cut_off_ends_the_log(tmp_path: Path) -> None:
    events = read_events(write(tmp_path, [encode(TOLD[0]), b'{"TaskFinished":{"time":2.0,"no']))
    assert list(events) == [TOLD[0]]
