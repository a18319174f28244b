import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lemix_hpc.policy.drift import Drift, Straggler
from lemix_hpc.records.sampling import is_kept
from lemix_hpc.records.schema import SAMPLES, Outcome, PostedSample, RunFacts, ServedTask, Span, TaskRecord, TrainedTask
from lemix_hpc.report.build import KeyUses, build_report

RunBuilder = Callable[..., Path]


def test_report_of_the_example(example_run: Path) -> None:
    """Responses are 2 - 1 = 1, 2 - 0.5 = 1.5 and 9 - 6 = 3 s; the node works from 1 to 9 on two stages."""
    report = build_report(example_run)
    (only,) = report["serving"].pop("classes").items()
    assert only[0] == "interactive" and only[1]["response_ms"] == report["serving"]["response_ms"]
    assert report["serving"] == {
        "received": 4,
        "finished": 3,
        "rejected": 1,
        "slo_ms": {},
        "lost": 0,
        "aborted": 0,
        "slo": {"1": 0 / 4, "5": 2 / 4, "10": 3 / 4},
        "accepted": {"slo": {"1": 0 / 3, "5": 2 / 3, "10": 3 / 3}, "slo_ms": {}},
        "response_ms": pytest.approx(
            {"mean": 5500 / 3, "p50": 1500, "p95": 1500 + 0.9 * 1500, "p99": 1500 + 0.98 * 1500}
        ),
        "ttft_ms": pytest.approx({"mean": 5000 / 3, "p50": 1500, "p95": 1500 + 0.9 * 1000, "p99": 1500 + 0.98 * 1000}),
        "tpot_ms": dict.fromkeys(["mean", "p50", "p95", "p99"], 1e3 * (3.0 - 2.5) / (3 - 1)),
        # The record has one more pass of it, which ends 0.5 s after its first token.
        "inter_token_ms": dict.fromkeys(["mean", "p50", "p95", "p99"], 500.0),
        "nll": (30 + 28) / (9 + 20),
        "mean_batch": (2 + 1) / 2,
        "tokens_per_stage_s": pytest.approx((9 + 20 + 3) / (2 * (0.5 + 0.25))),
        "keys": {},
    }
    # Training work: stage 0 takes 1 + 2 + 0.5, stage 1 the same, of 2 stages x 8 s, between 2 and 8.5.
    assert report["training"] == {
        "released": 1,
        "finished": 1,
        "steps": 1,
        "tokens_per_s": 260 / (8.5 - 2.0),
        "loss_first": 3.5,
        "loss_last": 3.5,
        "held_out": None,
        "hold_s": {"mean": 0.5, "max": 0.5},
        "skipped_steps": 0,
        "stopped": False,
        "lost_losses": 0,
        "stage_share": (3.5 + 3.5) / (1 * 2 * 8),
    }
    assert report["throughput"] == {"per_makespan": 4 / 8, "per_active_node": 4 / 8}
    # Serving adds 0.5 + 0.25 on each stage.
    assert report["bubble_rate"] == (2 * 8 - 2 * (3.5 + 0.75)) / (2 * 8)
    # |1.25 - 1| / 0.5 = 0.5 and |1 - 1.5| / 0.5 = 1; request c has no prediction.
    assert report["forecast_error_t0"] == pytest.approx({"mean": 0.75, "p95": 0.5 + 0.95 * 0.5})
    assert report["forecast_error_tenths_t0"] == [1.0, 0.5], "request b arrived before a"
    assert report["t0_ms"] == 500
    assert report["weight_versions"] == {"last": 1, "mixed_batches": 0}


def test_the_file_holds_what_is_returned(example_run: Path) -> None:
    report = build_report(example_run)
    assert json.loads((example_run / "report.json").read_text()) == report
    assert not list(example_run.glob("*.partial"))


def test_stragglers_are_reported_as_they_were_seen(write_run: RunBuilder) -> None:
    slow = [Straggler(3, 1, 1.6, 60.0), Straggler(0, 0, 2.0, 70.0, 200.0)]
    report = build_report(write_run(RunFacts("fill", "torch", 4, 2, [1.0], 0.1, 300.0, 0, stragglers=slow)))
    assert report["stragglers"] == [
        {"node": 3, "stage": 1, "ratio": 1.6, "since_s": 60.0, "until_s": None},
        {"node": 0, "stage": 0, "ratio": 2.0, "since_s": 70.0, "until_s": 200.0},
    ]


def test_drift_is_reported_as_it_was_seen(write_run: RunBuilder) -> None:
    drift = [Drift(1, "serve", 2.5, 3.0), Drift(0, "backward", 0.4, 1.0, 2.0)]
    report = build_report(write_run(RunFacts("separate", "torch", 2, 1, [1.0], 0.1, 3.0, 0, drift=drift)))
    assert report["drift"] == [
        {"stage": 1, "kind": "serve", "ratio": 2.5, "since_s": 3.0, "until_s": None},
        {"stage": 0, "kind": "backward", "ratio": 0.4, "since_s": 1.0, "until_s": 2.0},
    ]


def test_keys_come_in_a_fixed_order(example_run: Path) -> None:
    assert list(build_report(example_run)) == [
        *("policy", "engine", "nodes", "stages", "duration_s", "complete", "attempts", "serving", "training"),
        *("throughput", "stage_time", "between_passes_ms", "bubble_rate"),
        *("forecast_error_t0", "forecast_error_tenths_t0"),
        *("forecast_error_ttft_ms", "forecast_error_tpot_ms", "t0_ms", "pace_ms", "weight_versions", "spans"),
        *("malformed_lines", "outside_range", "drift", "stragglers", "memory", "checkpoints", "across_nodes"),
        *("disk", "changes"),
    ]


def test_a_run_in_which_nothing_happened_has_every_key(empty_run: Path) -> None:
    report = build_report(empty_run)
    assert report["serving"].keys() >= {"received", "slo", "response_ms", "ttft_ms", "tpot_ms", "nll"}
    assert report["training"]["stage_share"] is None
    assert report["bubble_rate"] is None
    assert report["serving"]["slo"] == {"1": None, "5": None, "10": None}


def test_one_rejected_request_alone(write_run: RunBuilder) -> None:
    facts = RunFacts("separate", "torch", 2, 1, [1.0, 2.5], 0.1, 3.0, 0)
    report = build_report(write_run(facts, [], [ServedTask("a", "rejected", 0.0, 9)]))
    assert report["serving"]["slo"] == {"1": 0.0, "2.5": 0.0}
    assert report["serving"]["response_ms"] == dict.fromkeys(["mean", "p50", "p95", "p99"])
    assert report["training"]["hold_s"] == {"mean": None, "max": None}
    assert report["throughput"] == {"per_makespan": None, "per_active_node": None}


def test_one_request_alone(write_run: RunBuilder) -> None:
    facts = RunFacts("separate", "torch", 2, 1, [1], 0.5, 3.0, 0)
    served = ServedTask("a", "finished", 1.0, 9, 0, 1.0, 1.5, 1.5, 9.0, 8, [], (0, 0), 0.5)
    report = build_report(write_run(facts, [Span(0, 0, "a", "serve", 1.0, 1.5, 0, 1)], [served]))
    assert report["serving"]["slo"] == {"1": 1.0}
    assert report["bubble_rate"] == 0.0
    assert report["throughput"] == {"per_makespan": 1 / 0.5, "per_active_node": 1 / 0.5}
    assert report["training"]["stage_share"] == 0.0


def test_what_was_done_for_each_key() -> None:
    def served(outcome: Outcome, key: str | None, output: list[int]) -> ServedTask:
        return ServedTask("x", outcome, 0.0, 10, output=output, key=key)

    tasks = [
        served("finished", "a", [1, 2]),
        served("lost", "a", []),
        served("finished", "b", [3]),
        served("finished", None, []),
    ]
    posted = [PostedSample("s0", "b"), PostedSample("s1", "c"), PostedSample("s2", "c"), PostedSample("s3")]
    trained = [TrainedTask("posted0", "finished", 0.0, 8, samples=["s0", "s2"])]
    uses = KeyUses()
    records: list[TaskRecord] = [*tasks, *trained]
    for task in records:
        uses.add(task)
    assert {key: list(use.values()) for key, use in uses.figures(posted).items()} == {
        "a": [2, 1, 20, 2, 0, 0],
        "b": [1, 1, 10, 1, 1, 1],
        "c": [0, 0, 0, 0, 2, 1],
    }


def test_samples_of_clients_are_counted_by_the_key_that_brought_them(example_run: Path) -> None:
    (example_run / SAMPLES).write_text('{"id":"s0","received":1.0,"text":"a","key":"eve"}\n{"id":"s1"}\n{"id":"cut')
    assert build_report(example_run)["serving"]["keys"]["eve"]["samples"] == 1


def steady(seconds: int) -> list[Span]:
    """One request that gets a token every 20 ms: 5 ms on each of two stages, one after the other."""
    spans = []
    for token in range(50 * seconds):
        start = 0.02 * token
        spans.append(Span(0, 0, "a", "serve", start, start + 0.005, 0, token))
        spans.append(Span(0, 1, "a", "serve", start + 0.005, start + 0.01, 0, token))
        spans.append(Span(0, 0, "m", "forward", start + 0.006, start + 0.01, 0))
    return spans


def test_a_sample_of_the_work_tells_nearly_the_same(write_run: RunBuilder) -> None:
    served = ServedTask("a", "finished", 0.0, 4, first_token=0.011, finished=60.0, output=[1] * 3000)
    facts = RunFacts("x", "emulated", 1, 2, [1.0], 3.0, 60.0, 0)
    spans = steady(60)
    whole = build_report(write_run(facts, spans, [served]))
    some = [span for span in spans if is_kept("sampled", span.start)]
    assert len(some) == pytest.approx(len(spans) / 10, rel=0.01)
    sampled = build_report(write_run(msgspec.structs.replace(facts, spans="sampled"), some, [served]))
    assert sampled["serving"]["inter_token_ms"] == pytest.approx(whole["serving"]["inter_token_ms"], rel=1e-3)
    assert sampled["between_passes_ms"] == pytest.approx(whole["between_passes_ms"], rel=0.02, abs=1e-6)
    for kind in ("decode", "forward"):
        assert sampled["stage_time"][kind] == pytest.approx(whole["stage_time"][kind], rel=0.01)
    assert sampled["bubble_rate"] == pytest.approx(whole["bubble_rate"], rel=0.01)
    assert (whole["spans"], sampled["spans"]) == ("all", "sampled")


def test_without_the_work_of_stages_the_rest_is_known(write_run: RunBuilder) -> None:
    served = ServedTask("a", "finished", 0.0, 4, first_token=1.0, finished=2.0, output=[1] * 3)
    report = build_report(write_run(RunFacts("x", "emulated", 1, 2, [1.0], 3.0, 60.0, 0, spans="off"), [], [served]))
    assert report["serving"]["tpot_ms"]["mean"] == 500.0 and report["serving"]["inter_token_ms"]["mean"] is None
    assert (
        report["bubble_rate"] is report["weight_versions"]["mixed_batches"] is report["serving"]["mean_batch"] is None
    )
