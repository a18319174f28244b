"""vLLM through our stages against stock vLLM, with and without training in the background: ratios of one run.

    python benchmarks/vllm_serving.py

One client, vLLM's own serving benchmark, asks servers with two pipeline stages each, one after the other: stock vLLM (`mp`),
the same without packing the weights for its CPU kernels, a run of ours that only serves, one that trains, too, and one that
trains with `engine.vllm.weights: copy`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from lemix_hpc.records.reader import stream_run

ROOT = Path(__file__).resolve().parents[1]
SUMS = ROOT / "recipes" / "data" / "sums.jsonl"
START_S = 300.0
KEY = "of-this-benchmark"
STAGES = 2
MODEL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Asked:
    """What the client measured, and when [s, this host's wall clock]."""

    result: dict[str, Any]
    begin: float
    end: float


def environment() -> dict[str, str]:
    settings = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "LEMIX_API_KEY": KEY,  # of ours, and of the client
        "OPENAI_API_KEY": KEY,
    }
    # Two stages on one NUMA node, which stock vLLM would refuse to bind.
    return os.environ | settings | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": str(ROOT)}


def make_model(directory: Path) -> None:
    """A Llama of 28 million parameters in float32, initialised at random."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lemix_hpc.workload.byte_level import byte_level_tokenizer

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**MODEL)).to(torch.float32).save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)


@contextmanager
def stock(model: Path, port: int, worker: str, batch: int = 256) -> Iterator[str]:
    """Stock vLLM with two stages and so many requests in a batch at most, on a worker of `stock_worker.py`."""
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model)]
    command += ["--served-model-name", "model", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--pipeline-parallel-size", str(STAGES), "--distributed-executor-backend", "mp"]
    command += ["--max-num-seqs", str(batch), "--max-num-batched-tokens", "4096"]
    command += ["--kv-cache-memory-bytes", "250000000"]
    command += ["--worker-cls", f"benchmarks.stock_worker.{worker}"]
    with started(command, model.parent / f"{worker}.log"):
        address = f"http://127.0.0.1:{port}"
        await_answer(address)
        yield address


@contextmanager
def ours(model: Path, directory: Path, *, training: bool, weights: str = "shared", batch: int = 256) -> Iterator[str]:
    """A run of ours, with so many requests in a batch at most; `directory` has what it wrote once it is closed."""
    recipe: dict[str, Any] = {
        "name": "model",
        "nodes": {"stages": STAGES},
        "model": {"path": str(model)},
        "engine": {"kind": "vllm", "vllm": {"weights": weights}, "max_batch_requests": batch},
        "serving": {"http": {"port": 0}},
        "policy": {"minimum_training_share": 0.0},
    }
    if training:
        data = {"data": {"path": str(SUMS)}, "sequence_length": 64, "micro_batch_size": 1, "learning_rate": 1e-4}
        recipe["training"] = data | {"micro_batches_per_step": 4}
    path = directory.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    command = [
        str(Path(sys.executable).with_name("lemix")),
        "run",
        str(path),
        "--cluster",
        "local",
        "--out",
        str(directory),
    ]
    with started(command, directory.with_suffix(".log")):
        address = await_address(directory)
        await_answer(address)
        yield address
        closed(directory)


@contextmanager
def started(command: list[str], log: Path) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), cwd=ROOT)
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(120)


def await_address(directory: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        progress = directory / "progress.json"
        if progress.exists() and (address := json.loads(progress.read_text()).get("address")):
            return str(address)
        time.sleep(0.5)
    raise TimeoutError(f"no address in {directory}")


def await_answer(address: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"{address} did not come up")


def closed(directory: Path) -> None:
    """Let a run end by itself, with its report: TERM to the rank that has the endpoint."""
    log = (directory / "logs" / "attempt-0" / "rank-0.log").read_text()
    process = int(log.split("TERM to process ")[1].split()[0])
    os.kill(process, signal.SIGTERM)
    end = time.monotonic() + 120
    while not (directory / "report.json").exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{directory} did not end")
        time.sleep(0.5)


def ask(address: str, model: Path, served_name: str, prompts: int, clients: int = 8) -> Asked:
    """vLLM's serving benchmark: 64 random tokens in, 64 out, so many clients at a time."""
    command = [sys.executable, "-m", "benchmarks.stock_client", "--backend", "openai", "--base-url", address]
    command += ["--model", served_name, "--tokenizer", str(model), "--endpoint", "/v1/completions", "--seed", "1"]
    command += ["--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "64", "--ignore-eos"]
    command += ["--num-prompts", str(prompts), "--max-concurrency", str(clients)]
    command += ["--num-warmups", "8", "--disable-tqdm"]
    command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99", "--save-result"]
    with tempfile.TemporaryDirectory() as directory:
        command += ["--result-dir", directory, "--result-filename", "result.json"]
        begin = time.time()
        done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return Asked(json.loads((Path(directory) / "result.json").read_text()), begin, time.time())


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)


def work_of(directory: Path) -> list[dict[str, Any]]:
    """What stages did in a run."""
    return list(map(msgspec.to_builtins, stream_run(directory).stretches()))


def stage_shares(directory: Path) -> tuple[float, float]:
    """Shares of stage time, while there was serving, that serving and training took."""
    spans = work_of(directory)
    serve = [span for span in spans if span["kind"] == "serve"]
    begin, end = min(span["start"] for span in serve), max(span["end"] for span in serve)
    batches = {(span["stage"], span["batch"]): span["end"] - span["start"] for span in serve}
    trained = sum(
        min(span["end"], end) - max(span["start"], begin)
        for span in spans
        if span["kind"] != "serve" and span["end"] > begin and span["start"] < end
    )
    whole = STAGES * (end - begin)
    return sum(batches.values()) / whole, trained / whole


def pass_times(directory: Path) -> list[float]:
    """Median milliseconds of a batch on each stage."""
    serve = [span for span in work_of(directory) if span["kind"] == "serve"]
    return [
        statistics.median(1e3 * (span["end"] - span["start"]) for span in serve if span["stage"] == stage)
        for stage in range(STAGES)
    ]


def update_latency(directory: Path) -> float:
    """Median seconds from the end of a step's last backward on the first stage to the first batch under the new weights."""
    spans = [span for span in work_of(directory) if span["stage"] == 0]
    backwards = sorted(span["end"] for span in spans if span["kind"] == "backward")
    first: dict[int, float] = {}
    for span in spans:
        if span["kind"] == "serve":
            first[span["version"]] = min(first.get(span["version"], span["end"]), span["end"])
    published: dict[int, float] = {}
    for span in spans:
        if span["kind"] == "step":
            published[span["version"] + 1] = max(published.get(span["version"] + 1, 0.0), span["end"])
    delays: list[float] = []
    for version, served in first.items():
        before = [end for end in backwards if end <= published.get(version, -1.0)]
        if before:
            delays.append(served - before[-1])
    return statistics.median(delays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch-requests", type=int, default=256, help="in a batch at most, of all servers")
    parser.add_argument("--port", type=int, default=8317)
    parser.add_argument("--keep", type=Path, default=None, help="directory for models, runs and logs")
    options = parser.parse_args()
    base = options.keep or Path(tempfile.mkdtemp(prefix="lemix-bench-"))
    base.mkdir(parents=True, exist_ok=True)
    model = base / "model"
    make_model(model)
    results: dict[str, Asked] = {}
    for name, worker in (("stock", "EagerPipelineWorker"), ("unpacked", "UnpackedWorker")):
        with stock(model, options.port, worker, options.batch_requests) as address:
            results[name] = ask(address, model, "model", options.prompts, options.clients)
    for name, training, weights in (
        ("serving", False, "shared"),
        ("training", True, "shared"),
        ("copying", True, "copy"),
    ):
        with ours(model, base / name, training=training, weights=weights, batch=options.batch_requests) as address:
            results[name] = ask(address, model, "model", options.prompts, options.clients)
    report(results, base)


def report(results: dict[str, Asked], base: Path) -> None:
    keys = ("output_throughput", "median_itl_ms", "p99_itl_ms", "median_ttft_ms", "p99_ttft_ms", "mean_e2el_ms")
    print(f"{'':10}" + "".join(f"{key:>20}" for key in keys))
    for name, asked in results.items():
        print(f"{name:10}" + "".join(f"{asked.result[key]:20.2f}" for key in keys))
    serving, training = (results[name].result for name in ("serving", "training"))
    print()
    for key in ("output_throughput", "median_itl_ms", "p99_itl_ms"):
        stocks = ", ".join(
            f"ours / {name} {serving[key] / results[name].result[key]:.2f}" for name in ("stock", "unpacked")
        )
        print(f"{key}: {stocks}, training / serving {training[key] / serving[key]:.2f}")
    served, trained = stage_shares(base / "training")
    rest = trained / (1 - served)
    print(f"stage time while serving: {served:.0%} serving, {trained:.0%} training, which is {rest:.0%} of the rest")
    for name in ("serving", "training"):
        print(f"{name}: a batch took {', '.join(f'{took:.2f}' for took in pass_times(base / name))} ms on the stages")
    for name in ("training", "copying"):
        delay = 1e3 * update_latency(base / name)
        print(f"{name}: {delay:.1f} ms from the last backward to the first batch on new weights")
    for name in ("serving", "training"):
        for what, end, key in (
            ("response", "finished", "mean_e2el_ms"),
            ("first token", "first_token", "mean_ttft_ms"),
        ):
            ours_ms, client_ms = 1e3 * mean_until(end, base / name, results[name]), results[name].result[key]
            both = f"{client_ms:.1f} ms by the client, {ours_ms:.1f} ms by the run ({ours_ms / client_ms - 1:+.1%})"
            print(f"{name}: mean {what} {both}")


def mean_until(end: str, directory: Path, asked: Asked) -> float:
    """Mean seconds from arrival to `end` of the client's counted requests, by the run: the last ones, after its warm-up."""
    served = [task for task in lines(directory / "tasks.jsonl") if task["kind"] == "serving" and task["finished"]]
    counted = sorted(served, key=lambda task: task["arrival"])[-int(asked.result["completed"]) :]
    return statistics.mean(float(task[end] - task["arrival"]) for task in counted)


if __name__ == "__main__":
    main()
