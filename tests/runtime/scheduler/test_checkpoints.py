"""When the scheduler has the training state saved, and what it makes of what the stages tell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.checkpoints.manifest import Manifest, SavedFile
from lemix_hpc.checkpoints.stage_state import StageState, file_name, write_state
from lemix_hpc.checkpoints.store import Checkpoint, complete_paths, damage
from lemix_hpc.config.recipe import Engine, Model, Nodes, Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.runtime.scheduler.checkpoints import Checkpoints
from lemix_hpc.runtime.scheduler.save_plan import SavePlan, save_plan
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.rank_layout import Layout
from tests.runtime.conftest import tiny_llama
from tests.runtime.test_nodes_in_turn import AtOnce

STAGES = 2


class World:
    """The stages of all nodes, at versions and steps that the test sets; time stands still."""

    def __init__(self, directory: Path, nodes: int = 1, **plan: Any) -> None:
        template = Manifest(
            "r", plan.pop("first_step", 0), 0.0, None, {}, "torch", "", plan.pop("mode", "local"), nodes, STAGES, []
        )
        settings: dict[str, Any] = {"every_steps": None, "every_s": None, "at_end": True, "keep": 2} | plan
        self.plan = SavePlan(directory, template, tuple(range(nodes)), **settings)
        self.asked: list[m.SaveNext] = []
        self.time = 0.0
        self.secured = 0
        self.insecure: OSError | None = None
        self.checkpoints = Checkpoints(
            self.plan,
            Layout(nodes, STAGES),
            self,  # type: ignore[arg-type]
            lambda: self.time,
            lambda: None,
            secure=self.secure,
            pool=AtOnce(),
        )

    def secure(self) -> None:
        if self.insecure is not None:
            raise self.insecure
        self.secured += 1

    def send(self, rank: int, inbox: object, message: m.SaveNext) -> None:  # noqa: ARG002
        self.asked.append(message)

    def answer(self, steps: list[int], rounds: list[int] | None = None, error: str = "") -> None:
        """All stages of all nodes have saved, after so many steps of each node."""
        order = self.asked[-1]
        for node, count in enumerate(steps):
            for stage in range(STAGES):
                name = file_name(node, stage)
                nbytes, sha256 = 0, ""
                if not error:
                    written = write_state(StageState({}, count, count, "float32"), Path(order.directory) / name)
                    nbytes, sha256 = written.nbytes, written.sha256
                file = SavedFile(name, stage, nbytes, sha256, 0.1, 0.2)
                around = rounds[node] if rounds is not None else -1
                self.checkpoints.received(
                    m.Saved(order.number, node, count, count, around, count, count, "float32", file, error)
                )
        self.checkpoints.turn(sum(steps))

    @property
    def steps(self) -> list[int]:
        return [Checkpoint.read(path).manifest.step for path in complete_paths(self.plan.directory)]


def test_a_save_is_due_after_so_many_steps_and_one_is_under_way_at_a_time(tmp_path: Path) -> None:
    world = World(tmp_path, every_steps=10)
    for steps in range(10):
        world.checkpoints.turn(steps)
    assert not world.asked
    world.checkpoints.turn(11)
    world.checkpoints.turn(40)
    assert [order.number for order in world.asked] == [1]
    world.answer([40])
    assert world.steps == [40]
    assert [order.number for order in world.asked] == [1, 2], "it has been due for long"
    world.answer([41])
    world.checkpoints.turn(49)
    assert len(world.asked) == 2
    world.checkpoints.turn(50)
    assert len(world.asked) == 3


def test_a_save_is_due_after_so_many_seconds_if_anything_was_learned(tmp_path: Path) -> None:
    world = World(tmp_path, every_s=5.0)
    world.checkpoints.turn(0)
    world.time = 7.0
    world.checkpoints.turn(0)
    assert world.checkpoints.due == float("inf")
    assert not world.asked
    world.checkpoints.turn(1)
    assert len(world.asked) == 1
    world.answer([1])
    world.time = 11.0
    world.checkpoints.turn(2)
    assert (len(world.asked), world.checkpoints.due) == (1, 12.0)
    world.time = 12.0
    world.checkpoints.turn(2)
    assert len(world.asked) == 2


def test_a_checkpoint_has_all_stages_of_all_nodes_and_the_newest_stay(tmp_path: Path) -> None:
    world = World(tmp_path, nodes=2, every_steps=1, keep=2)
    for steps in ([1, 0], [2, 1], [2, 2]):
        world.checkpoints.turn(sum(steps))
        world.answer(steps)
    assert world.steps == [3, 4]
    newest = Checkpoint.read(complete_paths(tmp_path)[-1])
    assert list(damage(newest)) == []
    assert [(node.node, node.steps, len(node.files)) for node in newest.manifest.saved] == [(0, 2, 2), (1, 2, 2)]
    assert world.secured == 3
    assert world.checkpoints.facts().saved == 3


def test_a_checkpoint_does_not_count_before_what_it_counts_on_is_safe(tmp_path: Path) -> None:
    world = World(tmp_path, every_steps=1)
    world.insecure = OSError(5, "Input/output error", "journal.bin")
    world.checkpoints.turn(1)
    world.answer([1])
    assert (world.steps, world.checkpoints.facts().last_failure) == ([], "journal.bin: Input/output error")
    world.insecure = None
    world.checkpoints.turn(2)
    world.answer([2])
    assert world.steps == [2]


def test_an_attempt_that_goes_on_counts_on(tmp_path: Path) -> None:
    world = World(tmp_path, every_steps=4, first_step=10)
    world.checkpoints.turn(13)
    assert not world.asked
    world.checkpoints.turn(14)
    world.answer([14])
    assert world.steps == [14]


def test_at_the_end_only_what_is_new_is_saved(tmp_path: Path) -> None:
    world = World(tmp_path, every_steps=4)
    world.checkpoints.turn(4)
    world.answer([4])
    world.checkpoints.turn(6)
    assert world.checkpoints.at_rest
    world.checkpoints.finish()
    assert not world.checkpoints.at_rest
    world.checkpoints.turn(6)
    world.answer([6])
    assert world.checkpoints.at_rest
    assert world.steps == [4, 6]
    unchanged = World(tmp_path / "none")
    unchanged.checkpoints.turn(0)
    unchanged.checkpoints.finish()
    assert unchanged.checkpoints.at_rest


def test_what_cannot_be_written_is_told_and_tried_again_when_due(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, every_steps=2)
    world.checkpoints.turn(2)
    world.answer([2], error="disk: No space left on device")
    assert "could not be saved: disk: No space left" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "no half of a checkpoint stays"
    world.checkpoints.turn(3)
    assert len(world.asked) == 1
    world.checkpoints.turn(4)
    world.answer([4])
    assert world.steps == [4]
    assert world.checkpoints.facts().failed == 1


FULL = "disk: No space left on device"


def test_a_failed_save_is_tried_again_before_the_next_is_due(tmp_path: Path) -> None:
    world = World(tmp_path, every_steps=100)
    world.checkpoints.turn(100)
    waits = []
    for _ in range(3):
        world.answer([100], error=FULL)
        waits.append(world.checkpoints.due - world.time)
        asked = len(world.asked)
        world.time = world.checkpoints.due - 0.5
        world.checkpoints.turn(100)
        assert len(world.asked) == asked
        world.time = world.checkpoints.due
        world.checkpoints.turn(101)
        assert len(world.asked) == asked + 1
    assert waits == [5.0, 10.0, 20.0]
    world.answer([101])
    assert world.steps == [101] and world.checkpoints.due == math.inf
    world.time += 1000.0
    world.checkpoints.turn(102)
    assert len(world.asked) == 4


def test_the_last_save_is_tried_for_some_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path, every_steps=4)
    world.checkpoints.turn(5)
    world.answer([5])
    world.checkpoints.turn(7)
    world.checkpoints.finish()
    tries = 0
    while not world.checkpoints.at_rest:
        if world.checkpoints.turn(7):
            tries += 1
            world.answer([7], error=FULL)
        else:
            world.time = max(world.time, world.checkpoints.due)
    assert tries > 20 and world.time <= 130.0
    facts = world.checkpoints.facts()
    assert (facts.saved, facts.failed, facts.last_step, facts.unsaved_steps) == (1, tries, 5, 2)
    assert world.checkpoints.unsaved == FULL
    assert capsys.readouterr().out.splitlines()[-1] == f"the training state could not be saved: {FULL}"


def test_a_last_save_that_works_at_last_leaves_nothing_unsaved(tmp_path: Path) -> None:
    world = World(tmp_path, every_steps=4)
    world.checkpoints.turn(4)
    world.answer([4], error=FULL)
    world.checkpoints.turn(5)
    world.checkpoints.finish()
    world.checkpoints.turn(5)
    assert len(world.asked) == 2, "at once"
    world.answer([5], error=FULL)
    world.time = world.checkpoints.due
    world.checkpoints.turn(5)
    world.answer([5])
    assert world.checkpoints.at_rest and world.checkpoints.unsaved is None
    assert (world.steps, world.checkpoints.facts().unsaved_steps) == ([5], 0)


def test_a_directory_that_cannot_be_made_is_a_save_that_failed(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    world = World(blocked, every_steps=1)
    world.checkpoints.turn(1)
    assert not world.asked
    assert world.checkpoints.facts().failed == 1
    world.checkpoints.finish()
    world.checkpoints.turn(1)
    assert world.checkpoints.facts().failed == 2 and not world.checkpoints.at_rest
    world.time = 1000.0
    assert world.checkpoints.at_rest and "Not a directory" in (world.checkpoints.unsaved or "")


def test_nodes_that_average_are_all_saved_behind_one_average(tmp_path: Path) -> None:
    world = World(tmp_path, nodes=2, mode="average", every_steps=4)
    world.checkpoints.summed(0)
    world.checkpoints.turn(4)
    assert {order.round for order in world.asked} == {1}
    world.answer([4, 4], rounds=[1, 2])
    assert world.steps == [], "one node had the next average before it was asked"
    world.checkpoints.summed(2)
    assert world.asked[-1].number == 2
    world.answer([6, 6], rounds=[2, 2])
    assert world.steps == [12]


def test_at_the_end_nobody_waits_for_an_average_that_does_not_come(tmp_path: Path) -> None:
    world = World(tmp_path, nodes=2, mode="average", every_steps=4)
    world.checkpoints.turn(4)
    world.checkpoints.finish()
    assert [(order.number, order.round) for order in world.asked] == [(1, 0)] * 2 + [(1, -1)] * 2
    world.answer([2, 2], rounds=[-1, -1])
    assert world.checkpoints.at_rest
    assert world.steps == [4]


def test_what_is_saved_follows_from_the_recipe(tmp_path: Path) -> None:
    training = Training(micro_batches=4)
    recipe = Recipe(nodes=Nodes(count=3), model=Model(config=tiny_llama()), training=training)

    def nodes(**changes: Any) -> tuple[int, ...]:
        plan = save_plan(recipe.model_copy(update=changes), tmp_path, 0)
        assert plan is not None
        return plan.nodes

    assert nodes() == (0, 1, 2)
    assert nodes(training=training.model_copy(update={"across_nodes": "average"})) == (0, 1, 2)
    assert nodes(training=training.model_copy(update={"across_nodes": "sync"})) == (0,)
    apart = recipe.policy.model_copy(update={"placement": "separate", "training_nodes": 2})
    assert nodes(policy=apart) == (1, 2) or nodes(policy=apart) == (0, 1)
    assert save_plan(recipe.model_copy(update={"training": None}), tmp_path, 0) is None
    emulated = recipe.model_copy(update={"engine": Engine(kind="emulated")})
    assert save_plan(emulated, tmp_path, 0) is None
