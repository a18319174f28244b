"""A run's attempts, and a run that takes up its training state, go on in the same training data."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData
from lemix_hpc.records.journal import GroupCut, Stepped
from lemix_hpc.run_setup.data_memory import DATA, changed, recall_data
from lemix_hpc.run_setup.training_feed import BEGINNING, TextStart, TrainingFeed
from lemix_hpc.workload import data_identity
from lemix_hpc.workload.data_identity import DataIdentity
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.training import MicroBatchStream
from tests.runtime.scheduler.test_resume import Run


def write(path: Path, lines: int = 40, word: str = "word") -> Path:
    path.write_text("".join(json.dumps({"text": f"{word} {n} and others"}) + "\n" for n in range(lines)))
    return path


def stream(path: Path, seed: int = 0, length: int = 16) -> MicroBatchStream:
    training = Training(data=TextData(path=path), sequence_length=length, micro_batch_size=2)
    return MicroBatchStream(training, ByteTokenizer(), seed)


def identity(path: Path, seed: int = 0, length: int = 16) -> DataIdentity:
    found = stream(path, seed, length).identity()
    assert found is not None
    return found


def feed(text: MicroBatchStream) -> TrainingFeed:
    numbers = itertools.count()
    return TrainingFeed(text, per_group=2, total=None, number=lambda: next(numbers))


def tokens(source: TrainingFeed, groups: int) -> list[bytes]:
    """Of the micro-batches of the next groups."""
    found = [source.next_group() for _ in range(groups)]
    return [batch.tokens for group in found if group is not None for batch in group.micro_batches]


def test_data_that_change_between_attempts_are_told(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl")
    run = tmp_path / "run"
    run.mkdir()
    assert recall_data(run, identity(data), None) == recall_data(run, identity(data), None)
    assert not changed(run, identity(data))
    write(data, lines=41)
    (warning,) = changed(run, identity(data))
    assert "data.jsonl has other content" in warning and "`lemix resume` it" in warning
    assert recall_data(run, identity(data), None).notices == (warning,)
    assert not changed(run, identity(data)), "told once"
    (warning,) = changed(run, identity(data, length=8))
    assert "cut into micro-batches in another way" in warning


def test_the_same_bytes_elsewhere_are_the_same_data(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl")
    assert identity(one).equals(identity(other)) and not identity(one).equals(identity(one, seed=1))


def test_of_large_files_samples_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", lines=2000)
    monkeypatch.setattr(data_identity, "WHOLE", 1000)
    monkeypatch.setattr(data_identity, "_SAMPLE", 100)
    before = identity(path)
    assert before.equals(identity(path))
    content = path.read_text()
    for line in (0, 1999):
        path.write_text(content.replace(f"word {line} ", f"WORD {line} "))
        assert not before.equals(identity(path))


def test_a_run_goes_on_in_the_data_where_the_run_of_its_checkpoint_stopped(tmp_path: Path) -> None:
    """Behind what is in the weights; what was cut and is not in them comes first."""
    data = write(tmp_path / "data.jsonl")
    (tmp_path / "first").mkdir()
    first = Run(tmp_path / "first")
    source = feed(stream(data))
    recall_data(first.path, identity(data), None)
    groups = [source.next_group() for _ in range(6)]
    cuts = [group.cut for group in groups if group is not None]
    first.attempt(*cuts, *(Stepped(n % 2, (n,), n // 2 + 1, 1.0) for n in range(5)))
    checkpoint = first.checkpoint(2, 1)  # groups 0, 2 of node 0 and 1 of node 1 are in it
    second = tmp_path / "second"
    second.mkdir()
    recalled = recall_data(second, identity(data), checkpoint.path)
    assert recalled.start.micro_batch == 6
    assert "from micro-batch t6 on, where step-00000003 of" in recalled.notices[0]
    later = feed(stream(data))
    later.go_on([], [], (), recalled.start)
    whole = tokens(feed(stream(data)), 8)
    assert tokens(later, 5) == whole[6:16]
    group = feed(stream(data))
    group.go_on([], [], (), recalled.start)
    found = group.next_group()
    assert found is not None and (found.number, found.ids) == (0, ("t6", "t7"))
    # Its own attempts know it too, and what was never begun is passed on.
    assert recall_data(second, identity(data), checkpoint.path).start == recalled.start
    third = Run(second)
    third.attempt()
    resumed = tmp_path / "third"
    resumed.mkdir()
    assert recall_data(resumed, identity(data), third.checkpoint(0, 0).path).start == recalled.start


@pytest.mark.parametrize("missing", ["data", "memory", "run"])
def test_with_other_data_it_begins_at_the_beginning(missing: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl")
    (tmp_path / "first").mkdir()
    first = Run(tmp_path / "first")
    recall_data(first.path, identity(data), None)
    first.attempt(GroupCut(0, ("t0",), (64,), (0, 0), ()), Stepped(0, (0,), 1, 1.0))
    path = first.checkpoint(1, 0).path
    if missing == "data":
        write(data, word="other")
    elif missing == "memory":
        (first.path / DATA).unlink()
    else:
        path = path.rename(tmp_path / "step-00000001")
    second = tmp_path / "second"
    second.mkdir()
    recalled = recall_data(second, identity(data), path)
    assert recalled.start == BEGINNING and "from their beginning" in recalled.notices[0]


def test_a_text_that_begins_later_goes_on_over_attempts(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl")
    start = TextStart(5, (0, 0))
    first = feed(stream(data))
    first.go_on([], [], (), start)
    cuts = [group.cut for group in (first.next_group() for _ in range(3)) if group is not None]
    again = feed(stream(data))
    again.go_on(cuts, [0], (), start)
    assert tokens(again, 3) == tokens(feed(stream(data)), 7)[7:13]
