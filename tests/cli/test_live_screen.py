"""The live view on terminals of 80 and 120 columns, drawn from pictures of a run in each of its phases."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lemix_hpc.cli.live.figures import figures
from lemix_hpc.cli.live.picture import Picture
from lemix_hpc.cli.live.screen import IDLE, lane, screen
from lemix_hpc.cli.live.words import duration, milliseconds
from lemix_hpc.launch.job_queue import JobInQueue
from lemix_hpc.policy.drift import Drift, Straggler
from lemix_hpc.records.attempts import AttemptEnd
from lemix_hpc.records.schema import ClassFigures, MemoryUse, MemoryWaits, Progress, StageMemoryShares, StageUse

NOW = 1_800_000_000.0
NAME = "llama-20270115-090000-ab12"
WIDTHS = (80, 120)


def times(**given: float) -> dict[str, float | None]:
    return {"mean": None, "p50": None, "p95": None, "p99": None} | given


def of_class(finished: int, attainment: dict[str, float | None], p99: float) -> ClassFigures:
    """Responses take four times as long as first tokens, and these as long as four further ones."""
    return ClassFigures(
        received=finished + 2,
        finished=finished,
        response_ms=times(p50=p99, p99=4 * p99),
        ttft_ms=times(p99=p99),
        tpot_ms=times(p99=p99 / 4),
        inter_token_ms=times(),
        attainment=attainment,
        tokens_per_s=1000.0,
    )


USES = [[StageUse(0.4, 0.2, 0.1, 0.05, 0.05), StageUse(0.3, 0.2, 0.2)], [StageUse(), StageUse(1.0)]]
RUNNING = Progress(
    "running",
    elapsed_s=83.0,
    address="http://127.0.0.1:8000",
    keys="/scratch/me/runs/api_key",
    received=520,
    requests=2000,
    served=512,
    requests_per_s=42.12,
    under_way=8,
    waiting=3,
    response_ms_p50=198.2,
    classes={"interactive": of_class(512, {"ttft": 0.99, "tpot": 0.975, "all": 0.97}, 80.0)},
    trained=320,
    training_total=1000,
    steps=40,
    tokens_per_s=5120.0,
    held=4,
    loss=3.25,
    losses=[5.0, 4.0, 3.5, 3.25],
    forecast_error=0.12,
    versions=[40, 40],
    checkpoint_step=32,
    stages=USES,
)


def picture(state: str = "RUNNING", progress: Progress | None = RUNNING, **given: Any) -> Picture:
    return Picture(NAME, state, NOW - 600.0, NOW, progress, **({"ends": (None,)} | given))


def drawn(shown: Picture, width: int, height: int = 40) -> list[str]:
    """The lines on a terminal, none of them wider than that."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(screen(shown, width, height))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    return lines


def text(lines: list[str]) -> str:
    """Without line breaks: folded or not, it is there."""
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_while_it_waits_for_slurm(width: int) -> None:
    queue = JobInQueue("Resources", "gpu", 3, 12, NOW + 1260.0)
    lines = drawn(picture("PENDING", None, job=queue, job_id="4711", ends=()), width)
    assert f"{NAME} pending: Resources, place 3 of 12 that wait in gpu, expected to start at " in text(lines)
    assert "for 10:00, job 4711" in lines
    assert text(lines).endswith("and so may fewer `nodes.count` or GPUs"), "what it means, and the way out"
    untold = drawn(picture("PENDING", None, ends=()), width)
    assert untold == [f"{NAME}  pending", "for 10:00"], "what Slurm does not tell is not shown"


@pytest.mark.parametrize("width", WIDTHS)
def test_while_it_starts(width: int) -> None:
    starting = Progress("starting", message="building the engines", since=NOW - 42.0, built=3, engines=8)
    first, second, bar = drawn(picture(progress=starting), width)
    assert first == f"{NAME}  starting: building the engines: 3 of 8"
    assert (second, bar.count("━")) == ("for 42 s", width // 2 * 3 // 8)
    compiling = Progress("starting", message="compiling the scheduler, while the engines are built", since=NOW - 70.0)
    assert drawn(picture(progress=compiling), width)[-1] == "for 1:10"
    assert drawn(picture(progress=None), width) == [f"{NAME}  starting the ranks of attempt 0"]


@pytest.mark.parametrize("width", WIDTHS)
def test_while_it_runs(width: int) -> None:
    job = JobInQueue(partition="gpu", ends=NOW + 3600.0)
    lines = drawn(picture(job=job, job_id="4711", host="node7"), width)
    shown = text(lines)
    assert lines[0] == f"{NAME}  running"
    assert lines[1] == "1:23, 1:00:00 to the time limit, job 4711"
    assert "OpenAI API at http://127.0.0.1:8000/v1, key in /scratch/me/runs/api_key; from here by" in shown
    assert "`ssh -N -L 8000:127.0.0.1:8000 node7`" in shown
    lanes = [line for line in lines if line.startswith("node ")]
    assert [line[:14] for line in lanes] == [f"node {node} stage {stage}" for node in (0, 1) for stage in (0, 1)]
    assert [line[-4:].strip() for line in lanes] == ["20%", "30%", "100%", "0%"]
    assert ("40%" in lanes[0]) == (width == 120), "shares of each kind where there is room"
    for told in (
        "served 512/2000 · 42.1 requests/s · 8 under way, 3 of them not begun",
        "p99 of TTFT 80.0 ms, TPOT 20.0 ms, response 320 ms · median response 198 ms",
        "off by 12%",
        "99.0% within TTFT · 97.5% within TPOT · 97.0% within all limits",
        "trained 320/1000 in 40 steps · 5,120 tokens/s · 4 held back · loss 3.2500",
        "█▄▂▁ 5.000 to 3.250",
        "version 40 · checkpoint at step 32",
    ):
        assert told in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_while_it_drains(width: int) -> None:
    draining = msgspec.structs.replace(RUNNING, draining="asked to stop by `lemix stop`")
    lines = drawn(picture(progress=draining), width)
    assert lines[0] == f"{NAME}  draining: asked to stop by `lemix stop`"
    assert any(line.startswith("node 0 stage 0") for line in lines), "what has begun goes on"


@pytest.mark.parametrize("width", WIDTHS)
def test_when_it_has_failed(width: int) -> None:
    ends = (AttemptEnd("killed", "a rank", NOW - 60.0), AttemptEnd("error", "rank 2 failed\nand more", NOW))
    lines = drawn(picture("FAILED", ends=ends), width)
    assert lines[0] == f"{NAME}  failed: error: rank 2 failed"
    assert lines[1] == "1:23, attempt 1, before it killed"
    assert not any(line.startswith(("node ", "OpenAI")) for line in lines), "nobody works or answers any more"
    assert "served 512/2000 latency" in text(lines) and "/s" not in text(lines), "nothing of the last moment"


def test_between_attempts_figures_of_the_one_before_are_not_shown_as_if_they_were_new() -> None:
    ends = (AttemptEnd("node-failure", "node7", NOW - 60.0), None)
    lines = drawn(picture(ends=ends, earlier=True), 80)
    assert lines == [f"{NAME}  starting the ranks of attempt 1", "attempt 1, before it node-failure"]


def test_each_alarm_has_a_line() -> None:
    progress = msgspec.structs.replace(
        RUNNING,
        drift=[Drift(1, "serve", 2.96, since_s=1.0)],
        stragglers=[Straggler(3, 1, 1.62, since_s=60.0)],
        skipped=2,
        training_stopped=True,
        lost_losses=3,
        disk="No space left on device",
        checkpoint_failure="No space left on device",
    )
    alarms = [line for line in drawn(picture(progress=progress, age_s=80.0), 120) if line.startswith("! ")]
    assert alarms == [
        "! no news for 1:20: the run, or the file system of its directory, is stuck",
        "! not saved: No space left on device",
        "! disk: No space left on device",
        "! 2 more steps skipped: their gradients are not finite; training has stopped (training.on_nan)",
        "! the loss of 3 micro-batches is not finite",
        "! drift: stage 1 serve takes 3 x its predicted time",
        "! slow: node 3 stage 1, 1.6 x the others' time",
    ]


def test_lanes_that_do_not_fit_are_one_line() -> None:
    many = msgspec.structs.replace(RUNNING, stages=[[StageUse(0.5)] * 4] * 16)
    lines = drawn(picture(progress=many), 80, height=24)
    assert sum(line.startswith("node ") for line in lines) == 9
    assert "others         55 more stages, idle 50% in the mean" in lines


def test_a_profiling_job_has_a_bar_of_its_points() -> None:
    progress = Progress("running", elapsed_s=9.0, message="forward 8 x 16", measured=5, to_measure=20, left_s=61.4)
    lines = drawn(picture(progress=progress), 80)
    assert lines[0] == f"{NAME}  running: forward 8 x 16"
    assert "profiling  5/20 points · 1:01 left" in lines and lines[-1] == 10 * "━"


def test_what_a_run_does_not_know_is_not_shown() -> None:
    assert figures(Progress("running")) == []
    assert figures(Progress("running", attainment=[(0.0612, 0.95)])) == [("within", ["95.0% within 61.2 ms"])]
    batch = figures(Progress("running", classes={"batch": of_class(4, {"window": 1.0}, 80.0)}))
    assert batch == [("batch", ["finished 4/6", "response p99 320 ms", "100.0% within the window"])]
    waits, none = MemoryWaits(2, 0.5, 0.75), MemoryWaits(0, None, None)
    shares = [StageMemoryShares(peak, 0.25, 0.25, 0.25) for peak in (0.5, 0.75)]
    limited = figures(Progress("running"), MemoryUse(shares, none, waits, 3, 4096, 1, 8))
    assert limited == [("memory", ["up to 75% of stage 1", "2 waits of micro-batches", "3 offloads", "1 caches lost"])]
    assert figures(Progress("running", versions=[3, 5])) == [("weights", ["versions 3 to 5"])]


@given(st.lists(st.floats(0.0, 1.0), min_size=5, max_size=5), st.integers(1, 150))
def test_a_lane_is_as_wide_as_it_should_be_and_true_to_half_a_column(parts: list[float], columns: int) -> None:
    whole = max(1.0, sum(parts))
    use = StageUse(*(part / whole for part in parts))
    bar = lane(use, columns).plain
    assert len(bar) == columns
    assert abs(bar.count(IDLE) - use.idle * columns) <= 0.5 + 1e-6
    assert abs(bar.count("█") - use.serve * columns) <= 0.5 + 1e-6


def test_numbers_are_short() -> None:
    assert [duration(seconds) for seconds in (0.2, 59.4, 60.0, 3671.0, 270_000.0)] == [
        "0 s",
        "59 s",
        "1:00",
        "1:01:11",
        "3 d 3:00:00",
    ]
    assert [milliseconds(value) for value in (0.5, 99.94, 101.4, 6712.0, 12_345.0)] == [
        "0.5 ms",
        "99.9 ms",
        "101 ms",
        "6.71 s",
        "12.3 s",
    ]
