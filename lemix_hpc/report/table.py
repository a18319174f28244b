"""A report as a table for the terminal."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lemix_hpc.report.training_cost import TrainingCost

ABSENT = "-"
MEMORY_EVENTS = (("waits", "wait"), ("offloads", "offload"), ("preemptions", "preemption"))
COLUMNS = ("mean", "p50", "p95", "p99")
LATENCIES = (
    ("response", "response_ms"),
    ("first token", "ttft_ms"),
    ("per output token", "tpot_ms"),
    ("between tokens", "inter_token_ms"),
)


def render(report: dict[str, Any]) -> RenderableType:
    """The report (see `lemix_hpc.report.build`) as something that rich prints; parts without work are left out."""
    parts: list[RenderableType] = [_head(report)]
    if report["serving"]["received"]:
        parts.append(_latencies(report["serving"]))
    parts.append(_figures(report))
    return Group(*parts)


def _head(report: dict[str, Any]) -> Text:
    size = f"{_count(report['nodes'], 'node')} x {_count(report['stages'], 'stage')}"
    rest = f"  {report['engine']} engine · {size} · {number(report['duration_s'])} s"
    partial = "" if report.get("complete", True) else "  not complete"
    return Text.assemble((report["policy"], "bold cyan"), (rest, "dim"), (partial, "yellow"))


def _latencies(serving: dict[str, Any]) -> Table:
    table = Table("latency, ms", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", min_width=8)
    classes = serving.get("classes", {})
    # Of both classes together nobody wants to know.
    for of, section in classes.items() if len(classes) > 1 else [("", serving)]:
        for name, key in LATENCIES:
            figures = section.get(key) or dict.fromkeys(COLUMNS)
            if figures["mean"] is not None:
                table.add_row(f"{of} {name}".strip(), *(number(figures[column]) for column in COLUMNS))
    return table


def _figures(report: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for title, rows in (
        ("serving", _serving(report)),
        ("training", _trained(report)),
        ("devices", _devices(report)),
        ("run", _attempts(report.get("attempts", []))),
    ):
        for index, (name, value) in enumerate(rows):
            table.add_row("" if index else title, name, value, end_section=index == len(rows) - 1)
    return table


def _attempts(attempts: list[dict[str, Any]]) -> list[tuple[str, RenderableType]]:
    """Nothing for a run that needed but one."""
    if len(attempts) < 2:
        return []
    pairs = pairwise(attempts)
    between = sum(after["started"] - before["ended"] for before, after in pairs if before["ended"] is not None)
    reasons = [attempt["reason"] or "end unknown" for attempt in attempts[:-1]]
    rows: list[tuple[str, RenderableType]] = [
        ("attempts", f"{len(attempts)} · {number(between)} s between them · ended before: {', '.join(reasons)}")
    ]
    damage = [damaged for attempt in attempts for damaged in attempt.get("damage", [])]
    return [*rows, *(("damaged", Text(damaged, "bold red", overflow="fold")) for damaged in damage)]


def _serving(report: dict[str, Any]) -> list[tuple[str, RenderableType]]:
    serving = report["serving"]
    if not serving["received"]:
        return []
    misses = Text(f"{serving['rejected']} rejected · {serving['lost']} lost")
    if serving["aborted"]:
        misses.append(f" · {serving['aborted']} aborted")
    if serving["rejected"] or serving["lost"]:
        misses.stylize("red")
    met = _within(serving)
    # Reports of earlier versions do not have it.
    accepted = (
        _within(serving["accepted"]) if serving["rejected"] + serving["aborted"] and "accepted" in serving else []
    )
    rows: list[tuple[str, RenderableType]] = [
        ("requests", Text.assemble(f"{serving['finished']} finished of {serving['received']} · ", misses)),
        *([("SLO attainment", Text(" · ").join(met))] if met else []),
        *([("of accepted ones", Text(" · ").join(accepted))] if accepted else []),
        *_classes(serving.get("classes", {})),
        ("T0", f"{number(report['t0_ms'])} ms"),
    ]
    if pace := report.get("pace_ms"):
        limits_ms = (f"{name} {number(limit)} ms" for name, limit in pace.items())
        rows.append(("paced to", " · ".join(limits_ms)))
    if serving["nll"] is not None:
        rows.append(("prompt NLL", f"{serving['nll']:.4f} nats/token"))
    error = report["forecast_error_t0"]
    if error["mean"] is not None:
        rows.append(("forecast error", f"{number(error['mean'])} T0 mean · {number(error['p95'])} T0 p95"))
    for name, key in (("of first tokens", "forecast_error_ttft_ms"), ("of further tokens", "forecast_error_tpot_ms")):
        error = report.get(key) or {"mean": None}
        if error["mean"] is not None:
            rows.append((name, f"{number(error['mean'])} ms mean · {number(error['p95'])} ms p95"))
    return rows


def _within(shares: dict[str, Any]) -> list[Text]:
    """The shares of requests within each limit, those that are known."""
    limits = [(f"in {factor} T0", share) for factor, share in shares["slo"].items()]
    limits += [(f"within {name} limit", share) for name, share in shares["slo_ms"].items()]
    return [Text(f"{percent(share)} {limit}", _grade(share)) for limit, share in limits if share is not None]


def _classes(classes: dict[str, Any]) -> list[tuple[str, RenderableType]]:
    """Nothing where all requests are interactive."""
    if "batch" not in classes:
        return []
    rows: list[tuple[str, RenderableType]] = []
    for name, figures in classes.items():
        told = f"{figures['finished']} finished of {figures['received']} · {number(figures['tokens_per_s'])} tokens/s"
        if (share := figures["attainment"].get("window")) is not None:
            told += f" · {percent(share)} within their window"
        rows.append((name, told))
    return rows


def _trained(report: dict[str, Any]) -> list[tuple[str, RenderableType]]:
    """All rows on training."""
    rows = _training(report["training"])
    if (cost := report.get("training_cost")) is not None:
        told = msgspec.convert(cost, TrainingCost).words
        rows.append(("cost serving", f"{told} · beside serve-only, both simulated"))
    return [*rows, *_checkpoints(report.get("checkpoints")), *_across_nodes(report.get("across_nodes"))]


def _training(training: dict[str, Any]) -> list[tuple[str, RenderableType]]:
    if not training["released"]:
        return []
    hold = training["hold_s"]
    rows: list[tuple[str, RenderableType]] = [
        (
            "micro-batches",
            f"{training['finished']} finished of {training['released']} · {_count(training['steps'], 'step')}",
        ),
        ("rate", f"{number(training['tokens_per_s'])} tokens/s"),
        ("held back", f"{number(hold['mean'])} s mean · {number(hold['max'])} s max"),
        ("stage time", percent(training["stage_share"])),
    ]
    if training["loss_first"] is not None or training["loss_last"] is not None:
        first, last = (
            ABSENT if loss is None else f"{loss:.4f}" for loss in (training["loss_first"], training["loss_last"])
        )
        rows.insert(1, ("loss", f"{first} → {last} nats/token"))
    if held_out := training.get("held_out"):
        before, after = (ABSENT if held_out[key] is None else f"{held_out[key]:.4f}" for key in ("before", "after"))
        told = f"{before} before → {after} after, nats/token on {_count(held_out['documents'], 'document')}"
        rows.insert(2, ("held-out loss", told))
    return [*rows, *_not_finite(training)]


def _not_finite(training: dict[str, Any]) -> list[tuple[str, RenderableType]]:
    """The alarm of training that has broken down; reports of earlier versions know nothing of it."""
    skipped, lost = training.get("skipped_steps", 0), training.get("lost_losses", 0)
    told = []
    if skipped:
        stopped = "; training stopped there (training.on_nan)" if training.get("stopped") else ""
        told.append(f"{_count(skipped, 'step')} skipped, since their gradients were not finite{stopped}")
    if lost:
        told.append(f"the loss of {lost} micro-batches was not finite")
    return [("warning", Text(text, "bold red")) for text in told]


def _checkpoints(checkpoints: dict[str, Any] | None) -> list[tuple[str, RenderableType]]:
    if checkpoints is None or not checkpoints["saved"] + checkpoints["failed"]:
        return []
    last = "" if checkpoints["last_step"] is None else f", the newest after {_count(checkpoints['last_step'], 'step')}"
    rows: list[tuple[str, RenderableType]] = [("checkpoints", f"{checkpoints['saved']} saved{last}")]
    if checkpoints["failed"]:
        failed = f"{checkpoints['failed']} could not be saved: {checkpoints['last_failure']}"
        rows.append(("warning", Text(failed, "bold red")))
    if checkpoints.get("unsaved_steps"):
        unsaved = f"the last {_count(checkpoints['unsaved_steps'], 'step')} are in no checkpoint"
        rows.append(("warning", Text(unsaved, "bold red")))
    return rows


def _across_nodes(sums: dict[str, Any] | None) -> list[tuple[str, RenderableType]]:
    if sums is None:
        return []
    what = "averages" if sums["mode"] == "average" else "steps together"
    rows: list[tuple[str, RenderableType]] = [
        (what, f"{sums['count']} · {number(sums['mean_s'])} s mean · {number(sums['max_s'])} s max")
    ]
    return [*rows, ("sent for them", f"{number(sums['nbytes'] / 1e6)} MB")]


def _devices(report: dict[str, Any]) -> list[tuple[str, RenderableType]]:
    throughput = report["throughput"]
    rows: list[tuple[str, RenderableType]] = [
        ("throughput", f"{number(throughput['per_makespan'])} tasks/s"),
        ("per active node", f"{number(throughput['per_active_node'])} tasks/node-s"),
        ("idle (bubbles)", percent(report["bubble_rate"])),
    ]
    between = report.get("between_passes_ms") or {"mean": None}
    if between["mean"]:
        rows.append(("between passes", f"{number(between['mean'])} ms mean · {number(between['p95'])} ms p95"))
    shares = [f"{percent(share)} {kind}" for kind, share in report.get("stage_time", {}).items() if share]
    if shares:
        rows.append(("stage time", " · ".join(shares)))
    rows += _memory(report.get("memory"))
    versions = report["weight_versions"]
    if versions["last"]:
        rows.append(("weight version", str(versions["last"])))
    if versions["mixed_batches"]:
        mixed = f"{_count(versions['mixed_batches'], 'serving batch', 'serving batches')} saw different weights"
        rows.append(("warning", Text(mixed, "bold red")))
    if (spans := report.get("spans", "all")) != "all":
        told = "one second in ten was written down" if spans == "sampled" else "nothing was written down"
        rows.append(("work of stages", f"{told} (report.spans)"))
    if report["malformed_lines"]:
        rows.append(("warning", Text(f"{_count(report['malformed_lines'], 'input line')} left out", "yellow")))
    if report["outside_range"]:
        outside = f"{_count(report['outside_range'], 'request')} beyond the range of the coefficients"
        rows.append(("warning", Text(outside, "yellow")))
    for change in report.get("changes", []):
        rows.append(("changed", f"{change['key']} to {change['value']} after {number(change['at_s'])} s"))
    if report.get("disk"):
        rows.append(("warning", Text(_disk(report["disk"]), "yellow")))
    rows += [("warning", Text(_drift(drift), "yellow")) for drift in report["drift"]]
    rows += [("warning", Text(_straggler(straggler), "yellow")) for straggler in report.get("stragglers", [])]
    return rows


def _memory(memory: dict[str, Any] | None) -> list[tuple[str, RenderableType]]:
    """How full stages were, and what was done about it. Reports of earlier versions know less of single stages."""
    if memory is None:
        return []
    rows: list[tuple[str, RenderableType]] = []
    for index, stage in enumerate(memory["stages"]):
        told = f"{percent(stage['peak'])} full at most"
        told += "".join(f" · {_count(stage[key], one)}" for key, one in MEMORY_EVENTS if stage.get(key))
        rows.append((f"memory, stage {index}", Text(told, "red" if stage["peak"] > 1.0 else "")))
    for what in ("serving", "training"):
        waits = memory[f"{what}_waits"]
        if waits["count"]:
            told = f"{waits['count']} · {number(waits['mean_s'])} s mean · {number(waits['max_s'])} s max"
            rows.append((f"{what} waited for it", told))
    if memory["preemptions"]:
        rows.append(("computed again", _count(memory["recomputed_tokens"], "token")))
    return rows


def _disk(disk: dict[str, Any]) -> str:
    left_out = (
        f" · {_count(disk['left_out'], 'span or event', 'spans and events')} left out" if disk["left_out"] else ""
    )
    return f"the disk did not take everything for {number(disk['seconds'])} s: {disk['why']}{left_out}"


def _drift(drift: dict[str, Any]) -> str:
    took = f"stage {drift['stage']} {drift['kind']} took {number(drift['ratio'])} x the coefficients' time"
    return f"{took} {_while(drift)}"


def _straggler(straggler: dict[str, Any]) -> str:
    where = f"node {straggler['node']} stage {straggler['stage']}"
    return f"{where} took {number(straggler['ratio'])} x the time of other nodes {_while(straggler)}"


def _while(alarm: dict[str, Any]) -> str:
    until = "on" if alarm["until_s"] is None else f"to {number(alarm['until_s'])} s"
    return f"from {number(alarm['since_s'])} s {until}"


def _count(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def number(value: float | None) -> str:
    """Three significant digits, and never fewer than the digits before the point."""
    if value is None:
        return ABSENT
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}" if magnitude >= 1 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share from 0 to 1 in percent."""
    return ABSENT if share is None else f"{100 * share:.1f} %"


def _grade(share: float | None) -> str:
    if share is None:
        return ""
    return "green" if share >= 0.9 else "yellow" if share >= 0.5 else "red"
