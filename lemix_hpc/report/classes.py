"""The figures of each class of requests, in reports and while a run lasts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import ClassFigures, ServedTask
from lemix_hpc.report import metrics


def of_class(served: Iterable[ServedTask], service: ServiceClass) -> list[ServedTask]:
    """Those of one class, in the same order."""
    return [task for task in served if task.service == service]


def class_figures(
    served: Sequence[ServedTask],
    gaps: Iterable[float],
    *,
    limits_ms: Mapping[str, float],
    window_s: float | None,
) -> ClassFigures:
    """Of requests of one class; `gaps`: between their tokens [s]. `limits_ms`: those on interactive requests; `window_s`: the
    completion window of batch requests, None for the others."""
    return ClassFigures(
        received=len(served),
        finished=sum(task.outcome == "finished" for task in served),
        response_ms=milliseconds(map(metrics.response, served)),
        ttft_ms=milliseconds(map(metrics.time_to_first_token, served)),
        tpot_ms=milliseconds(map(metrics.time_per_output_token, served)),
        inter_token_ms=milliseconds(gaps),
        attainment=(
            metrics.attainments(served, limits_ms)
            if window_s is None
            else {"window": metrics.attainment(served, window_s)}
        ),
        tokens_per_s=metrics.served_tokens_per_second(served),
    )


def milliseconds(seconds: Iterable[float | None]) -> dict[str, float | None]:
    """Mean, p50, p95 and p99 in milliseconds."""
    return metrics.distribution(seconds, [50, 95, 99], scale=1e3)
