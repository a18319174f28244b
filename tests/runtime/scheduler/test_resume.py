"""What an attempt takes over from those before it, and how it fences them off."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.checkpoints import store
from lemix_hpc.checkpoints.manifest import Manifest, SavedFile, SavedNode
from lemix_hpc.checkpoints.resumption import NodeStart
from lemix_hpc.checkpoints.stage_state import StageState, file_name, write_state
from lemix_hpc.checkpoints.store import Checkpoint
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine, Model, Nodes, Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.records.attempts import Attempt, AttemptEnd, EndReason, claim
from lemix_hpc.records.inheritance import Inheritance
from lemix_hpc.records.journal import Accepted, Ended, GroupCut, Placed, Record, Stepped, Trained
from lemix_hpc.records.schema import ServedTask, TrainedTask
from lemix_hpc.runtime.scheduler.resume import Beginning, arrivals_of, poisonous, remaining, take_over, without
from lemix_hpc.workload.request_stream import RequestStream
from lemix_hpc.workload.tasks import Request
from tests.records.attempt_files import newest_part, write_all
from tests.runtime.conftest import tiny_llama

MODEL = tiny_llama(2)


def recipe(**changes: Any) -> Recipe:
    return Recipe(nodes=Nodes(count=2), model=Model(config=MODEL), training=Training(micro_batches=8)).model_copy(
        update=changes
    )


COMPUTES = recipe()
EMULATED = recipe(engine=Engine(kind="emulated"))


class Run:
    """Attempts one after the other in a run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def attempt(
        self, *records: Record, recipe: Recipe = COMPUTES, end: EndReason | None = None
    ) -> tuple[Attempt, Beginning, Inheritance]:
        """Take over, write these records, and end."""
        attempt = claim(self.path)
        beginning, inherited = take_over(recipe, attempt)
        write_all(attempt, inherited, records)
        if end is not None:
            attempt.end(AttemptEnd(end, "", 0.0))
        return attempt, beginning, inherited

    def checkpoint(self, *versions: int, model: dict[str, Any] = MODEL) -> Checkpoint:
        """Of nodes at these versions, each of which is a step."""
        directory = self.path / "checkpoints"
        unfinished = store.begin(directory, f"{sum(versions)}")
        saved = []
        for node, version in enumerate(versions):
            name = file_name(node, 0)
            written = write_state(StageState({}, version, version, "float32"), unfinished / name)
            file = SavedFile(name, 0, written.nbytes, written.sha256, 0.0, 0.0)
            saved.append(SavedNode(node, version, version, version, version, -1, [file]))
        step, nodes = sum(versions), len(versions)
        manifest = Manifest("r", step, time.time(), None, model, "torch", "float32", "local", nodes, 1, saved)
        return store.complete(unfinished, manifest)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def damage(checkpoint: Checkpoint) -> Path:
    path = checkpoint.path / file_name(0, 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def cut(group: int) -> GroupCut:
    return GroupCut(group, (f"t{group}",), (64,), (0, 0), ())


def step(node: int, group: int, version: int) -> list[Record]:
    task = TrainedTask(f"t{group}", "finished", 0.5, 64, node=node, finished=1.0, step=version)
    return [cut(group), Stepped(node, (group,), version, 1.0 + group), Trained(task)]


def test_the_first_attempt_begins_with_fresh_weights(run: Run) -> None:
    attempt, beginning, inherited = run.attempt()
    assert beginning == Beginning() and beginning.resumption is None
    assert inherited.last is None
    start = attempt.started
    assert start is not None
    assert (start.inherits, start.checkpoint, start.journal_bytes, start.versions, start.damage) == (
        None,
        None,
        0,
        {},
        [],
    )


def test_it_may_start_from_the_checkpoint_of_another_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    saved = Run(tmp_path / "other").checkpoint(3, 4)
    training = Training(micro_batches=8, resume=tmp_path / "other")
    attempt, beginning, _ = run.attempt(recipe=recipe(training=training))
    assert beginning == Beginning(saved.path), "and counts from 0"
    assert beginning.resumption is not None and beginning.resumption.start(0) == NodeStart()
    assert attempt.started is not None and attempt.started.checkpoint is None
    other = recipe(training=training, model=Model(config=tiny_llama(3)))
    with pytest.raises(UserError, match="num_hidden_layers"):
        run.attempt(recipe=other)


def test_training_goes_on_from_the_newest_checkpoint_of_the_run_itself(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    Run(tmp_path / "other").checkpoint(9, 9)
    training = Training(micro_batches=8, resume=tmp_path / "other")
    before, _, _ = run.attempt(*step(0, 0, 1), *step(1, 1, 1), *step(0, 2, 2), *step(1, 3, 2), cut(4))
    run.checkpoint(1, 0)
    saved = run.checkpoint(1, 2)
    attempt, beginning, inherited = run.attempt(recipe=recipe(training=training))
    assert beginning == Beginning(saved.path, True, {0: NodeStart(1, 1), 1: NodeStart(2, 2)})
    assert (inherited.steps, inherited.done) == (3, frozenset({0, 1, 3})), "the second step of node 0 is done again"
    assert [task.id for task in inherited.trained] == ["t0", "t1", "t3"]
    start = attempt.started
    assert start is not None
    assert (start.inherits, start.checkpoint, start.versions) == (before.number, saved.path.name, {0: 1, 1: 2})
    assert start.journal_bytes == newest_part(before).stat().st_size and start.clock == 4.0


def test_damaged_checkpoints_are_put_aside_and_told_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.attempt(*step(0, 0, 1), *step(0, 1, 2), *step(0, 2, 3))
    whole = run.checkpoint(1, 0)
    paths = [damage(run.checkpoint(2, 0)), damage(run.checkpoint(3, 0))]
    attempt, beginning, inherited = run.attempt()
    assert beginning.checkpoint == whole.path and inherited.done == frozenset({0})
    said = capsys.readouterr().out
    assert attempt.started is not None and len(attempt.started.damage) == 2
    for path in paths:
        assert f"damaged: {path}: its checksum" in said and "an older checkpoint is taken" in said
        assert not path.exists() and (path.parent.parent / f"damaged-{path.parent.name}-1").is_dir()
    attempt, beginning, _ = run.attempt()
    assert beginning.checkpoint == whole.path
    assert attempt.started is not None and attempt.started.damage == []
    assert "damaged:" not in capsys.readouterr().out


def test_without_any_whole_checkpoint_training_starts_over(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.attempt(*step(0, 0, 1))
    damage(run.checkpoint(1, 0))
    _, beginning, inherited = run.attempt()
    assert beginning == Beginning()
    assert (inherited.steps, inherited.done, inherited.trained) == (0, frozenset(), [])
    assert [each.group for each in inherited.cuts] == [0]
    assert "there is no older checkpoint, and training starts over" in capsys.readouterr().out


def test_a_damaged_record_is_told_once_too(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first, _, _ = run.attempt(Placed(0, 0), Accepted(1, "a", 0.5, 3))
    path = newest_part(first)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    second, _, inherited = run.attempt()
    assert list(inherited.waiting) == [1]
    assert second.started is not None and len(second.started.damage) == 1
    assert f"damaged: {path}: 1 record before byte" in capsys.readouterr().out
    third, _, inherited = run.attempt()
    assert list(inherited.waiting) == [1] and third.started is not None and third.started.damage == []


def test_emulated_stages_count_on_where_they_were(run: Run) -> None:
    run.attempt(*step(0, 0, 1), *step(0, 1, 2), *step(1, 2, 1), recipe=EMULATED)
    run.checkpoint(1, 1)  # of no weights: nothing can go on from it
    attempt, beginning, inherited = run.attempt(recipe=EMULATED)
    assert beginning == Beginning(starts={0: NodeStart(2), 1: NodeStart(1)})
    assert (inherited.steps, inherited.done) == (3, frozenset({0, 1, 2}))
    assert attempt.started is not None and attempt.started.versions == {0: 2, 1: 1}


def test_what_those_before_still_write_does_not_count(run: Run) -> None:
    first, _, _ = run.attempt(Accepted(0, "a", 0.5, 3))
    run.attempt()
    whole = Run(run.path / "late")
    whole.path.mkdir()
    late, _, _ = whole.attempt(Accepted(0, "a", 0.5, 3), Ended(ServedTask("a", "finished", 0.5, 3, number=0)))
    newest_part(first).write_bytes(newest_part(late).read_bytes())
    _, _, inherited = run.attempt()
    assert list(inherited.waiting) == [0] and not inherited.served


def test_what_broke_two_attempts_is_lost_and_the_rest_is_served_under_its_number(run: Run) -> None:
    accepted = [Accepted(number, f"r{number}", number / 8, 3, place=number) for number in (0, 2)]
    accepted.insert(1, Accepted(1, "r3", 0.125, 3, place=3))
    run.attempt(*accepted, Placed(0, 0), Placed(1, 0), end="error")
    answered = Ended(ServedTask("r3", "finished", 0.125, 3, finished=2.0, number=1), place=3, followed=True)
    run.attempt(Placed(0, 0), Placed(1, 0), answered, end="error")
    _, _, inherited = run.attempt()
    gone = poisonous(inherited)
    assert [(accepted.id, accepted.number) for accepted in gone] == [("r0", 0)]
    left = without(inherited, gone)
    assert list(left.waiting) == [2] and [task.id for task in left.served] == ["r3", "r0"]
    assert [task.outcome for task in left.served] == ["finished", "lost"]
    turns = [(None, 0.0), ("r0", 9.0), (None, 0.0), (None, 0.0), ("r3", 9.0), (None, 1.0), ("r5", 9.0)]
    requests = [
        Request(f"r{place}", arrival, 3, 0, after=after, think_s=0.5, place=place)
        for place, (after, arrival) in enumerate(turns)
    ]
    came = {2: 0.25}
    found = [remaining(left, came, request) for request in requests]
    assert [(request.id, request.arrival, request.after) for request in found if request is not None] == [
        ("r1", 9.0, None),
        ("r2", 0.25, None),
        ("r4", 2.5, None),
        ("r5", 1.0, None),
        ("r6", 9.0, "r5"),
    ]
    arrivals = arrivals_of(RequestStream.of(requests), left)
    assert arrivals.left == 5
    come = [request.id for request in arrivals.until(3.0)]
    arrivals.answered("r5", 3.0)
    assert come == ["r2", "r5", "r4"] and [request.id for request in arrivals.until(9.0)] == ["r6", "r1"]
    assert arrivals.over


def test_a_file_that_has_changed_before_its_last_request_that_came_is_told(run: Run) -> None:
    ended = [
        record
        for place, name in enumerate("ab")
        for record in (
            Accepted(place, name, 0.5, 3, place=place),
            Ended(ServedTask(name, "finished", 0.5, 3, finished=1.0, number=place), place=place),
        )
    ]
    run.attempt(*ended)
    _, _, inherited = run.attempt()

    def left(*names: str) -> list[str]:
        requests = [Request(name, 0.0, 3, 0, place=place) for place, name in enumerate(names)]
        return [request.id for request in arrivals_of(RequestStream.of(requests), inherited).until(9.0)]

    assert left("a", "b") == [] and left("a", "b", "c") == ["c"]
    with pytest.raises(UserError, match="request 2 is 'x', and was 'b' when it came"):
        left("a", "x", "b")
