"""The metrics of a run as pure functions of its records.

Times are in seconds since the start of the run, results in the unit that each docstring gives. None: undefined.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.records.schema import ServedTask, TrainedTask

# Requests


def response(task: ServedTask) -> float | None:
    """finished - arrival, seconds; None unless the request finished."""
    if task.outcome != "finished" or task.finished is None:
        return None
    return task.finished - task.arrival


def time_to_first_token(task: ServedTask) -> float | None:
    """first_token - arrival, seconds; None unless the request finished with a first token."""
    if task.outcome != "finished" or task.first_token is None:
        return None
    return task.first_token - task.arrival


def time_per_output_token(task: ServedTask) -> float | None:
    """(response - TTFT) / (n - 1) for n output tokens of an answer, seconds; None for n <= 1."""
    end, first, tokens = response(task), time_to_first_token(task), task.answer_tokens
    if end is None or first is None or tokens <= 1:
        return None
    return (end - first) / (tokens - 1)


class Within:
    """Requests with response <= limit / ALL requests received, 0..1: rejected, lost and aborted ones count as misses."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._met = 0
        self._received = 0

    def add(self, task: ServedTask) -> None:
        """The next request."""
        seconds = response(task)
        self._received += 1
        self._met += seconds is not None and seconds <= self._limit_s

    @property
    def share(self) -> float | None:
        return self._met / self._received if self._received else None


def attainment(served: Iterable[ServedTask], limit_s: float) -> float | None:
    """See `Within`."""
    within = Within(limit_s)
    for task in served:
        within.add(task)
    return within.share


class Attainment:
    """Requests within a limit / ALL requests received, 0..1, for each limit in ms (`ttft`, `tpot`, `response`), and with more
    than one limit for `all` of them at once. A finished request without a TPOT (one token) meets that limit."""

    def __init__(self, limits_ms: Mapping[str, float]) -> None:
        self._limits_ms = limits_ms
        self._met = dict.fromkeys([*limits_ms, *(["all"] if len(limits_ms) > 1 else [])], 0)
        self._received = 0

    def add(self, task: ServedTask) -> None:
        """The next request."""
        self._received += 1
        met = {name: meets(task, name, limit_ms) for name, limit_ms in self._limits_ms.items()}
        for name in self._met:
            self._met[name] += all(met.values()) if name == "all" else met[name]

    def shares(self) -> dict[str, float | None]:
        """By the names of the limits; without requests None, and nothing for `all`."""
        if not self._received:
            return dict.fromkeys(self._limits_ms)
        return {name: met / self._received for name, met in self._met.items()}


def attainments(served: Iterable[ServedTask], limits_ms: Mapping[str, float]) -> dict[str, float | None]:
    """See `Attainment`."""
    attainment = Attainment(limits_ms)
    for task in served:
        attainment.add(task)
    return attainment.shares()


_MEASURES = {"ttft": time_to_first_token, "tpot": time_per_output_token, "response": response}


def meets(task: ServedTask, name: str, limit_ms: float) -> bool:
    """Whether a request kept to this limit: see `Attainment`."""
    seconds = _MEASURES[name](task)
    if seconds is None:
        return name == "tpot" and task.outcome == "finished"
    return 1e3 * seconds <= limit_ms


def tokens_of(task: ServedTask) -> int:
    """Tokens that a finished request was given, of a scored prompt its own."""
    return (task.scored_tokens or len(task.output) or task.prompt_tokens) if task.outcome == "finished" else 0


class TokenRate:
    """Tokens of finished requests / (last finish - first arrival), per second; None if nothing finished."""

    def __init__(self) -> None:
        self.tokens = 0
        self._first, self._last = np.inf, -np.inf

    def add(self, task: ServedTask) -> None:
        """The next request."""
        if task.outcome == "finished" and task.finished is not None:
            self.tokens += tokens_of(task)
            self._first, self._last = min(self._first, task.arrival), max(self._last, task.finished)

    @property
    def per_second(self) -> float | None:
        return self.tokens / (self._last - self._first) if self._last > self._first else None


class MeanNll:
    """sum(nll) / sum(scored tokens) over finished prompts, nats per token."""

    def __init__(self) -> None:
        self._nll = 0.0
        self._tokens = 0

    def add(self, task: ServedTask) -> None:
        """The next request."""
        if task.outcome == "finished" and task.nll is not None:
            self._nll += task.nll
            self._tokens += task.scored_tokens

    @property
    def mean(self) -> float | None:
        return self._nll / self._tokens if self._tokens else None


class Ordered:
    """Values by the times that they belong to, 16 bytes each."""

    def __init__(self) -> None:
        self._times = array("d")
        self._values = array("d")

    def add(self, time: float, value: float) -> None:
        self._times.append(time)
        self._values.append(value)

    def values(self) -> NDArray[np.float64]:
        """In the order of their times."""
        return np.array(self._values)[np.argsort(self._times, kind="stable")]


def forecast_error(task: ServedTask, t0_s: float) -> float | None:
    """|predicted - real response| / T0 of a finished request with a prediction, in units of T0."""
    real = response(task)
    if t0_s <= 0 or task.predicted_response_s is None or real is None:
        return None
    return abs(task.predicted_response_s - real) / t0_s


def first_token_forecast_error(task: ServedTask) -> float | None:
    """|predicted - real| time to the first token of a finished request with this forecast, s."""
    real = time_to_first_token(task)
    return None if real is None or task.predicted_ttft_s is None else abs(task.predicted_ttft_s - real)


def token_forecast_error(task: ServedTask) -> float | None:
    """|predicted - real| time per further token of a finished request with this forecast, s."""
    real = time_per_output_token(task)
    return None if real is None or task.predicted_tpot_s is None else abs(task.predicted_tpot_s - real)


def tenths(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Means of ten parts of the values, in their order and as equal as can be; fewer parts of fewer values."""
    count = min(10, len(values))
    return [float(np.mean(part)) for part in np.array_split(np.array(values), count)] if count else []


# Training


class Losses:
    """Losses of finished micro-batches in the order in which these finished, nats per token."""

    def __init__(self) -> None:
        self._losses = Ordered()

    def add(self, task: TrainedTask) -> None:
        """The next micro-batch."""
        if task.outcome == "finished" and task.finished is not None:
            self._losses.add(task.finished, np.nan if task.loss is None else task.loss)

    def first_and_last(self) -> tuple[float | None, float | None]:
        """Means of the first and of the last tenth, at least one. None where one of them has no loss, as when it was not a
        number: leaving it out would hide that."""
        losses = self._losses.values()
        tenth = max(1, len(losses) // 10)
        return _mean(losses[:tenth]), _mean(losses[-tenth:])


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size and not np.isnan(values).any() else None


def hold(task: TrainedTask) -> float | None:
    """placed - eligible of a released micro-batch, seconds."""
    return task.placed - task.eligible if task.placed is not None else None
