"""What pacing decode is worth where stages compute: runs of torch and vLLM on two cores, paced against unpaced.

    python benchmarks/paced_generation.py [--engines torch vllm] [--requests 80] [--rate 4] [--rounds 1] [--keep DIRECTORY]

Each engine answers the same requests on 1 node x 2 stages of a tiny Llama: alone, and with training that has no end, unpaced
and paced in turn for some rounds, of which the table has the medians. The limit on the time per token is three times its
median alone. Training steps are so small that no weight changes in float32 (they cost what others cost), so all runs must
answer with the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SUMS = ROOT / "recipes" / "data" / "sums.jsonl"
LIMIT = 3.0
"""On the time per token, in its median without training."""
FIRST_TOKEN = 10.0
"""The limit on the time to the first token, in limits on the time per token."""
MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
TRAINING = {
    "data": {"path": str(SUMS)},
    "sequence_length": 64,
    "micro_batch_size": 2,
    "micro_batches_per_step": 4,
    "learning_rate": 1e-30,
}
COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "training tokens/s": lambda report: report["training"]["tokens_per_s"],
    "inter-token p50, ms": lambda report: report["serving"]["inter_token_ms"]["p50"],
    "inter-token p99, ms": lambda report: report["serving"]["inter_token_ms"]["p99"],
    "per token p50, ms": lambda report: report["serving"]["tpot_ms"]["p50"],
    "first token p50, ms": lambda report: report["serving"]["ttft_ms"]["p50"],
    "first token p95, ms": lambda report: report["serving"]["ttft_ms"]["p95"],
    "requests in a pass": lambda report: report["serving"]["mean_batch"],
}


@dataclass(frozen=True)
class Finished:
    """The report of a run, and the tokens of each answer."""

    report: dict[str, Any]
    tokens: dict[str, list[int]]


def run(engine: str, name: str, options: argparse.Namespace, base: Path, **sections: Any) -> Finished:
    """Run a recipe with these sections besides what all have."""
    source = {"kind": "poisson", "rate": options.rate, "requests": options.requests, "lengths": "lmsys-chat"}
    lengths = {"max_prompt_tokens": 96, "max_new_tokens": 48}
    recipe = {
        "name": f"{engine}-{name}",
        "nodes": {"stages": 2},
        "model": {"config": MODEL},
        "engine": {"kind": engine, "max_batch_requests": 32},
        "serving": {"source": source, "mode": "generate", "prompts": {"path": str(SUMS)}} | lengths,
    }
    path, out = base / f"{engine}-{name}.yaml", base / f"{engine}-{name}"
    path.write_text(yaml.safe_dump(recipe | sections))
    command = [str(Path(sys.executable).with_name("lemix")), "run", str(path), "--cluster", "local", "--out", str(out)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(base / "state")}
    done = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    tasks = map(json.loads, (out / "tasks.jsonl").read_text().splitlines())
    served = {task["id"]: task["output"] for task in tasks if task["kind"] == "serving"}
    return Finished(json.loads((out / "report.json").read_text()), served)


def compare(engine: str, options: argparse.Namespace, base: Path) -> dict[str, list[Finished]]:
    """The runs of an engine."""
    alone = run(engine, "alone", options, base)
    tpot = LIMIT * alone.report["serving"]["tpot_ms"]["p50"]
    limits = {"tpot_ms": tpot, "ttft_ms": FIRST_TOKEN * tpot}
    runs: dict[str, list[Finished]] = {"alone": [alone], "unpaced": [], "paced": []}
    for number in range(options.rounds):
        for name, pace in (("unpaced", "none"), ("paced", "slo")):
            sections = {"slo": limits, "training": TRAINING, "policy": {"pace": pace}}
            runs[name].append(run(engine, f"{name}-{number}", options, base, **sections))
    return runs


def median(runs: list[Finished], value: Callable[[dict[str, Any]], float | None]) -> float | None:
    """Over the rounds; None where it is not defined."""
    values = [each for each in (value(finished.report) for finished in runs) if each is not None]
    return statistics.median(values) if values else None


def tell(engine: str, runs: dict[str, list[Finished]]) -> None:
    limits = runs["paced"][0].report["pace_ms"]
    print(f"\n{engine}: {limits['tpot']:.1f} ms for each token, {limits['ttft']:.0f} ms for the first")
    print(f"{'':22}" + "".join(f"{name:>10}" for name in runs) + f"{'paced / unpaced':>18}")
    for column, value in COLUMNS.items():
        values = {name: median(rounds, value) for name, rounds in runs.items()}
        cells = "".join(f"{'' if each is None else format(each, '10.1f'):>10}" for each in values.values())
        paced, unpaced = values["paced"], values["unpaced"]
        print(f"{column:22}{cells}" + (f"{paced / unpaced:18.2f}" if paced and unpaced else ""))
    for limit in ("tpot", "ttft", "all"):
        means = [
            statistics.mean(finished.report["serving"]["slo_ms"][limit] for finished in runs[name])
            for name in ("unpaced", "paced")
        ]
        print(f"{'within ' + limit + ', %':22}{'':10}" + "".join(f"{100 * share:10.1f}" for share in means))
    expected = runs["alone"][0].tokens
    same = all(finished.tokens == expected for rounds in runs.values() for finished in rounds)
    answers = expected.values()
    print(f"{sum(map(len, answers))} tokens of {len(answers)} answers, the same in all runs: {'yes' if same else 'NO'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=["torch", "vllm"], default=["torch", "vllm"])
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--rate", type=float, default=4.0, help="requests per second")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="directory for recipes and runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lemix-bench-") as temporary:
        base = options.keep or Path(temporary)
        base.mkdir(parents=True, exist_ok=True)
        for engine in options.engines:
            tell(engine, compare(engine, options, base))


if __name__ == "__main__":
    main()
