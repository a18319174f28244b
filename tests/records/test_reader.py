import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.reader import read_run, stream_run
from lemix_hpc.records.schema import Span
from lemix_hpc.records.stretches import merged, spans_of, stretches_of
from lemix_hpc.report.build import summarise
from tests.records.conftest import EXAMPLE_SPANS


def test_reads_what_the_run_wrote(example_run: Path) -> None:
    run = read_run(example_run)
    assert len(run.spans) == 12
    assert [task.id for task in run.served] == ["a", "b", "c", "d"]
    assert [task.id for task in run.trained] == ["m"]
    assert run.facts.policy == "least-completion"


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        read_run(tmp_path / "absent")


@pytest.mark.parametrize("name", ["facts.json", "spans.jsonl", "tasks.jsonl"])
def test_a_missing_file_is_named(example_run: Path, name: str) -> None:
    (example_run / name).unlink()
    with pytest.raises(UserError, match=f"{re.escape(name)} is missing"):
        read_run(example_run)


@pytest.mark.parametrize("name", ["spans.jsonl", "tasks.jsonl"])
@pytest.mark.parametrize("broken", [b'{"node": 0, "sta', b"", b'{"node": "zero"}', b'"\xff"'])
def test_a_broken_line_is_numbered(example_run: Path, name: str, broken: bytes) -> None:
    path = example_run / name
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], broken, *lines[2:]]) + b"\n")
    with pytest.raises(UserError, match=f"{re.escape(name)}, line 3: "):
        read_run(example_run)


def test_broken_facts(example_run: Path) -> None:
    (example_run / "facts.json").write_text('{"policy": "pack"}')
    with pytest.raises(UserError, match=r"facts\.json does not hold the facts .*engine"):
        read_run(example_run)


def test_a_finished_task_needs_its_time(example_run: Path) -> None:
    with (example_run / "tasks.jsonl").open("a") as file:
        file.write('{"kind":"serving","id":"q","outcome":"finished","arrival":0.0,"prompt_tokens":1}\n')
    with pytest.raises(UserError, match=r"line 6: .*'q' is finished but has no time"):
        read_run(example_run)


def test_spans_of_earlier_versions_are_one_line_for_each_request(example_run: Path) -> None:
    new = (example_run / "spans.jsonl").read_bytes()
    (example_run / "spans.jsonl").write_bytes(b"".join(msgspec.json.encode(span) + b"\n" for span in EXAMPLE_SPANS))
    old = (example_run / "spans.jsonl").read_bytes()
    assert (old.count(b"\n"), new.count(b"\n")) == (12, 10), "two batches of two requests"
    assert read_run(example_run).spans == list(EXAMPLE_SPANS)
    report = summarise(stream_run(example_run))
    (example_run / "spans.jsonl").write_bytes(new)
    assert read_run(example_run).spans == list(EXAMPLE_SPANS)
    assert summarise(stream_run(example_run)) == summarise(read_run(example_run)) == report


_names = st.sampled_from(["a", "b", "c"])
_spans = st.builds(
    lambda stage, task, start, batch: Span(
        0, stage, task, "serve" if batch else "forward", start, start + 1.0, 3, batch or -1
    ),
    st.integers(0, 1),
    _names,
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 2),
)


@given(st.lists(_spans))
def test_no_span_is_lost_in_stretches_of_work(spans: list[Span]) -> None:
    found = list(stretches_of(spans))
    assert [span for stretch in found for span in spans_of(stretch)] == spans
    assert list(merged(found)) == found
