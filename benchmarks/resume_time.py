"""How long a run of 30 million parameters takes to go on from its checkpoint, beside its first start, and what takes it.

    python benchmarks/resume_time.py [--requests 20000] [--layers 8] [--json]

A run on two stages is stopped by `lemix stop`, which saves, and resumed. Seconds from a command until its attempt is there,
knows what it goes on from, serves (engines are built and warm), has answered a request, and has made an optimizer step. Then
parts of it, each with nothing beside it: imports of a stage, building a stage, verifying the checkpoint, reading the stage's
state from it, and folding a journal of so many requests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import yaml
from checkpoint_cost import recipe  # type: ignore[import-not-found]  # beside this script

from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import FINAL, run_state
from lemix_hpc.records.attempts import Attempt, AttemptStart, claim
from lemix_hpc.records.journal import Accepted, Ended, Placed
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.schema import FACTS, PROGRESS, Progress, ServedTask

LEMIX = str(Path(sys.executable).with_name("lemix"))
PART = """
import sys, time
start = time.perf_counter()
def told(what):
    global start
    print(what, time.perf_counter() - start)
    start = time.perf_counter()
"""
STAGE = """
from pathlib import Path
import lemix_hpc.runtime.main
from lemix_hpc.engines.build import build_engine, choose_device
from lemix_hpc.config.load import load_recipe
import importlib, lemix_hpc.config.engine_kinds as kinds
recipe = load_recipe(Path(sys.argv[1]) / "recipe.yaml")
device = choose_device(recipe, 0)
importlib.import_module(kinds.ENGINE_KINDS[recipe.engine.kind].package + ".build")
told("imports of a stage")
engine = build_engine(recipe, node=0, stage=0, device=device)
told("building a stage")
from lemix_hpc.checkpoints.resumption import Resumption, find_checkpoint
state = Resumption(find_checkpoint(Path(sys.argv[1])), True).state(0)
told("verifying the checkpoint")
engine.restore(state)
told("reading a stage's state")
"""
FOLD = """
from pathlib import Path
from lemix_hpc.records.inheritance import inherit
start = time.perf_counter()
inherit(Path(sys.argv[1]), None)
told("folding the journal")
"""


@dataclass(frozen=True)
class Times:
    """Seconds from a command on."""

    attempt: float
    inherited: float
    serves: float
    answered: float
    stepped: float


def start(command: list[str], run: RunDir, number: int) -> Times:
    """Start an attempt, see it work, and stop it."""
    before = _progress(run, number - 1)
    attempt = Attempt(run.path / "attempts" / str(number))
    began = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    steps: tuple[Callable[[], bool], ...] = (
        attempt.path.exists,
        (attempt.path / "start.json").exists,
        (attempt.path / FACTS).exists,
        lambda: _progress(run, number).served > before.served,
        lambda: _progress(run, number).steps > before.steps,
    )
    times = []
    for step in steps:
        while not step():
            if attempt.ended is not None:
                raise SystemExit(f"the run has ended too soon: {attempt.ended.message}")
            time.sleep(0.02)
        times.append(time.monotonic() - began)
    subprocess.run([LEMIX, "stop", str(run.path)], check=True, stdout=subprocess.DEVNULL)
    while run_state(run, run.read_record()) not in FINAL:
        time.sleep(0.1)
    return Times(*times)


def _progress(run: RunDir, number: int) -> Progress:
    try:
        return msgspec.json.decode((run.path / "attempts" / str(number) / PROGRESS).read_bytes(), type=Progress)
    except FileNotFoundError:
        return Progress("starting")


def parts(run: RunDir, requests: int, directory: Path) -> dict[str, float]:
    """What a resumption takes by itself [s]."""
    folded = directory / "folded"
    folded.mkdir()
    attempt = claim(folded)
    attempt.start(AttemptStart(time=0.0, host="here"))
    journal = Journal(attempt.path)
    for number in range(requests):
        name = f"request-{number}"
        journal.append(Accepted(number, name, float(number), 64))
        journal.append(Placed(number, 0))
        task = ServedTask(name, "finished", float(number), 64, 0, float(number), 1.0, 1.0, 1.0, 64, number=number)
        journal.append(Ended(task))
    journal.close()
    found: dict[str, float] = {}
    for script, argument in ((STAGE, run.path), (FOLD, folded)):
        done = subprocess.run(
            [sys.executable, "-c", PART + script, str(argument)], check=True, capture_output=True, text=True
        )
        found |= {what: float(took) for what, took in (line.rsplit(" ", 1) for line in done.stdout.splitlines())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20000, help="in the journal that is folded")
    parser.add_argument("--layers", type=int, default=8, help="of the model; 30 million parameters are in 8")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["XDG_STATE_HOME"] = str(directory / "state")
        path, run = directory / "recipe.yaml", RunDir(directory / "run")
        content = recipe(seconds=600.0, every=1000.0, rate=5.0, engine="torch") | {"report": {"live_interval_s": 0.1}}
        content["model"] = {"config": content["model"]["config"] | {"num_hidden_layers": args.layers}}
        path.write_text(yaml.safe_dump(content))
        first = start([LEMIX, "submit", str(path), "--cluster", "local", "--out", str(run.path)], run, 0)
        resumed = start([LEMIX, "resume", str(run.path), "--cluster", "local"], run, 1)
        alone = parts(run, args.requests, directory)
    if args.json:
        print(json.dumps({"first": asdict(first), "resumed": asdict(resumed), "parts": alone}))
        return
    print(f"{'seconds until':<28} {'first start':>11} {'resumed':>8}")
    for what, seconds in asdict(first).items():
        print(f"{what:<28} {seconds:11.1f} {asdict(resumed)[what]:8.1f}")
    print()
    for what, seconds in alone.items():
        print(f"{what:<28} {seconds:8.2f}")


if __name__ == "__main__":
    main()
