"""A run directory as the runtime writes it, from records or ready made."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from lemix_hpc.records.schema import RunFacts, ServedTask, Span, TaskRecord, TrainedTask
from lemix_hpc.records.stretches import stretches_of
from lemix_hpc.records.writer import Recorder

# Time limits per example would fail on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

RunBuilder = Callable[[RunFacts, Sequence[Span], Sequence[TaskRecord]], Path]

# One node of two stages. Requests a and b share batch 1, request c is batch 2 and generates three tokens, d is rejected.
# Micro-batch m goes forward and backward, and one step follows; T0 is 0.5 s.
EXAMPLE_FACTS = RunFacts("least-completion", "emulated", 1, 2, [1, 5, 10], 0.5, 10.0, 1)
EXAMPLE_SPANS = (
    Span(0, 0, "a", "serve", 1.0, 1.5, 0, 1),
    Span(0, 0, "b", "serve", 1.0, 1.5, 0, 1),
    Span(0, 1, "a", "serve", 1.5, 2.0, 0, 1),
    Span(0, 1, "b", "serve", 1.5, 2.0, 0, 1),
    Span(0, 0, "m", "forward", 2.0, 3.0, 0),
    Span(0, 1, "m", "forward", 3.0, 4.0, 0),
    Span(0, 1, "m", "backward", 4.0, 6.0, 0),
    Span(0, 0, "m", "backward", 6.0, 8.0, 0),
    Span(0, 0, "", "step", 8.0, 8.5, 0),
    Span(0, 1, "", "step", 8.0, 8.5, 0),
    Span(0, 0, "c", "serve", 8.5, 8.75, 1, 2),
    Span(0, 1, "c", "serve", 8.75, 9.0, 1, 2),
)
EXAMPLE_TASKS = (
    ServedTask("a", "finished", 1.0, 10, 0, 1.0, 2.0, 2.0, 30.0, 9, [], (0, 0), 1.25),
    ServedTask("b", "finished", 0.5, 20, 0, 0.5, 2.0, 2.0, 28.0, 20, [], (0, 0), 1.0),
    ServedTask("c", "finished", 6.0, 5, 0, 6.0, 8.5, 9.0, None, 0, [7, 8, 9], (1, 1)),
    ServedTask("d", "rejected", 3.0, 9000),
    TrainedTask("m", "finished", 1.5, 260, 0, 2.0, 8.5, 3.5, 1),
)


@pytest.fixture
def write_run(tmp_path: Path) -> RunBuilder:
    """Write records to a run directory, with the writer that runs use, and return the directory."""

    def write(facts: RunFacts, spans: Sequence[Span] = (), tasks: Sequence[TaskRecord] = ()) -> Path:
        recorder = Recorder(tmp_path)
        for stretch in stretches_of(spans):
            recorder.work(stretch)
        for task in tasks:
            if isinstance(task, ServedTask):
                recorder.request(task)
            else:
                recorder.micro_batch(task)
        recorder.facts(facts)
        recorder.close()
        return tmp_path

    return write


@pytest.fixture
def example_run(write_run: RunBuilder) -> Path:
    """The run directory of the example above."""
    return write_run(EXAMPLE_FACTS, EXAMPLE_SPANS, EXAMPLE_TASKS)


@pytest.fixture
def empty_run(write_run: RunBuilder) -> Path:
    """A run in which nothing happened."""
    return write_run(EXAMPLE_FACTS, (), ())
