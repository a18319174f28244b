"""Two stages of vLLM on one device serve and train: what they say is what one process on the CPU says with the same weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import small_run
from benchmarks.gpu_check.report import Report, SkippedError
from benchmarks.gpu_check.shapes import on_gpu
from benchmarks.gpu_check.two_stages import CLOSE, compare_run

GENERATED = 12
"""Tokens of an answer, at most."""
ALIKE = 0.95
"""Part of the answers that must be the CPU's, token by token: random weights have near ties."""


@dataclass(frozen=True)
class Variant:
    """`args`: of vLLM; `environment`: how it is told which of its parts to use."""

    dtype: str
    args: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    only_on_gpu: bool = True


VARIANTS = {
    "eager": Variant("float32", {"enforce_eager": True}, only_on_gpu=False),
    "float32": Variant("float32"),
    "bfloat16": Variant("bfloat16"),
    "runner-2": Variant("float32", environment={"VLLM_USE_V2_MODEL_RUNNER": "1"}),
}


def check(device: str, report: Report) -> None:
    if find_spec("vllm") is None:
        raise SkippedError("vLLM is not installed")
    out = Path(os.environ["GPU_CHECK_OUT"]) / "runs"
    kind = "cuda" if on_gpu(device) else "cpu"
    known = out / "cpu-float32"
    if not (known / "tasks.jsonl").exists():
        small_run.finish(small_run.start(small_run.recipe("cpu", "float32"), out), known)
    variants = {name: variant for name, variant in VARIANTS.items() if kind == "cuda" or not variant.only_on_gpu}
    started = {
        name: small_run.start(serving(name, kind, variant), out, variant.environment)
        for name, variant in variants.items()
    }
    asked, answered = generating("vllm-asked", "cpu", small_run.TORCH), generating("vllm-answered", kind, engine())
    generate = [small_run.start(recipe, out) for recipe in (asked, answered)]
    for name, variant in variants.items():
        run = out / f"vllm-{name}"
        try:
            small_run.finish(started[name], run)
        except RuntimeError as error:
            print(error)
            report.expect(False, f"{name}: the run failed")
            continue
        compare_run(name, CLOSE[variant.dtype], run, known, report)
    for process, recipe in zip(generate, (asked, answered), strict=True):
        small_run.finish(process, out / recipe["name"])
    compare_tokens(small_run.outputs(out / "vllm-asked"), small_run.outputs(out / "vllm-answered"), report)


def engine(args: dict[str, Any] | None = None) -> dict[str, Any]:
    """Both stages have little of the GPU that they share."""
    given = {"gpu_memory_utilization": 0.2} | (args or {})
    return {"kind": "vllm", "max_batch_requests": 8, "vllm": {"kv_cache_gb": 0.5, "args": given}}


def serving(name: str, kind: str, variant: Variant) -> dict[str, Any]:
    """Scores, while the weights change."""
    made = small_run.recipe(kind, variant.dtype)
    changed = {"device": kind, "dtype": variant.dtype, "share_devices": True}
    return made | {"name": f"vllm-{name}", "engine": engine(variant.args) | changed}


def generating(name: str, kind: str, engine: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens, with the weights of the start."""
    made = small_run.recipe(kind, "float32")
    del made["training"]
    answers = {"mode": "generate", "max_new_tokens": GENERATED}
    changed = {"device": kind, "dtype": "float32", "share_devices": True}
    return made | {"name": name, "engine": engine | changed, "serving": made["serving"] | answers}


def compare_tokens(known: dict[str, list[int]], found: dict[str, list[int]], report: Report) -> None:
    alike = sum(found.get(request) == tokens for request, tokens in known.items()) / len(known)
    report.figure("answers_that_are_the_cpus", alike)
    report.figure("tokens_generated", sum(map(len, found.values())))
    report.expect(len(found) == small_run.REQUESTS, f"{len(found)} requests were answered")
    report.expect(alike >= ALIKE, f"only {alike:.0%} of the answers are the CPU's")
