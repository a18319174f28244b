"""Stages that are short of memory: training moves to the host and back, and what it learns is what it learns with room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import small_run
from benchmarks.gpu_check.report import Report, SkippedError
from benchmarks.gpu_check.shapes import on_gpu
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.memory_plan import CONTEXT, stage_takes
from lemix_hpc.engines.protocol import StageTakes

TOKENS = 2048
GROUP = 8
MICRO_BATCHES = 32
CLOSE = 1e-5
"""Largest relative difference of a loss from that of the run with room."""
FITS = 3
"""So many of the micro-batches of a group fit at once by the recipe; by the allocator one more, which has fragments, too."""


def check(device: str, report: Report) -> None:
    if not on_gpu(device):
        raise SkippedError("a CPU has no memory of its own; tests/runtime/test_memory_in_turn.py has the same there")
    out = Path(os.environ["GPU_CHECK_OUT"]) / "runs"
    takes = [stage_takes(Recipe.model_validate(recipe("x", None)), stage, None, cuda=True) for stage in (0, 1)]
    short, real, plenty = (max(needed(stage, count) for stage in takes) for count in (FITS, FITS + 1, 4 * GROUP))
    total = torch.cuda.mem_get_info(device)[1]
    # What the plan counts for the context is not of the allocator.
    refuses_at = (real - CONTEXT) / total
    report.figure("GB of a stage, by the recipe and by the allocator", [short / 1e9, refuses_at * total / 1e9])
    runs = {
        "room": small_run.start(recipe("memory-room", None), out),
        "accounts": small_run.start(recipe("memory-accounts", short), out),
        "allocator": small_run.start(
            recipe("memory-allocator", plenty),
            out,
            {"PYTORCH_ALLOC_CONF": f"per_process_memory_fraction:{refuses_at:.4f}"},
        ),
    }
    for name, process in runs.items():
        small_run.finish(process, out / f"memory-{name}")
    known = small_run.losses(out / "memory-room")
    for name in ("accounts", "allocator"):
        compare(name, known, out / f"memory-{name}", report)
    told = sum(log.read_text().count("ran out of memory") for log in (out / "memory-allocator").rglob("*.log"))
    report.figure("allocator_ran_out", told)
    report.expect(told > 0, "the allocator was to refuse memory, and did not")


def needed(takes: StageTakes, micro_batches: int) -> float:
    """Bytes of a stage that holds so many micro-batches."""
    return takes.resting + takes.working + micro_batches * TOKENS * takes.activation_bytes


def recipe(name: str, capacity: float | None) -> dict[str, Any]:
    """All micro-batches of a group wait for their backwards at once, unless there is no room for them."""
    made = small_run.recipe("cuda", "float32")
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": TOKENS,
    }
    made["name"] = name
    made["model"]["config"] |= shape
    made["training"] |= {
        "sequence_length": TOKENS // 2,
        "micro_batch_size": 2,
        "schedule": "gpipe",
        "micro_batches_per_step": GROUP,
        "micro_batches": MICRO_BATCHES,
    }
    if capacity is not None:
        made["policy"] = {"memory": {"capacity_gb": capacity / 1e9, "kappa": 1.0, "max_wait_s": 0.0}}
    return made


def compare(name: str, known: list[float], run: Path, report: Report) -> None:
    found = small_run.losses(run)
    worst = max(abs(a - b) / a for a, b in zip(known, found, strict=True))
    report.figure(f"{name}_worst_loss_difference", worst)
    report.expect(worst < CLOSE, f"{name}: a loss differs by {worst:.2g} from that of the run with room")
    used = small_run.report(run)["memory"]
    report.figure(f"{name}_memory", {key: used[key] for key in ("offloads", "offloaded_bytes", "preemptions")})
    report.figure(f"{name}_stages", used["stages"])
    report.expect(used["offloads"] > 0, f"{name}: nothing was moved to the host")
