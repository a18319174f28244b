"""A run whose ranks are killed again and again, beside one that is left alone: what is lost, done twice, and how long it takes.

    python benchmarks/punished_run.py --kills 20
    python benchmarks/punished_run.py --kills 20 --engine vllm --nodes 1

Two nodes of two stages serve a Poisson stream and train together (`release: sync`, `across_nodes: sync`, float32), so that both
runs must end with the same weights, to the last bit. Kills are spread over the answers: each comes at a random instant of its
stretch. Recovery is the time from a kill to the next answer, and what of it has passed when the attempt was seen to have ended,
the next one was there, knew what it goes on from, and worked.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import yaml
from safetensors.numpy import load_file

from lemix_hpc.launch.punish import ranks
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.records.attempts import Attempt
from lemix_hpc.records.parts import read_lines
from lemix_hpc.records.reader import read_run
from lemix_hpc.records.schema import PROGRESS, SPANS, Progress
from lemix_hpc.records.stretches import stretches_decoder

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
        # Two stages may have to share a GPU.
        "engine": {"kind": args.engine, "dtype": "float32", "share_devices": args.engine == "torch"},
        "serving": {
            "source": {"kind": "poisson", "rate": args.rate, "requests": args.requests, "lengths": "lmsys-chat"},
            "max_prompt_tokens": 64,
        },
        "training": training,
        # Answers are counted by the live figures.
        "report": {"live_interval_s": 0.1},
    }


@dataclass(frozen=True)
class Recovery:
    """Seconds from a kill until: the attempt was seen to have ended, there was another, it knew what it goes on from, its
    engines were built and warm, and it had answered a request."""

    ended: float
    started: float
    inherited: float
    works: float
    answered: float


@dataclass(frozen=True)
class Punishment:
    recoveries: list[Recovery]
    seconds: float


def run(recipe: Path, out: Path, punish: argparse.Namespace | None) -> Punishment:
    """Run to the end, and kill ranks meanwhile. Raises RuntimeError if it failed."""
    began, recoveries = time.monotonic(), []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(out.parent / "state")}
    command = [LEMIX, "run", str(recipe), "--cluster", "local", "--json", "--out", str(out)]
    with (out.parent / "printed").open("w+") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
        if punish is not None:
            chance, directory = random.Random(punish.seed), RunDir(out.absolute())
            for number in range(punish.kills):
                # At a random instant of each of as many stretches of the work, the last of which is left alone.
                due = punish.requests * (number + chance.random()) / (punish.kills + 1)
                if _until(partial(has_served, directory, due), process) is None:
                    break
                recoveries.append(_strike(directory, process, chance))
                times = ", ".join(f"{what} {seconds:.1f}" for what, seconds in asdict(recoveries[-1]).items())
                print(f"kill {number + 1} at {due:.0f} answers: {times} s", flush=True)
        if process.wait():
            printed.seek(0)
            raise RuntimeError(printed.read())
    return Punishment(recoveries, time.monotonic() - began)


def _strike(run: RunDir, process: subprocess.Popen[bytes], chance: random.Random) -> Recovery:
    """Kill a rank, and see the run go on."""
    struck, attempt, before = time.monotonic(), run.last_attempt, served(run)
    assert attempt is not None, "it has answered"
    next_attempt = Attempt(attempt.path.with_name(str(attempt.number + 1)))
    os.kill(chance.choice(sorted(ranks(run))), signal.SIGKILL)
    steps = (
        lambda: attempt.ended is not None,
        next_attempt.path.exists,
        lambda: next_attempt.started is not None,
        (next_attempt.path / "facts.json").exists,
        lambda: served(run, next_attempt) > before,
    )
    times = [_until(step, process) for step in steps]
    return Recovery(*(math.nan if time is None else time - struck for time in times))


def _until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> float | None:
    """When it has become true; None if the run is over before."""
    while not true():
        if process.poll() is not None:
            return None
        time.sleep(0.02)
    return time.monotonic()


def served(run: RunDir, attempt: Attempt | None = None) -> int:
    """Answers so far, by all attempts up to the last one, or up to this one."""
    attempt = attempt or run.last_attempt
    try:
        return (
            0 if attempt is None else msgspec.json.decode((attempt.path / PROGRESS).read_bytes(), type=Progress).served
        )
    except FileNotFoundError:
        return 0


def has_served(run: RunDir, count: float) -> bool:
    return served(run) >= count


def compare(alone: Path, punished: Path) -> list[tuple[str, str]]:
    """What has become of the tasks and the weights."""
    one, other = read_run(alone), read_run(punished)
    outcomes = Counter(task.outcome for task in other.served)
    ids = Counter([*(task.id for task in other.served), *(task.id for task in other.trained)])
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
    count, decode = 0, stretches_decoder()
    for attempt in (run_dir / "attempts").glob("[0-9]*"):
        if (attempt / SPANS).exists():
            work = (stretch for line in read_lines(attempt / SPANS) for stretch in decode(line.text))
            count += len({(s.node, task) for s in work if s.stage == 0 and s.kind == kind for task in s.members})
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
    parser.add_argument("--engine", choices=["torch", "vllm"], default="torch")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--micro-batches", type=int, default=2000)
    parser.add_argument("--every-steps", type=int, default=10, help="between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(args)))
        alone = run(path, directory / "alone", None)
        told = run(path, directory / "punished", args)
        print(f"\n{args.engine}, {args.nodes} nodes x 2 stages, {len(told.recoveries)} kills")
        for what, value in compare(directory / "alone", directory / "punished"):
            print(f"{what:<38} {value}")
        print(f"{'whole run, alone and punished':<38} {alone.seconds:.0f} s, {told.seconds:.0f} s")
    print("\nseconds from a kill until    median  longest")
    for step in Recovery.__annotations__:
        times = [getattr(recovery, step) for recovery in told.recoveries]
        times = [each for each in times if not math.isnan(each)]
        if times:
            print(f"  {step:<24} {statistics.median(times):8.1f} {max(times):8.1f}")


if __name__ == "__main__":
    main()
