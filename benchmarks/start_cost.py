"""What a rank computes before it can work: processor seconds of its imports and of building its part, by kind of rank.

    python benchmarks/start_cost.py [--repeats 3] [--engine torch]

Each rank is a process of its own without MPI, on one thread; the least of the repeats is shown. The model is tiny.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
COEFFICIENTS = ROOT / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"
MODEL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 257}
ENGINES = {
    "torch, float32": {"kind": "torch", "dtype": "float32", "device": "cpu"},
    "torch, bfloat16": {"kind": "torch", "dtype": "bfloat16", "device": "cpu"},
    "emulated": {"kind": "emulated", "coefficients": str(COEFFICIENTS)},
}
RANK = """
import sys, time
from pathlib import Path
import lemix_hpc.launch.entry, lemix_hpc.runtime.main
from lemix_hpc.config.load import load_recipe
recipe = load_recipe(Path(sys.argv[2]))
"""
KINDS = {
    "stage": """
from lemix_hpc.engines.build import build_engine, choose_device
build_engine(recipe, node=0, stage=0, device=choose_device(recipe, 0))
""",
    "leader": "",
    "scheduler": """
from lemix_hpc.policy.scheduler import compile_policy
from lemix_hpc.report.build import build_report
from lemix_hpc.runtime.scheduler.rank import SchedulerRank
from lemix_hpc.workload.load import load_workload
load_workload(recipe)
compile_policy()
""",
}


def recipe(engine: dict[str, str]) -> dict[str, object]:
    source = {"kind": "poisson", "rate": 1.0, "requests": 10, "lengths": "lmsys-chat"}
    training = {"data": {"path": str(ROOT / "recipes" / "data" / "sums.jsonl")}, "sequence_length": 64}
    return {
        "name": "start",
        "nodes": {"stages": 2},
        "model": {"config": MODEL},
        "engine": engine,
        "serving": {"source": source},
        "training": training,
    }


def seconds(kind: str, path: Path) -> float:
    code = RANK + KINDS[kind] + "print(time.process_time())"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, kind, str(path)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--engine", choices=sorted({engine["kind"] for engine in ENGINES.values()}), help="by default all"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "recipe.yaml")
        for name, engine in ENGINES.items():
            if args.engine not in (None, engine["kind"]):
                continue
            path.write_text(yaml.safe_dump(recipe(engine)))
            for kind in KINDS:
                least = min(seconds(kind, path) for _ in range(args.repeats))
                print(f"{name:<16} {kind:<10} {least:6.2f} s")


if __name__ == "__main__":
    main()
