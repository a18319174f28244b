"""The figures of each class of requests, in reports and while a run lasts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import ClassFigures, ServedTask
from lemix_hpc.report import metrics
from lemix_hpc.report.distribution import Distribution


def of_class(served: Iterable[ServedTask], service: ServiceClass) -> list[ServedTask]:
    """Those of one class, in the same order."""
    return [task for task in served if task.service == service]


class Latencies:
    """Response, time to the first token, per output token and between tokens."""

    def __init__(self) -> None:
        self._response = Distribution()
        self._first = Distribution()
        self._each = Distribution()
        self._between = Distribution()

    def add(self, task: ServedTask) -> None:
        """The next request."""
        self._response.add(metrics.response(task))
        self._first.add(metrics.time_to_first_token(task))
        self._each.add(metrics.time_per_output_token(task))

    def gap(self, seconds: float) -> None:
        """Between two tokens of any request."""
        self._between.add(seconds)

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Mean, p50, p95 and p99 of each in milliseconds, by the names that they have in a report."""
        measured = {
            "response_ms": self._response,
            "ttft_ms": self._first,
            "tpot_ms": self._each,
            "inter_token_ms": self._between,
        }
        return {name: values.figures([50, 95, 99], scale=1e3) for name, values in measured.items()}


class ClassTally:
    """Requests of one class. `limits_ms`: those on interactive requests; `window_s`: the completion window of batch requests,
    None for the others."""

    def __init__(self, limits_ms: Mapping[str, float], window_s: float | None) -> None:
        self._latencies = Latencies()
        self._attainment = metrics.Attainment(limits_ms if window_s is None else {})
        self._window = None if window_s is None else metrics.Within(window_s)
        self._rate = metrics.TokenRate()
        self.received = 0
        self._finished = 0

    def add(self, task: ServedTask) -> None:
        """The next request."""
        self.received += 1
        self._finished += task.outcome == "finished"
        self._latencies.add(task)
        self._attainment.add(task)
        self._rate.add(task)
        if self._window is not None:
            self._window.add(task)

    def gap(self, seconds: float) -> None:
        """Between two tokens of any request."""
        self._latencies.gap(seconds)

    def figures(self) -> ClassFigures:
        """Of the requests so far."""
        return ClassFigures(
            received=self.received,
            finished=self._finished,
            **self._latencies.figures(),
            attainment=self._attainment.shares() if self._window is None else {"window": self._window.share},
            tokens_per_s=self._rate.per_second,
        )


def class_figures(
    served: Iterable[ServedTask],
    gaps: Iterable[float],
    *,
    limits_ms: Mapping[str, float],
    window_s: float | None,
) -> ClassFigures:
    """Of requests of one class; `gaps`: between their tokens [s]. For the rest see `ClassTally`."""
    tally = ClassTally(limits_ms, window_s)
    for task in served:
        tally.add(task)
    for gap in gaps:
        tally.gap(gap)
    return tally.figures()
