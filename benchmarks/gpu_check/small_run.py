"""A run of two stages that serve and train a tiny model, as a user starts one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from lemix_hpc.checkpoints.stage_state import FIRST_MOMENT, SECOND_MOMENT
from lemix_hpc.checkpoints.store import CHECKPOINTS, Checkpoint, complete_paths
from lemix_hpc.records.reader import stream_run

REPOSITORY = Path(__file__).resolve().parents[2]
SUMS = str(REPOSITORY / "recipes" / "data" / "sums.jsonl")
LEMIX = [sys.executable, "-c", "from lemix_hpc.cli.main import main; main()"]
"""The command, also where it is not installed."""
MICRO_BATCHES = 48
MICRO_BATCHES_PER_STEP = 4
REQUESTS = 80


TORCH = {"kind": "torch", "max_batch_requests": 1}


def recipe(device: str, dtype: str) -> dict[str, Any]:
    """One rank leads, two are stages; `device`: cpu or cuda."""
    return {
        "name": f"{device}-{dtype}",
        "cluster": {"restarts": 0},
        "nodes": {"count": 1, "stages": 2},
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "vocab_size": 257,
                "max_position_embeddings": 512,
            }
        },
        "engine": TORCH | {"device": device, "dtype": dtype, "share_devices": True},
        "serving": {
            "source": {"kind": "poisson", "rate": 25, "requests": REQUESTS, "lengths": "lmsys-chat"},
            "max_prompt_tokens": 64,
            "prompts": {"path": SUMS},
        },
        "training": {
            "data": {"path": SUMS},
            "sequence_length": 64,
            "micro_batch_size": 2,
            "learning_rate": 1e-3,
            "gradient_clipping": 1.0,
            "release": "sync",
            "micro_batches_per_step": MICRO_BATCHES_PER_STEP,
            "micro_batches": MICRO_BATCHES,
        },
    }


def start(made: dict[str, Any], out: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a run of this recipe into the directory OUT/NAME, with more variables of the environment."""
    path = out / f"{made['name']}.yaml"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    command = [*LEMIX, "run", str(path), "--cluster", "local", "--json"]
    variables = os.environ | {"XDG_STATE_HOME": str(out / "state"), "OMP_NUM_THREADS": "1"} | dict(environment or {})
    return subprocess.Popen(
        [*command, "--out", str(out / made["name"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
    )


def finish(started: subprocess.Popen[str], run: Path) -> str:
    """Wait for its end. Raises RuntimeError with its output and the ends of its logs if it failed."""
    output = started.communicate()[0]
    if started.returncode:
        logs = [f"--- {log.name}\n{log.read_text(errors='replace')[-2500:]}" for log in sorted(run.rglob("*.log"))]
        raise RuntimeError("\n".join([output[-3000:], *logs]))
    return output


def report(run: Path) -> dict[str, Any]:
    """Of `lemix report`."""
    done = subprocess.run([*LEMIX, "report", str(run), "--json"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lines(run: Path, name: str) -> Iterator[dict[str, Any]]:
    with (run / name).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def losses(run: Path) -> list[float]:
    """Of the micro-batches, in the order of the training text."""
    trained = [task for task in lines(run, "tasks.jsonl") if task["kind"] == "training"]
    return [task["loss"] for task in sorted(trained, key=lambda task: int(task["id"][1:]))]


def scores(run: Path) -> dict[tuple[str, int], float]:
    """Of the requests, by id and the weight version that served them."""
    served = [task for task in lines(run, "tasks.jsonl") if task["kind"] == "serving"]
    return {(task["id"], task["versions"][0]): task["nll"] for task in served if task["outcome"] == "finished"}


def outputs(run: Path) -> dict[str, list[int]]:
    """The tokens that were generated for each request."""
    served = [task for task in lines(run, "tasks.jsonl") if task["kind"] == "serving"]
    return {task["id"]: task["output"] for task in served if task["outcome"] == "finished"}


def misplaced_forwards(run: Path) -> list[dict[str, Any]]:
    """Training forwards under other weights than those of all steps before their group: none in a synchronous run."""
    found = []
    for work in stream_run(run).stretches():
        if work.kind == "forward":
            number = int(work.task[1:])
            if work.version != number // MICRO_BATCHES_PER_STEP:
                found.append({"micro-batch": number, "stage": work.stage, "version": work.version})
    return found


def last_checkpoint(run: Path) -> Checkpoint:
    """What the run has saved at its end."""
    return Checkpoint.read(complete_paths(run / CHECKPOINTS)[-1])


def kept_weights(run: Path) -> dict[str, torch.Tensor]:
    """The float32 weights after the last step, by their names."""
    files = sorted(last_checkpoint(run).path.glob("*.safetensors"))
    named = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith((FIRST_MOMENT, SECOND_MOMENT))}


def mixed_batches(run: Path) -> int:
    """Serving batches whose stages used different weight versions."""
    versions: dict[int, set[int]] = {}
    for work in stream_run(run).stretches():
        if work.kind == "serve":
            versions.setdefault(work.batch, set()).add(work.version)
    return sum(len(seen) > 1 for seen in versions.values())
