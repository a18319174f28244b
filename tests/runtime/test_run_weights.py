"""Runs over MPI in which serving comes in between everything that training does: its weights are the same to the last bit."""

import itertools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.local import environment, mpiexec_command
from lemix_hpc.launch.rundir import create_run_dir
from tests.runtime.conftest import SUMS, FinishedRun, sums_training, tiny_llama

pytestmark = pytest.mark.mpi

RANKS = Path(__file__).with_name("weights_ranks.py")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., FinishedRun]:
    """Trains on two stages; much of the time goes into the steps of a large vocabulary. `serving`: requests come all along."""

    def make(
        name: str, *, serving: bool, zero_stage: int, tied: bool, engine: str = "torch", **policy: Any
    ) -> FinishedRun:
        training = sums_training(
            release="sync", sequence_length=16, micro_batches_per_step=2, micro_batches=40, zero_stage=zero_stage
        )
        source = {"kind": "poisson", "rate": 60, "requests": 240, "lengths": "lmsys-chat"}
        heads = 2 if engine == "vllm" else 4  # vLLM on CPUs has no heads of size 16
        recipe = {
            "name": name,
            "nodes": {"count": 1, "stages": 2},
            "model": {"config": tiny_llama(2, vocab_size=30_000, num_attention_heads=heads, tie_word_embeddings=tied)},
            "engine": {"kind": engine},
            "training": training,
            "policy": policy,
        }
        if serving:
            recipe["serving"] = {"source": source, "max_prompt_tokens": 32, "prompts": {"path": str(SUMS)}}
        directory = create_run_dir(Recipe.model_validate(recipe), tmp_path / name)
        command = mpiexec_command(3, [sys.executable, "-m", "mpi4py", str(RANKS), str(directory.path)])
        variables = environment() | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return FinishedRun(directory.path, json.loads(directory.report.read_text()))

    return make


def weights(run: FinishedRun) -> list[bytes]:
    return [(run.path / f"weights-0-{stage}").read_bytes() for stage in (0, 1)]


PARTS = 3
"""Of a step on a stage: its gradient is sealed, and it is prepared and published."""


def served_while_a_step_was_prepared(run: FinishedRun) -> int:
    """Steps, of each stage one by one, between two stretches of one of whose parts requests were served."""
    steps, serves = defaultdict(list), defaultdict(list)
    for span in run.lines("spans.jsonl"):
        if span["kind"] == "step":
            steps[span["stage"], span["version"]].append(span)
        elif span["kind"] == "serve":
            serves[span["stage"]].append(span)
    found = 0
    for (stage, version), stretches in steps.items():
        ordered = sorted(stretches, key=lambda span: span["start"])
        # The last one is the publication.
        rests = [(before["end"], after["start"]) for before, after in itertools.pairwise(ordered[:-1])]
        between = [s for s in serves[stage] if any(end <= s["start"] and s["end"] <= start for end, start in rests)]
        assert all(span["version"] == version for span in between), "served by the old weights"
        assert len(stretches) >= PARTS
        found += bool(between) and len(stretches) > PARTS
    return found


@pytest.mark.parametrize(
    ("engine", "zero_stage", "tied"),
    [
        pytest.param("torch", 0, False, marks=pytest.mark.slow),
        ("torch", 1, True),
        pytest.param("vllm", 0, False, marks=pytest.mark.slow),
    ],
)
def test_weights_do_not_know_what_was_served_in_between(
    engine: str, zero_stage: int, tied: bool, run: Callable[..., FinishedRun]
) -> None:
    mode: dict[str, Any] = {"engine": engine, "zero_stage": zero_stage, "tied": tied}
    alone = run("alone", serving=False, **mode)
    resting = run("resting", serving=True, **mode)
    through = run("through", serving=True, yield_training=False, **mode)
    assert alone.report["training"]["steps"] == 20
    assert alone.losses() == resting.losses() == through.losses()
    assert weights(alone) == weights(resting) == weights(through)
    assert resting.report["weight_versions"]["mixed_batches"] == 0
    assert served_while_a_step_was_prepared(resting) > 0
    assert served_while_a_step_was_prepared(through) == 0
