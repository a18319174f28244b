"""Real stages that are told to save while they train, with turns in any order: what is saved is one version on all stages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lemix_hpc.engines.meter import finish
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.transport import messages as m
from tests.runtime.test_nodes_in_turn import Cluster, _no_traces

pytestmark = pytest.mark.usefixtures(_no_traces.__name__)

GROUPS = 5
State = dict[str, bytes]


def state_of(cluster: Cluster, node: int = 0) -> State:
    """The whole training state of a node, as its engines have it now."""
    states = [finish(cluster.engines[node, stage].snapshot()) for stage in (0, 1)]
    return {name: values.tobytes() for state in states for name, values in state.tensors.items()}


def saved_state(directory: Path, node: int = 0) -> State:
    files = [load_file(directory / f"node-{node}-stage-{stage}.safetensors") for stage in (0, 1)]
    return {name: values.tobytes() for file in files for name, values in file.items()}


def reports(cluster: Cluster) -> list[m.Saved]:
    return [report for report in cluster.reports if isinstance(report, m.Saved)]


def some_turns(cluster: Cluster, order: random.Random) -> None:
    for _ in range(order.randrange(400)):
        cluster.workers[order.choice(sorted(cluster.workers))]._turn()


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_all_stages_save_the_version_that_the_first_one_chose(zero_stage: int, tmp_path: Path) -> None:
    steady = Cluster(None, zero_stage=zero_stage)
    versions = [state_of(steady)]
    for group in range(GROUPS):
        steady.train(0, group)
        steady.settle(group)
        versions.append(state_of(steady))
    found = set()
    for seed in range(12):
        order, directory = random.Random(seed), tmp_path / str(seed)
        directory.mkdir()
        cluster = Cluster(None, zero_stage=zero_stage)
        for group in range(GROUPS):
            cluster.train(0, group)
        some_turns(cluster, order)
        cluster.send(0, 0, m.SaveNext(1, str(directory), -1))
        cluster.settle(seed)
        told = reports(cluster)
        assert [(saved.node, saved.number, saved.error) for saved in told] == [(0, 1, "")] * 2
        [version] = {saved.version for saved in told}
        assert {(saved.steps, saved.updates, saved.schedule) for saved in told} == {(version,) * 3}
        assert saved_state(directory) == versions[version]
        assert state_of(cluster) == versions[GROUPS], "training takes the same course"
        found.add(version)
    assert len(found) > 2, "the order came at different times"


def test_at_rest_a_node_is_saved_at_once_and_asking_again_saves_once(tmp_path: Path) -> None:
    cluster = Cluster(None)
    cluster.train(0, 0)
    cluster.settle(0)
    order = m.SaveNext(7, str(tmp_path), -1)
    for _ in range(2):
        cluster.send(0, 0, order)
        cluster.settle(0)
    assert [(saved.version, saved.file.stage) for saved in reports(cluster)] in ([(1, 0), (1, 1)], [(1, 1), (1, 0)])
    assert saved_state(tmp_path) == state_of(cluster)


@pytest.mark.parametrize("seed", range(3))
def test_nodes_that_average_are_saved_behind_the_average_that_was_named(seed: int, tmp_path: Path) -> None:
    cluster = Cluster(Partners("average", (0, 1), every=1))
    for node in (0, 1):
        cluster.send(node, 0, m.SaveNext(1, str(tmp_path), 1))
    cluster.train(0, 0)
    cluster.train(1, 1)
    cluster.settle(seed)
    assert not reports(cluster), "only one average has been"
    cluster.train(0, 2)
    cluster.train(1, 3)
    cluster.settle(seed)
    assert {(saved.round, saved.version, saved.steps) for saved in reports(cluster)} == {(1, 4, 2)}
    weights = [{name: bits for name, bits in saved_state(tmp_path, node).items() if "/" not in name} for node in (0, 1)]
    assert weights[0] == weights[1], "right behind an average all nodes are alike"


def test_a_save_that_waits_for_an_average_can_be_told_not_to(tmp_path: Path) -> None:
    cluster = Cluster(Partners("average", (0, 1), every=4))
    cluster.send(0, 0, m.SaveNext(1, str(tmp_path), 0))
    cluster.train(0, 0)
    cluster.settle(0)
    assert not reports(cluster)
    cluster.send(0, 0, m.SaveNext(1, str(tmp_path), -1))
    cluster.settle(0)
    assert {(saved.round, saved.version) for saved in reports(cluster)} == {(-1, 1)}


def test_nodes_that_step_together_have_equal_states(tmp_path: Path) -> None:
    cluster = Cluster(Partners("sync", (0, 1)))
    for node in (0, 1):
        cluster.train(node, node)
        for stage in (0, 1):
            cluster.send(node, stage, m.StepTogether(0, [(node, 0.5)]))
        cluster.send(node, 0, m.SaveNext(1, str(tmp_path), -1))
    cluster.settle(1)
    assert saved_state(tmp_path, 0) == saved_state(tmp_path, 1)


def test_what_cannot_be_written_is_told_and_training_goes_on(tmp_path: Path) -> None:
    cluster = Cluster(None)
    cluster.send(0, 0, m.SaveNext(1, str(tmp_path / "gone"), -1))
    cluster.train(0, 0)
    cluster.settle(0)
    assert all("gone" in saved.error and "No such file" in saved.error for saved in reports(cluster))
    assert cluster.steps == 1
    cluster.send(0, 0, m.SaveNext(2, str(tmp_path), -1))
    cluster.settle(0)
    assert [saved.error for saved in reports(cluster)[2:]] == ["", ""]


def test_the_snapshot_is_work_that_rests_for_serving_and_is_recorded(tmp_path: Path) -> None:
    cluster = Cluster(None)
    cluster.train(0, 0)
    cluster.settle(0)
    cluster.send(0, 0, m.SaveNext(1, str(tmp_path), -1))
    cluster.settle(0)
    spans: list[Any] = [span for report in cluster.reports if isinstance(report, m.SpanReport) for span in report.spans]
    saves = [(span.node, span.stage, span.version, span.complete) for span in spans if span.kind == "save"]
    assert sorted(saves) == [(0, 0, 1, True), (0, 1, 1, True)]
