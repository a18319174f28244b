"""Whole runs on this machine, started as users start them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from lemix_hpc.records.stretches import spans_of, stretches_decoder

REPOSITORY = Path(__file__).resolve().parents[2]
A100 = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
SUMS = REPOSITORY / "recipes" / "data" / "sums.jsonl"


@dataclass(frozen=True)
class FinishedRun:
    """What a run left behind."""

    path: Path
    report: dict[str, Any]

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of a file; of the work of a batch one for each stage and request."""
        with (self.path / name).open("rb") as file:
            if name == "spans.jsonl":
                stretches = chain.from_iterable(map(stretches_decoder(), file))
                yield from map(msgspec.to_builtins, chain.from_iterable(map(spans_of, stretches)))
            else:
                yield from map(json.loads, file)

    def tasks(self, kind: str) -> list[dict[str, Any]]:
        return [task for task in self.lines("tasks.jsonl") if task["kind"] == kind]

    def losses(self) -> list[float]:
        """Losses of the micro-batches in the order of the training data."""
        return [task["loss"] for task in sorted(self.tasks("training"), key=lambda task: int(task["id"][1:]))]

    def serving_batches(self) -> dict[tuple[int, int], list[dict[str, Any]]]:
        """The spans of every serving batch: one per stage and request."""
        batches: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for span in self.lines("spans.jsonl"):
            if span["kind"] == "serve":
                batches.setdefault((span["node"], span["batch"]), []).append(span)
        return batches


Run = Callable[[dict[str, Any]], FinishedRun]


@pytest.fixture
def lemix_run(tmp_path: Path) -> Run:
    """Run a recipe with `lemix run --cluster local`; it must succeed."""

    def run(recipe: dict[str, Any]) -> FinishedRun:
        path = tmp_path / f"{recipe['name']}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        out = tmp_path / recipe["name"]
        command = [str(Path(sys.executable).with_name("lemix")), "run", str(path), "--cluster", "local", "--json"]
        environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--out", str(out)], capture_output=True, text=True, check=False, timeout=300, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return FinishedRun(out, json.loads(done.stdout))

    return run


def tiny_llama(layers: int = 4, **changes: Any) -> dict[str, Any]:
    """A config that trains in seconds on one core."""
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 257,
        "max_position_embeddings": 512,
    }
    return config | changes


def sums_training(**changes: Any) -> dict[str, Any]:
    """Training on the sums that come with the recipes."""
    section: dict[str, Any] = {
        "data": {"path": str(SUMS)},
        "sequence_length": 64,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "gradient_clipping": 1.0,
    }
    return section | changes
