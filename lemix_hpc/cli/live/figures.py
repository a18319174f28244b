"""The figures of the live view, in rows of a name and facts. What a run does not know is not said."""

from __future__ import annotations

from collections.abc import Iterator

from lemix_hpc.cli.live.words import duration, milliseconds
from lemix_hpc.records.schema import ClassFigures, MemoryUse, Progress

LIMITS = {"ttft": "TTFT", "tpot": "TPOT", "response": "response", "all": "all limits"}


def figures(progress: Progress, memory: MemoryUse | None = None, *, over: bool = False) -> list[tuple[str, list[str]]]:
    """What is served and trained, in rows of a name and facts; of a run that is `over` nothing that is of the last moment."""
    goes_on = progress.state == "running" and not over
    rows = [
        ("serving", list(_serving(progress, goes_on=goes_on))),
        ("latency", list(_latencies(progress))),
        ("forecast", [] if progress.forecast_error is None else [f"off by {progress.forecast_error:.0%}"]),
        ("within", list(_limits(progress))),
        ("batch", list(_batch(progress.classes.get("batch")))),
        ("training", list(_training(progress, goes_on=goes_on))),
        ("weights", list(_weights(progress))),
        ("memory", list(_memory(memory))),
        ("profiling", list(_profiling(progress))),
    ]
    return [(name, facts) for name, facts in rows if facts]


def _serving(progress: Progress, *, goes_on: bool) -> Iterator[str]:
    if not progress.requests:
        return
    yield f"served {progress.served}/{progress.requests}"
    if not goes_on:
        return
    if progress.requests_per_s is not None:
        yield f"{progress.requests_per_s:.1f} requests/s"
    yield f"{progress.under_way} under way" + (f", {progress.waiting} of them not begun" if progress.waiting else "")


def _latencies(progress: Progress) -> Iterator[str]:
    """The 99th percentiles of interactive requests, and the median of all responses."""
    lately = progress.classes.get("interactive")
    found = {} if lately is None else {"TTFT": lately.ttft_ms, "TPOT": lately.tpot_ms, "response": lately.response_ms}
    p99s = [f"{name} {milliseconds(p99)}" for name, times in found.items() if (p99 := times.get("p99")) is not None]
    if p99s:
        yield f"p99 of {', '.join(p99s)}"
    if progress.response_ms_p50 is not None:
        yield f"median response {milliseconds(progress.response_ms_p50)}"


def _limits(progress: Progress) -> Iterator[str]:
    """The shares of interactive requests within the recipe's limits, else within multiples of an unloaded response."""
    lately = progress.classes.get("interactive")
    own = [] if lately is None else [(name, share) for name, share in lately.attainment.items() if share is not None]
    if own:
        yield from (f"{share:.1%} within {LIMITS.get(name, name)}" for name, share in own)
    else:
        yield from (f"{share:.1%} within {milliseconds(1e3 * limit)}" for limit, share in progress.attainment)


def _batch(lately: ClassFigures | None) -> Iterator[str]:
    if lately is None:
        return
    yield f"finished {lately.finished}/{lately.received}"
    if (p99 := lately.response_ms.get("p99")) is not None:
        yield f"response p99 {milliseconds(p99)}"
    if (share := lately.attainment.get("window")) is not None:
        yield f"{share:.1%} within the window"


def _training(progress: Progress, *, goes_on: bool) -> Iterator[str]:
    if not (progress.trained or progress.training_total or progress.held):
        return
    total = "" if progress.training_total is None else f"/{progress.training_total}"
    yield f"trained {progress.trained}{total} in {progress.steps} steps"
    if goes_on and progress.tokens_per_s is not None:
        yield f"{progress.tokens_per_s:,.0f} tokens/s"
    if goes_on and progress.held:
        yield f"{progress.held} held back"
    if progress.loss is not None:
        yield f"loss {progress.loss:.4f}"
    if progress.held_out:
        yield f"held-out loss {' → '.join(f'{taken.loss:.4f}' for taken in progress.held_out)}"


def _weights(progress: Progress) -> Iterator[str]:
    if any(progress.versions):
        low, high = min(progress.versions), max(progress.versions)
        yield f"version {high}" if low == high else f"versions {low} to {high}"
    if progress.checkpoint_step is not None:
        yield f"checkpoint at step {progress.checkpoint_step}"


def _memory(memory: MemoryUse | None) -> Iterator[str]:
    """The most that was in use, and what it has cost that there was no more."""
    if memory is None:
        return
    peaks = [stage.peak for stage in memory.stages]
    yield f"up to {max(peaks):.0%} of stage {peaks.index(max(peaks))}"
    for name, waits in (("requests", memory.serving_waits), ("micro-batches", memory.training_waits)):
        if waits.count:
            yield f"{waits.count} waits of {name}"
    if memory.offloads:
        yield f"{memory.offloads} offloads"
    if memory.preemptions:
        yield f"{memory.preemptions} caches lost"


def _profiling(progress: Progress) -> Iterator[str]:
    if progress.to_measure:
        yield f"{progress.measured}/{progress.to_measure} points"
    if progress.left_s is not None:
        yield f"{duration(progress.left_s)} left"
