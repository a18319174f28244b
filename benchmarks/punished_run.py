"""A run whose ranks are killed again and again, beside one that is left alone: what is lost, done twice, and how long it takes.

    python benchmarks/punished_run.py --kills 20
    python benchmarks/punished_run.py --kills 20 --engine vllm --nodes 1

Two nodes of two stages serve a Poisson stream and train together (`release: sync`, `across_nodes: sync`, float32), so that both
runs must end with the same weights, to the last bit. Recovery is the time from a kill to the next answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from lemix_hpc.launch.punish import Punisher
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import read_progress
from lemix_hpc.records.reader import read_run

REPOSITORY = Path(__file__).resolve().parents[1]
LEMIX = str(Path(sys.executable).with_name("lemix"))


def recipe(args: argparse.Namespace) -> dict[str, Any]:
    model = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 257,
        "max_position_embeddings": 512,
    }
    training = {
        "data": {"path": str(REPOSITORY / "recipes" / "data" / "sums.jsonl")},
        "sequence_length": 64,
        "micro_batch_size": 2,
        "micro_batches_per_step": 2,
        "micro_batches": args.micro_batches,
        "release": "sync",
        "across_nodes": "sync" if args.nodes > 1 else "local",
        "gradient_clipping": 1.0,
        "checkpoint": {"every_steps": args.every_steps},
    }
    return {
        "name": "punished",
        "seed": 1,
        # Kills come faster than a run would get anywhere that gives up after three of them.
        "cluster": {"restarts": args.kills},
        "nodes": {"count": args.nodes, "stages": 2},
        "model": {"config": model},
        "engine": {"kind": args.engine, "dtype": "float32"},
        "serving": {
            "source": {"kind": "poisson", "rate": args.rate, "requests": args.requests, "lengths": "lmsys-chat"},
            "max_prompt_tokens": 64,
        },
        "training": training,
    }


@dataclasses.dataclass
class Punishment:
    """Seconds from each kill to the next answer; kills that were followed by another one before have none."""

    kills: int = 0
    recoveries: list[float] = dataclasses.field(default_factory=list)


def run(recipe: Path, out: Path, punish: argparse.Namespace | None) -> Punishment:
    """Run to the end, and kill ranks meanwhile. Raises RuntimeError if it failed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(out.parent / "state")}
    command = [LEMIX, "run", str(recipe), "--cluster", "local", "--json", "--out", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told = Punishment()
    if punish is not None:
        directory = RunDir(out.absolute())
        while not directory.record.exists():
            time.sleep(0.1)
        punisher = Punisher(directory, ("rank",), mean_s=punish.mean_seconds, pause_s=1.0, seed=punish.seed)
        for blow in punisher.blows(punish.kills):
            struck, before = time.time(), answered(directory)
            told.kills += 1
            while answered(directory) <= before and process.poll() is None:
                time.sleep(0.1)
            told.recoveries.append(time.time() - struck)
            print(f"kill {told.kills}: {blow.what}, next answer after {told.recoveries[-1]:.1f} s", flush=True)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(output)
    return told


def answered(run: RunDir) -> tuple[int, int]:
    """By which attempt, and how many before it and by it."""
    progress, attempt = read_progress(run), run.last_attempt
    served = (
        -1 if progress is None or attempt is None or not (attempt.path / "facts.json").exists() else progress.served
    )
    return (-1 if attempt is None else attempt.number), served


def compare(alone: Path, punished: Path) -> list[tuple[str, str]]:
    """What has become of the tasks and the weights."""
    one, other = read_run(alone), read_run(punished)
    outcomes = Counter(task.outcome for task in other.served)
    ids = Counter(task.id for task in [*other.served, *other.trained])
    steps = {task.step for task in other.trained}
    forwards, counted = passes(punished, "forward"), len(other.trained)
    answers = passes(punished, "serve")
    losses = [{task.id: task.loss for task in each.trained} for each in (one, other)]
    return [
        ("requests", f"{len(other.served)}, of them finished {outcomes['finished']}"),
        ("lost", str(len(one.served) - outcomes["finished"])),
        ("duplicated", str(sum(count - 1 for count in ids.values()))),
        (
            "micro-batches",
            f"{counted} of {len(one.trained)}, in {len(steps)} steps of {len({t.step for t in one.trained})}",
        ),
        ("attempts", str(len(other.attempts))),
        ("requests served twice, at least", f"{max(0, answers - len(other.served))}"),
        ("micro-batches trained twice, at least", f"{forwards - counted} ({(forwards - counted) / counted:.1%})"),
        ("losses equal", str(losses[0] == losses[1])),
        ("final weights equal, to the last bit", str(equal_weights(alone, punished))),
    ]


def passes(run_dir: Path, kind: str) -> int:
    """Tasks that the first stages worked on, those of each attempt counted anew."""
    count = 0
    for spans in (run_dir / "attempts").glob("[0-9]*/spans.jsonl"):
        lines = [json.loads(line) for line in spans.read_text().splitlines(keepends=True) if line.endswith("\n")]
        count += len({(s["node"], s["task"]) for s in lines if s["stage"] == 0 and s["kind"] == kind and s["task"]})
    return count


def equal_weights(alone: Path, punished: Path) -> bool:
    """Whether the newest checkpoints have the same weights and moments."""
    newest = [max((run / "checkpoints").glob("step-*")) for run in (alone, punished)]
    names = sorted(path.name for path in newest[0].glob("*.safetensors"))
    if newest[0].name != newest[1].name or names != sorted(path.name for path in newest[1].glob("*.safetensors")):
        return False
    for name in names:
        one, other = (load_file(directory / name) for directory in newest)
        if one.keys() != other.keys() or not all(np.array_equal(one[key], other[key]) for key in one):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mean-seconds", type=float, default=8.0, help="of work between two kills")
    parser.add_argument("--engine", choices=["torch", "vllm"], default="torch")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--micro-batches", type=int, default=2000)
    parser.add_argument("--every-steps", type=int, default=20, help="between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(args)))
        run(path, directory / "alone", None)
        told = run(path, directory / "punished", args)
        print(f"\n{args.engine}, {args.nodes} nodes x 2 stages, {told.kills} kills")
        for what, value in compare(directory / "alone", directory / "punished"):
            print(f"{what:<38} {value}")
        if told.recoveries:
            ordered = sorted(told.recoveries)
            print(f"{'recovery, median / longest':<38} {statistics.median(ordered):.1f} s / {ordered[-1]:.1f} s")


if __name__ == "__main__":
    main()
