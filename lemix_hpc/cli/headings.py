"""What the figures of runs are called in tables, with their units, and how their values are written."""

from __future__ import annotations

SHARES = ("bubble_rate", "limits_met", "training_stage_share", "fullest_stage")
HEADINGS = {
    "throughput": "tasks/s",
    "per_active_node": "tasks/node-s",
    "limits_met": "limits",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "ttft_p99_ms": "first token p99 ms",
    "tpot_p99_ms": "per token p99 ms",
    "bubble_rate": "idle",
    "active_nodes": "nodes",
    "trained": "trained",
    "training_tokens_per_s": "trained tokens/s",
    "tokens_per_stage_s": "tokens/serving stage-s",
    "batch_tokens_per_s": "batch tokens/s",
    "micro_batches_per_s": "trained/s",
    "steps_per_s": "steps/s",
    "hold_mean_s": "hold s",
    "hold_max_s": "longest",
    "training_stage_share": "training of stage time",
    "fullest_stage": "fullest stage",
}


def heading(name: str) -> str:
    """Of a figure of `lemix_hpc.studies.sweep.figures`, or a ratio of it."""
    return f"SLO {name.removeprefix('slo_')}" if name.startswith("slo_") else HEADINGS.get(name, name)


def shown(name: str, value: float | None) -> str:
    """A figure of that name."""
    from lemix_hpc.report.table import number, percent

    return percent(value) if name.startswith("slo_") or name in SHARES else number(value)
