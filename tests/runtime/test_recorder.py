import math
from pathlib import Path

import msgspec

from lemix_hpc.runtime.recorder import LiveFigures, Recorder
from lemix_hpc.runtime.records import Progress, ServedTask, Span, TaskRecord, TrainedTask


def test_records_read_back_as_they_were_written(tmp_path: Path) -> None:
    span = Span(0, 1, "r0", "serve", 0.5, 0.75, 3, 9)
    tasks: list[TaskRecord] = [
        ServedTask("r0", "finished", 0.1, 12, nll=3.5, scored_tokens=11, versions=(1, 3)),
        TrainedTask("t0", "finished", 0.0, 128, loss=2.5),
    ]
    recorder = Recorder(tmp_path)
    recorder.span(span)
    for task in tasks:
        recorder.task(task)
    recorder.progress(Progress("running", served=1))
    assert msgspec.json.decode((tmp_path / "spans.jsonl").read_bytes(), type=Span) == span
    lines = (tmp_path / "tasks.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=TaskRecord) for line in lines] == tasks
    assert msgspec.json.decode((tmp_path / "progress.json").read_bytes(), type=Progress).served == 1
    recorder.close()


def test_live_figures() -> None:
    live = LiveFigures(nodes=1, stages=2)
    assert live.loss is None
    assert live.response_ms_p50 is None
    live.worked(0, 1, 0.5)
    live.learned(4.0)
    live.learned(math.nan)
    live.learned(2.0)
    for seconds in (0.3, 0.1, 0.2):
        live.responded(seconds)
    assert live.loss == 3.0
    assert live.response_ms_p50 == 200.0
    assert live.look(2.0) == [[0.0, 0.25]]
    assert live.look(3.0) == [[0.0, 0.0]], "each look starts afresh"
