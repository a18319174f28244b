from pathlib import Path

import msgspec

from lemix_hpc.records.schema import Progress, ServedTask, Stretch, TaskRecord, TrainedTask
from lemix_hpc.records.writer import Recorder


def test_records_read_back_as_they_were_written(tmp_path: Path) -> None:
    work = Stretch(0, 1, "serve", 0.5, 0.75, 3, 9, tasks=("r0", "r1"))
    tasks: list[TaskRecord] = [
        ServedTask("r0", "finished", 0.1, 12, nll=3.5, scored_tokens=11, versions=(1, 3)),
        TrainedTask("t0", "finished", 0.0, 128, loss=2.5),
    ]
    recorder = Recorder(tmp_path)
    recorder.work(work)
    for task in tasks:
        if isinstance(task, ServedTask):
            recorder.request(task)
        else:
            recorder.micro_batch(task)
    recorder.progress(Progress("running", served=1))
    assert msgspec.json.decode((tmp_path / "spans.jsonl").read_bytes(), type=Stretch) == work
    lines = (tmp_path / "tasks.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=TaskRecord) for line in lines] == tasks
    assert msgspec.json.decode((tmp_path / "progress.json").read_bytes(), type=Progress).served == 1
    recorder.close()
