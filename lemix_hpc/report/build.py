"""From the records of a run to its `report.json`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.files import replace
from lemix_hpc.records.reader import RunRecords, read_run
from lemix_hpc.records.schema import PostedSample, ServedTask, TrainedTask
from lemix_hpc.report import metrics
from lemix_hpc.report.between_passes import handed_on, next_token
from lemix_hpc.report.classes import class_figures, milliseconds, of_class
from lemix_hpc.report.token_times import between_tokens, stage_shares

Section = dict[str, Any]
USES = ("received", "finished", "prompt_tokens", "output_tokens", "samples", "samples_trained")


def build_report(run_dir: Path) -> Section:
    """Read the run, write its `report.json` as a whole and return what was written; UserError for broken records."""
    report = summarise(read_run(run_dir))
    write_report(report, run_dir)
    return report


def write_report(report: Section, run_dir: Path) -> None:
    """Write `report.json` as a whole."""
    replace(run_dir / "report.json", msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def summarise(run: RunRecords) -> Section:
    """The report as plain data; every key is always there and None stands for undefined. See docs/metrics.md."""
    facts = run.facts
    time = metrics.stage_time(run.spans)
    batches = metrics.serving_batches(run.spans)
    errors = metrics.forecast_errors(of_class(run.served, "interactive"), facts.t0_s)
    outcomes = [task.outcome for task in run.served] + [task.outcome for task in run.trained]
    finished = outcomes.count("finished")
    of_first, of_each = metrics.token_forecast_errors(of_class(run.served, "interactive"))
    stage_seconds = facts.nodes * facts.stages * time.makespan
    shares = stage_shares(run.served, run.spans, stage_seconds)
    return {
        "policy": facts.policy,
        "engine": facts.engine,
        "nodes": facts.nodes,
        "stages": facts.stages,
        "duration_s": facts.duration_s,
        "complete": run.complete,
        "attempts": [msgspec.to_builtins(attempt) for attempt in run.attempts],
        "serving": _serving(run, batches) | {"tokens_per_stage_s": _per_stage_second(run, shares, stage_seconds)},
        "training": _training(run, time),
        "throughput": {
            "per_makespan": metrics.per_makespan(finished, time),
            "per_active_node": metrics.per_active_node(finished, time),
        },
        "stage_time": shares,
        "between_passes_ms": metrics.distribution(_between(run), [50, 95], scale=1e3),
        "bubble_rate": metrics.bubble_rate(time, facts.stages),
        "forecast_error_t0": metrics.distribution(errors, [95]),
        "forecast_error_tenths_t0": metrics.tenths(errors),
        "forecast_error_ttft_ms": metrics.distribution(of_first, [95], scale=1e3),
        "forecast_error_tpot_ms": metrics.distribution(of_each, [95], scale=1e3),
        "t0_ms": 1e3 * facts.t0_s,
        "pace_ms": {name: 1e3 * limit for name, limit in facts.pace_s.items()},
        "weight_versions": {
            "last": max((span.version for span in run.spans), default=None),
            "mixed_batches": batches.mixed,
        },
        "malformed_lines": facts.malformed_lines,
        "outside_range": facts.outside_range,
        "drift": msgspec.to_builtins(facts.drift),
        "memory": msgspec.to_builtins(facts.memory),
        "checkpoints": msgspec.to_builtins(facts.checkpoints),
        "across_nodes": msgspec.to_builtins(facts.across_nodes),
        "disk": msgspec.to_builtins(facts.disk),
        "changes": msgspec.to_builtins(facts.changes),
    }


def _serving(run: RunRecords, batches: metrics.ServingBatches) -> Section:
    served, facts = run.served, run.facts
    outcomes = [task.outcome for task in served]
    interactive = of_class(served, "interactive")
    gaps = _gaps(run)
    return {
        "received": len(served),
        "finished": outcomes.count("finished"),
        "rejected": outcomes.count("rejected"),
        "lost": outcomes.count("lost"),
        "aborted": outcomes.count("aborted"),
        "slo": {_factor(k): metrics.attainment(interactive, k * facts.t0_s) for k in facts.slo_factors},
        "slo_ms": metrics.attainments(interactive, facts.slo_ms),
        "response_ms": milliseconds(map(metrics.response, served)),
        "ttft_ms": milliseconds(map(metrics.time_to_first_token, served)),
        "tpot_ms": milliseconds(map(metrics.time_per_output_token, served)),
        "inter_token_ms": milliseconds(gap for of_service in gaps.values() for gap in of_service),
        "nll": metrics.mean_nll(served),
        "mean_batch": batches.mean_size,
        "keys": by_key(served, run.posted, run.trained),
        "classes": {
            service: msgspec.to_builtins(
                class_figures(
                    members,
                    gaps[service],
                    limits_ms=facts.slo_ms,
                    window_s=facts.completion_window_s if service == "batch" else None,
                )
            )
            for service in get_args(ServiceClass)
            if (members := of_class(served, service))
        },
    }


def _per_stage_second(run: RunRecords, shares: Mapping[str, float | None], available: float) -> float | None:
    """Tokens served for each second that stages spent on them, of `available` ones."""
    seconds = available * ((shares["prefill"] or 0.0) + (shares["decode"] or 0.0))
    return metrics.served_tokens(run.served) / seconds if seconds > 0.0 else None


def by_key(
    served: Iterable[ServedTask], posted: Sequence[PostedSample], trained: Iterable[TrainedTask]
) -> dict[str, dict[str, int]]:
    """What was asked for with each client's key, and the samples that came with it."""
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    for task in served:
        if task.key is not None:
            uses[task.key].update(
                received=1,
                finished=int(task.outcome == "finished"),
                prompt_tokens=task.prompt_tokens,
                output_tokens=len(task.output),
            )
    learnt = {sample for task in trained for sample in task.samples}
    for sample in posted:
        if sample.key:
            uses[sample.key].update(samples=1, samples_trained=int(sample.id in learnt))
    return {key: {name: use[name] for name in USES} for key, use in uses.items()}


def _gaps(run: RunRecords) -> dict[ServiceClass, list[float]]:
    """Seconds between tokens, by the class of their request."""
    services = {task.id: task.service for task in run.served}
    gaps: dict[ServiceClass, list[float]] = defaultdict(list)
    for task, gap in between_tokens(run.served, run.spans, run.facts.stages - 1):
        gaps[services[task]].append(gap)
    return gaps


def _training(run: RunRecords, time: metrics.StageTime) -> Section:
    trained = run.trained
    holds = metrics.holds(trained)
    loss_first, loss_last = metrics.first_and_last_loss(trained)
    return {
        "released": len(holds),
        "finished": sum(task.outcome == "finished" for task in trained),
        "steps": run.facts.steps,
        "skipped_steps": run.facts.skipped_steps,
        "stopped": run.facts.training_stopped,
        "lost_losses": run.facts.lost_losses,
        "tokens_per_s": metrics.tokens_per_second(trained, run.spans),
        "loss_first": loss_first,
        "loss_last": loss_last,
        "hold_s": {"mean": sum(holds) / len(holds) if holds else None, "max": max(holds, default=None)},
        "stage_share": metrics.training_share(time, run.facts.nodes, run.facts.stages),
    }


def _between(run: RunRecords) -> Iterator[float]:
    """What passes waited for messages [s]. Where decode is paced, first stages wait on purpose."""
    yield from handed_on(run.spans)
    if not run.facts.pace_s:
        yield from next_token(run.served, run.spans, run.facts.stages - 1)


def _factor(factor: float) -> str:
    return str(int(factor)) if float(factor).is_integer() else str(factor)
