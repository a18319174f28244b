"""A run that is killed at any instant, again and again: what was accepted has one outcome, and what is trained counts once.

Scheduler, leaders and stage workers are the real ones, in one process on a virtual clock; the journals are real files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.records import journal_writer
from lemix_hpc.records.attempts import claim, lineage
from lemix_hpc.records.inheritance import NOTHING, Inheritance, inherit
from lemix_hpc.records.journal import Record, Stepped
from lemix_hpc.records.schema import ServedTask, TrainedTask
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.workload.load import load_workload
from tests.one_process import OneProcess
from tests.records.attempt_files import open_files, records_of, start, write
from tests.records.attempt_files import outcomes as all_outcomes
from tests.test_equivalence import load, scenarios


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    """Journals are cut every few records. It is not the power that fails, and nobody waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for sync in ("fsync", "fdatasync"):
            patch.setattr(os, sync, lambda file: None)  # noqa: ARG005
        patch.setattr(journal_writer, "RESERVE", 4096)
        patch.setattr(journal_writer, "PART", 1000)
        yield


@pytest.fixture
def one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """All records of an attempt stay."""
    monkeypatch.setattr(journal_writer, "PART", 1 << 30)


TOGETHER = 16
"""Records that are written at once, behind which the journal may be cut."""


class Killed(Exception):  # noqa: N818  no error
    """Nothing of the run's processes is left."""


class Attempt:
    """One attempt, to be killed at its n-th record or message; the last `unsafe` records are not on the disk then.

    `back`: how many versions older than the newest weights the checkpoint is that it goes on from.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, kill_at: int | None, unsafe: int, back: int = 0) -> None:
        self._back = back
        self._run_dir = run_dir
        self._recipe = recipe
        self._left = kill_at
        self._unsafe = unsafe
        self._records: list[Record] = []

    def run(self) -> Inheritance | None:
        """What it went on from; None if it was killed."""
        attempt = claim(self._run_dir)
        inherited = inherit(self._run_dir, None)
        if self._back:
            versions = {node: max(0, version - self._back) for node, version in inherited.versions.items()}
            inherited = inherit(self._run_dir, versions)
        start(attempt, inherited)
        recorder, journal = open_files(attempt, inherited, saved=lambda: {} if self._back else None)
        killed = False
        try:
            OneProcess(self._recipe, inherited, self._promise, self._message).run()
        except Killed:
            killed = True
        safe = max(0, len(self._records) - self._unsafe) if killed else len(self._records)
        for first in range(0, safe, TOGETHER):
            write(recorder, self._records[first : min(first + TOGETHER, safe)])
            assert journal.flush()
        journal.close()
        recorder.close()
        return None if killed else inherited

    def _promise(self, record: Record) -> None:
        self._records.append(record)
        self._step()

    def _message(self, message: m.AnyMessage) -> None:  # noqa: ARG002
        self._step()

    def _step(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Killed


def outcomes(run_dir: Path) -> tuple[list[ServedTask], list[TrainedTask]]:
    assert inherit(run_dir, None).damage == []
    tasks = all_outcomes(run_dir)
    return [t for t in tasks if isinstance(t, ServedTask)], [t for t in tasks if isinstance(t, TrainedTask)]


def run_through(recipe: Recipe, kills: list[tuple[int, int]]) -> tuple[list[ServedTask], list[TrainedTask], int]:
    """The outcomes after so many kills, and the optimizer steps that count."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory)
        for kill_at, unsafe in kills:
            if Attempt(run_dir, recipe, kill_at, unsafe).run() is not None:
                break
        else:
            assert Attempt(run_dir, recipe, None, 0).run() is not None
        return *outcomes(run_dir), inherit(run_dir, None).steps


KILLS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4)), min_size=1, max_size=4)


@settings(max_examples=40)
@given(scenarios(), KILLS)
def test_every_request_has_one_outcome_and_every_micro_batch_counts_once(
    scenario: dict[str, Any], kills: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        recipe = load(scenario, Path(directory))
        served, trained, steps = run_through(recipe, kills)
        requests = [request.id for request in load_workload(recipe).requests]
    assert sorted(task.id for task in served) == sorted(requests)
    assert len({task.number for task in served}) == len(served)
    names = [task.id for task in trained]
    assert len(set(names)) == len(names)
    training = recipe.training
    if training is None:
        assert not trained
        return
    if training.micro_batches is not None and not recipe.policy.drain_reserve_s:
        assert sorted(names, key=lambda name: int(name[1:])) == [f"t{i}" for i in range(training.micro_batches)]
        assert steps == -(-training.micro_batches // training.micro_batches_per_step)


def test_killed_at_each_record_and_each_message_of_a_small_run(tmp_path: Path) -> None:
    times = {"forward": {"a": 2e-3, "b": 4e-6, "c": 1e-10, "d": 1e-7}, "backward": 2.0}
    coefficients = {
        "schema": 1,
        "form": "affine-quadratic",
        "hardware": "h",
        "model": "m",
        "dtype": "float32",
        "layers": 4,
        "stages": [times, times],
        "provenance": {"source": "made up"},
    }
    serving = {
        "source": {"kind": "poisson", "rate": 80.0, "requests": 3, "lengths": "azure-conv"},
        "mode": "generate",
        "max_new_tokens": 3,
        "conversations": {"turns": 2, "think_s": 0.02},
    }
    recipe = load(
        {
            "recipe": {
                "nodes": {"count": 1, "stages": 2},
                "engine": {"kind": "emulated", "coefficients": "real.yaml"},
                "serving": serving,
                "training": {"micro_batches": 3, "micro_batches_per_step": 2, "release": "sync"},
            },
            "files": {"real.yaml": coefficients},
        },
        tmp_path,
    )
    whole = run_through(recipe, [])
    names = sorted([*(task.id for task in whole[0]), *(task.id for task in whole[1])])
    assert len(names) == 6
    points = 0
    while True:
        with tempfile.TemporaryDirectory() as directory:
            if Attempt(Path(directory), recipe, points, 0).run() is not None:
                break
            assert Attempt(Path(directory), recipe, None, 0).run() not in (None, NOTHING)
            served, trained = outcomes(Path(directory))
        assert sorted([*(task.id for task in served), *(task.id for task in trained)]) == names, (
            f"killed at point {points}"
        )
        points += 1
    assert points > 60, "records and messages of the whole run"
    with pytest.raises(Killed):
        OneProcess(recipe, on_message=Attempt(tmp_path, recipe, 0, 0)._message).run()


def together(directory: Path, placement: str) -> Recipe:
    """Three nodes that take their steps together while they serve."""
    times = {"forward": {"a": 2e-3, "b": 4e-6, "c": 1e-10, "d": 1e-7}, "backward": 2.0}
    coefficients = {
        "schema": 1,
        "form": "affine-quadratic",
        "hardware": "h",
        "model": "m",
        "dtype": "float32",
        "layers": 4,
        "stages": [times, times],
        "provenance": {"source": "made up"},
    }
    recipe = {
        "nodes": {"count": 3, "stages": 2},
        "engine": {"kind": "emulated", "coefficients": "real.yaml"},
        "serving": {
            "source": {"kind": "poisson", "rate": 60.0, "requests": 40, "lengths": "azure-conv"},
            "mode": "score",
        },
        "training": {"micro_batches": 26, "micro_batches_per_step": 2, "release": "sync", "across_nodes": "sync"},
        "policy": {"placement": placement},
    }
    return load({"recipe": recipe, "files": {"real.yaml": coefficients}}, directory)


def steps_of(run_dir: Path) -> list[tuple[int, ...]]:
    """The groups of each step that counts, in order."""
    return [step.groups for _, step in sorted(_steps(run_dir).items())]


def weights_of(run_dir: Path, steps: int) -> bytes:
    """What the weights would be after so many: in float32, so that they depend on where each group was."""
    places = inherit(run_dir, None).places
    weights = np.zeros(64, dtype=np.float32)
    for groups in steps_of(run_dir)[:steps]:
        on_nodes = np.zeros((3, 64), dtype=np.float32)
        for group in groups:
            on_nodes[places[group]] += np.random.default_rng(group).normal(size=64).astype(np.float32)
        weights -= (on_nodes[0] + on_nodes[1]) + on_nodes[2]
    return weights.tobytes()


def _steps(run_dir: Path) -> dict[int, Stepped]:
    records = [record for attempt in lineage(run_dir) for record in records_of(attempt)]
    return {record.version: record for record in records if isinstance(record, Stepped)}


@pytest.mark.usefixtures("one_part")
@pytest.mark.parametrize("kill_at", range(250, 1100, 170))
def test_groups_of_steps_together_that_come_again_go_where_they_were(tmp_path: Path, kill_at: int) -> None:
    recipe = together(tmp_path, "least-completion")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert Attempt(run_dir, recipe, kill_at, 0).run() is None
    before, steps = inherit(run_dir, None).places, len(steps_of(run_dir))
    weights = weights_of(run_dir, steps)
    assert Attempt(run_dir, recipe, None, 0, back=2).run() is not None
    done = inherit(run_dir, None)
    assert {group: done.places[group] for group in before} == before
    assert (done.steps, [cut.group for cut in done.cuts]) == (5, list(range(13)))
    assert weights_of(run_dir, steps) == weights, "to the last bit, as far as it had come"
    trained = outcomes(run_dir)[1]
    assert len({task.id for task in trained}) == 26 == len(trained)


@pytest.mark.usefixtures("one_part")
@pytest.mark.parametrize("kill_at", range(250, 1100, 170))
def test_in_turns_nothing_shows_in_the_weights_of_a_run_that_was_killed(tmp_path: Path, kill_at: int) -> None:
    recipe = together(tmp_path, "round-robin")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert Attempt(tmp_path / "whole", recipe, None, 0).run() is not None
    assert Attempt(tmp_path / "killed", recipe, kill_at, 0).run() is None
    assert Attempt(tmp_path / "killed", recipe, None, 0, back=1).run() is not None
    assert weights_of(tmp_path / "killed", 99) == weights_of(tmp_path / "whole", 99)
