"""Runs over MPI of two nodes that learn from each other while they serve."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.protocol import Vector
from lemix_hpc.launch.local import environment, mpiexec_command
from lemix_hpc.launch.rundir import create_run_dir
from tests.runtime.conftest import A100, SUMS, FinishedRun, sums_training, tiny_llama

pytestmark = pytest.mark.mpi

RANKS = Path(__file__).with_name("weights_ranks.py")
SERVING = {
    "source": {"kind": "poisson", "rate": 12, "requests": 120, "lengths": "lmsys-chat"},
    "max_prompt_tokens": 48,
    "prompts": {"path": str(SUMS)},
}
STAGES = 2
MakeRun = Callable[..., FinishedRun]


@pytest.fixture
def run(tmp_path: Path) -> MakeRun:
    """Trains on nodes of two stages, in float32; `others` are more of the recipe."""

    def make(name: str, nodes: int, training: dict[str, Any], **others: Any) -> FinishedRun:
        recipe = {
            "name": name,
            "nodes": {"count": nodes, "stages": STAGES},
            "model": {"config": tiny_llama(tie_word_embeddings=True)},
            "training": sums_training(release="sync", **training),
            "policy": {"placement": "round-robin"},
        } | others
        directory = create_run_dir(Recipe.model_validate(recipe), tmp_path / name)
        ranks = nodes * (STAGES + 1)
        command = mpiexec_command(ranks, [sys.executable, "-m", "mpi4py", str(RANKS), str(directory.path)])
        variables = environment() | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        return FinishedRun(directory.path, json.loads(directory.report.read_text()))

    return make


def weights(run: FinishedRun, node: int) -> Vector:
    """All weights of a node after the run."""
    return np.concatenate(
        [np.fromfile(run.path / f"weights-{node}-{stage}", dtype=np.float32) for stage in range(STAGES)]
    )


def longest_wait(run: FinishedRun) -> tuple[float, float]:
    """Seconds of the longest stretch of other work in one go on a stage: of exchanges and updates, and of training."""
    spans = [span for span in run.lines("spans.jsonl") if span["kind"] != "serve"]
    updates = [span["end"] - span["start"] for span in spans if span["kind"] in ("step", "copy")]
    return max(updates), max(span["end"] - span["start"] for span in spans if span["kind"] in ("forward", "backward"))


def assert_served_on(run: FinishedRun) -> None:
    assert run.report["serving"]["finished"] == run.report["serving"]["received"] == 120
    assert run.report["weight_versions"]["mixed_batches"] == 0
    versions = {span["version"] for spans in run.serving_batches().values() for span in spans}
    assert len(versions) > 3, "requests must have been served in between"
    print(f"{run.report['across_nodes']}, longest stretch of updates and of training: {longest_wait(run)} s")


def test_steps_of_all_nodes_together_are_those_of_one_process(run: MakeRun) -> None:
    # 46 micro-batches: the last step has one group of two instead of two groups.
    training = {"micro_batches_per_step": 2, "micro_batches": 46, "across_nodes": "sync"}
    alone = run("alone", 1, training | {"micro_batches_per_step": 4})
    by_itself = run("collective", 2, training | {"sums": "collective"}, serving=SERVING)
    together = run("together", 2, training, serving=SERVING)
    assert alone.report["training"]["steps"] == together.report["training"]["steps"] == 12
    assert np.abs(np.array(together.losses()) - alone.losses()).max() < 1e-5
    assert together.losses()[-1] < together.losses()[0] - 0.5
    assert weights(together, 0).tobytes() == weights(together, 1).tobytes()
    assert np.abs(weights(together, 0) - weights(alone, 0)).max() < 1e-4
    assert {task["node"] for task in together.tasks("training")} == {0, 1}
    assert together.report["across_nodes"]["count"] == 12
    assert alone.report["across_nodes"] is None
    # Two gradients have one sum, whoever takes it.
    assert [weights(by_itself, node).tobytes() for node in (0, 1)] == 2 * [weights(together, 0).tobytes()]
    assert by_itself.losses() == together.losses()
    sums = by_itself.report["across_nodes"]
    assert (sums["count"], sums["nbytes"]) == (12, 12 * 2 * weights(together, 0).nbytes)
    assert_served_on(together)
    assert_served_on(by_itself)


@pytest.mark.slow
@pytest.mark.parametrize("sums", ["messages", "collective"])
def test_one_node_may_get_all_groups(run: MakeRun, sums: str) -> None:
    training = {"micro_batches_per_step": 1, "micro_batches": 9, "across_nodes": "sync", "sums": sums}
    policy = {"placement": "pack", "lanes": 1}
    packed = run("packed", 2, training, policy=policy)
    assert packed.report["training"]["finished"] == 9
    assert packed.report["training"]["steps"] == 5
    assert weights(packed, 0).tobytes() == weights(packed, 1).tobytes()


def test_weights_are_averaged_while_training_and_serving_go_on(run: MakeRun) -> None:
    training = {"micro_batches_per_step": 1, "micro_batches": 60, "gradient_clipping": None}
    apart = run("local", 2, training, serving=SERVING)
    averaged = run("average", 2, training | {"across_nodes": "average", "average_every": 2}, serving=SERVING)
    sums = averaged.report["across_nodes"]
    assert sums["mode"] == "average"
    assert sums["count"] > 3
    # On each link of a stage, half of the time sums and half of the time totals.
    assert sums["nbytes"] >= sums["count"] * 2 * weights(averaged, 0).nbytes
    assert averaged.report["training"]["steps"] == 60
    assert averaged.report["weight_versions"]["last"] >= 30 + sums["count"] - 1

    def distance(run: FinishedRun) -> float:
        return float(np.abs(weights(run, 0) - weights(run, 1)).mean())

    assert distance(averaged) < distance(apart) / 2
    assert_served_on(averaged)


@pytest.mark.slow
@pytest.mark.parametrize("sums", ["messages", "collective"])
def test_training_nodes_of_a_separated_cluster_take_steps_together(run: MakeRun, sums: str) -> None:
    training = {"micro_batches_per_step": 1, "micro_batches": 12, "across_nodes": "sync", "sums": sums}
    policy = {"placement": "separate", "training_nodes": 2}
    apart = run("separate", 3, training, serving=SERVING, policy=policy)
    assert apart.report["training"]["steps"] == 6
    assert weights(apart, 0).tobytes() == weights(apart, 1).tobytes() == weights(apart, 2).tobytes()


@pytest.mark.parametrize("mode", ["average", "sync"])
def test_emulated_nodes_wait_for_each_other_as_real_ones_do(run: MakeRun, mode: str) -> None:
    training = {"data": None, "micro_batches": 12, "across_nodes": mode, "average_every": 2}
    engine = {"kind": "emulated", "coefficients": str(A100)}
    emulated = run(f"emulated-{mode}", 2, training, engine=engine, serving=None)
    assert emulated.report["training"]["finished"] == 12
    assert emulated.report["across_nodes"]["count"] > 0
    assert emulated.report["across_nodes"]["nbytes"] == 0
