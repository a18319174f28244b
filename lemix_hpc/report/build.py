"""From the records of a run to its `report.json`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import msgspec

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.files import replace
from lemix_hpc.records.reader import Records, stream_run
from lemix_hpc.records.sampling import SAMPLE_S, sample_of
from lemix_hpc.records.schema import PostedSample, RunFacts, ServedTask, TrainedTask
from lemix_hpc.report import metrics
from lemix_hpc.report.between_passes import HandedOn, NextToken
from lemix_hpc.report.classes import ClassTally, Latencies
from lemix_hpc.report.distribution import Distribution
from lemix_hpc.report.recent import AtHand, in_order
from lemix_hpc.report.stage_time import (
    ServingBatches,
    StageTimes,
    bubble_rate,
    per_active_node,
    per_makespan,
    training_share,
)
from lemix_hpc.report.token_times import BetweenTokens, StageShares

Section = dict[str, Any]
USES = ("received", "finished", "prompt_tokens", "output_tokens", "samples", "samples_trained")


def build_report(run_dir: Path) -> Section:
    """Read the run, write its `report.json` as a whole and return what was written; UserError for broken records."""
    report = summarise(stream_run(run_dir))
    write_report(report, run_dir)
    return report


def write_report(report: Section, run_dir: Path) -> None:
    """Write `report.json` as a whole."""
    replace(run_dir / "report.json", msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def summarise(run: Records) -> Section:
    """The report as plain data; every key is always there and None stands for undefined. See docs/metrics.md.

    Records are read one by one and not kept. What grows with their number is 16 bytes for each task, and the ids of clients'
    samples.
    """
    facts = run.facts
    serving, training, keys = _Serving(facts), _Training(), KeyUses()
    for task in run.tasks():
        if isinstance(task, ServedTask):
            serving.add(task)
        else:
            training.add(task)
        keys.add(task)
    work = _Work(run, serving)
    time = work.times.so_far()
    weight = work.weight(time.makespan)
    time = time.times(weight)
    finished = serving.outcomes["finished"] + training.outcomes["finished"]
    available = facts.nodes * facts.stages * time.makespan
    shares = work.shares.of(available, weight)
    served_s = available * ((shares["prefill"] or 0.0) + (shares["decode"] or 0.0))
    return {
        "policy": facts.policy,
        "engine": facts.engine,
        "nodes": facts.nodes,
        "stages": facts.stages,
        "duration_s": facts.duration_s,
        "complete": run.complete,
        "attempts": [msgspec.to_builtins(attempt) for attempt in run.attempts],
        "serving": {
            **serving.figures(),
            "mean_batch": work.batches.mean_size,
            "keys": keys.figures(run.posted),
            "classes": serving.classes(),
            "tokens_per_stage_s": serving.tokens / served_s if served_s > 0.0 else None,
        },
        "training": {
            **training.figures(facts, work.times.training_window),
            "stage_share": training_share(time, facts.nodes, facts.stages),
        },
        "throughput": {
            "per_makespan": per_makespan(finished, time),
            "per_active_node": per_active_node(finished, time),
        },
        "stage_time": shares,
        "between_passes_ms": work.between.figures([50, 95], scale=1e3),
        "bubble_rate": bubble_rate(time, facts.stages),
        **serving.forecast_errors(),
        "t0_ms": 1e3 * facts.t0_s,
        "pace_ms": {name: 1e3 * limit for name, limit in facts.pace_s.items()},
        "weight_versions": {
            "last": work.times.last_version,
            "mixed_batches": None if facts.spans == "off" else work.batches.mixed,
        },
        "spans": facts.spans,
        "malformed_lines": facts.malformed_lines,
        "outside_range": facts.outside_range,
        "drift": msgspec.to_builtins(facts.drift),
        "stragglers": msgspec.to_builtins(facts.stragglers),
        "memory": msgspec.to_builtins(facts.memory),
        "checkpoints": msgspec.to_builtins(facts.checkpoints),
        "across_nodes": msgspec.to_builtins(facts.across_nodes),
        "disk": msgspec.to_builtins(facts.disk),
        "changes": msgspec.to_builtins(facts.changes),
    }


class _Work:
    """What all stages did, in the order of its starts; what it tells of tokens goes to `serving`."""

    def __init__(self, run: Records, serving: _Serving) -> None:
        last_stage = run.facts.stages - 1
        served = AtHand(task for task in run.tasks() if isinstance(task, ServedTask))
        self.times, self.batches, self.shares = StageTimes(), ServingBatches(), StageShares(served)
        self.between = Distribution()
        self._sampled, self._samples = run.facts.spans == "sampled", 0
        since = -math.inf
        for stretch in in_order(run.stretches()):
            if (sample := sample_of(run.facts.spans, stretch.start)) > since:
                since, self._samples = sample, self._samples + 1
                # Of what came between two samples nothing is known.
                handed_on, tokens = HandedOn(), BetweenTokens(served, last_stage, since)
                # Where decode is paced, first stages wait on purpose.
                next_token = None if run.facts.pace_s else NextToken(served, last_stage)
            self.times.add(stretch)
            self.batches.add(stretch)
            self.shares.add(stretch)
            self.between.add(handed_on.add(stretch))
            if next_token is not None:
                self.between.add(next_token.add(stretch))
            for service, gap in tokens.add(stretch):
                serving.gap(service, gap)

    def weight(self, makespan: float) -> float:
        """For how many seconds of work each one that was written down stands."""
        return max(1.0, makespan / (SAMPLE_S * self._samples)) if self._sampled and self._samples else 1.0


class _Serving:
    """Requests of all classes."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self.outcomes: Counter[str] = Counter()
        self._latencies = Latencies()
        self._nll = metrics.MeanNll()
        self.tokens = 0
        """That finished requests were given, of scored prompts their own."""
        self._classes = {
            service: ClassTally(facts.slo_ms, facts.completion_window_s if service == "batch" else None)
            for service in get_args(ServiceClass)
        }
        self._slo = {_factor(k): metrics.Within(k * facts.t0_s) for k in facts.slo_factors}
        self._limits = metrics.Attainment(facts.slo_ms)
        self._slo_accepted = {_factor(k): metrics.Within(k * facts.t0_s) for k in facts.slo_factors}
        self._limits_accepted = metrics.Attainment(facts.slo_ms)
        self._errors, self._first_errors, self._each_errors = metrics.Ordered(), Distribution(), Distribution()

    def add(self, task: ServedTask) -> None:
        """The next request."""
        self.outcomes[task.outcome] += 1
        self._latencies.add(task)
        self._nll.add(task)
        self.tokens += metrics.tokens_of(task)
        self._classes[task.service].add(task)
        if task.service != "interactive":
            return
        self._limits.add(task)
        for within in self._slo.values():
            within.add(task)
        if task.outcome not in ("rejected", "aborted"):
            self._limits_accepted.add(task)
            for within in self._slo_accepted.values():
                within.add(task)
        error = metrics.forecast_error(task, self._facts.t0_s)
        if error is not None:
            self._errors.add(task.arrival, error)
        self._first_errors.add(metrics.first_token_forecast_error(task))
        self._each_errors.add(metrics.token_forecast_error(task))

    def gap(self, service: ServiceClass, seconds: float) -> None:
        """Between two tokens of a request."""
        self._latencies.gap(seconds)
        self._classes[service].gap(seconds)

    def figures(self) -> Section:
        return {
            "received": self.outcomes.total(),
            **{name: self.outcomes[name] for name in ("finished", "rejected", "lost", "aborted")},
            "slo": {factor: within.share for factor, within in self._slo.items()},
            "slo_ms": self._limits.shares(),
            "accepted": {
                "slo": {factor: within.share for factor, within in self._slo_accepted.items()},
                "slo_ms": self._limits_accepted.shares(),
            },
            **self._latencies.figures(),
            "nll": self._nll.mean,
        }

    def classes(self) -> Section:
        """Those that had requests."""
        classes = self._classes.items()
        return {service: msgspec.to_builtins(tally.figures()) for service, tally in classes if tally.received}

    def forecast_errors(self) -> Section:
        """Of interactive requests."""
        errors = self._errors.values()
        return {
            "forecast_error_t0": Distribution(map(float, errors)).figures([95]),
            "forecast_error_tenths_t0": metrics.tenths(errors),
            "forecast_error_ttft_ms": self._first_errors.figures([95], scale=1e3),
            "forecast_error_tpot_ms": self._each_errors.figures([95], scale=1e3),
        }


class _Training:
    """Micro-batches."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._tokens = 0
        self._released = 0
        self._held = 0.0
        self._longest: float | None = None
        self._losses = metrics.Losses()

    def add(self, task: TrainedTask) -> None:
        """The next micro-batch."""
        self.outcomes[task.outcome] += 1
        self._tokens += task.tokens if task.outcome == "finished" else 0
        self._losses.add(task)
        hold = metrics.hold(task)
        if hold is not None:
            self._released += 1
            self._held += hold
            self._longest = hold if self._longest is None else max(self._longest, hold)

    def figures(self, facts: RunFacts, window: tuple[float, float] | None) -> Section:
        """`window`: first start and last end of training work."""
        loss_first, loss_last = self._losses.first_and_last()
        seconds = window[1] - window[0] if window is not None else 0.0
        return {
            "released": self._released,
            "finished": self.outcomes["finished"],
            "steps": facts.steps,
            "skipped_steps": facts.skipped_steps,
            "stopped": facts.training_stopped,
            "lost_losses": facts.lost_losses,
            "tokens_per_s": self._tokens / seconds if seconds > 0 else None,
            "loss_first": loss_first,
            "loss_last": loss_last,
            "held_out": _held_out(facts),
            "hold_s": {"mean": self._held / self._released if self._released else None, "max": self._longest},
        }


def _held_out(facts: RunFacts) -> Section | None:
    """Losses before training and at its end, which a run that goes on or ended early has not."""
    if not facts.held_out:
        return None
    before, *later = facts.held_out
    return {
        "before": before.loss,
        "after": later[-1].loss if later else None,
        "documents": before.documents,
        "tokens": before.tokens,
    }


class KeyUses:
    """What was asked for with each client's key, and the samples that came with it."""

    def __init__(self) -> None:
        self._uses: dict[str, Counter[str]] = defaultdict(Counter)
        self._learnt: set[str] = set()

    def add(self, task: ServedTask | TrainedTask) -> None:
        """The next request or micro-batch."""
        if isinstance(task, TrainedTask):
            self._learnt.update(task.samples)
        elif task.key is not None:
            self._uses[task.key].update(
                received=1,
                finished=int(task.outcome == "finished"),
                prompt_tokens=task.prompt_tokens,
                output_tokens=len(task.output),
            )

    def figures(self, posted: Iterable[PostedSample]) -> dict[str, dict[str, int]]:
        """By key. `posted`: the samples of all of them."""
        uses = defaultdict(Counter, {key: Counter(use) for key, use in self._uses.items()})
        for sample in posted:
            if sample.key:
                uses[sample.key].update(samples=1, samples_trained=int(sample.id in self._learnt))
        return {key: {name: use[name] for name in USES} for key, use in uses.items()}


def _factor(factor: float) -> str:
    return str(int(factor)) if float(factor).is_integer() else str(factor)
