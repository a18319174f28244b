import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.serving_section import GeneratedSource, Serving, TraceSource, Window
from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.workload.ordered_rows import OrderedRows
from lemix_hpc.workload.requests import load_requests, within
from lemix_hpc.workload.tasks import Request
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.traces import TraceRow

POISSON = GeneratedSource(kind="poisson", rate=10.0, requests=50)

times = st.lists(st.integers(0, 1000).map(lambda quarter: quarter / 4), min_size=1, max_size=60)


def rows(at: list[float]) -> list[TraceRow]:
    return [TraceRow(time, number + 1, 1) for number, time in enumerate(at)]


@dataclass(frozen=True)
class Served:
    """What was loaded, with all requests in memory."""

    requests: tuple[Request, ...]
    malformed: tuple[str, ...]
    failed: int
    warnings: tuple[str, ...]


def serve(source: Any, *, seed: int = 0, text: bool = False, **serving: Any) -> Served:
    tokenizer = ByteTokenizer() if text else None
    loaded = load_requests(Serving(source=source, **serving), seed=seed, tokenizer=tokenizer)
    return Served(tuple(loaded.requests), loaded.malformed, loaded.failed, loaded.warnings)


def replayed(rows: list[TraceRow], window: Window) -> list[TraceRow]:
    """As a trace is: in order, by its own clock."""
    first = min(row.time for row in rows)
    return [row._replace(time=row.time - first - window.start_s) for row in within(OrderedRows(rows), window, first)]


@pytest.fixture
def burst_trace(tmp_path: Path) -> TraceSource:
    """Six requests at 100, 101, 101, 105, 110 s out of order, one of them failed, and one bad line."""
    path = tmp_path / "trace.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "101,m,20,2,22,l\n100,m,10,1,11,l\n101,m,21,3,24,l\n104,m,9,0,9,l\nbad\n110,m,5000,900,5900,l\n105,m,1,4,5,l\n"
    )
    return TraceSource(kind="burstgpt", path=path)


def test_times_start_with_the_trace_and_are_sorted(burst_trace: TraceSource) -> None:
    loaded = serve(burst_trace, mode="generate")
    assert [(r.id, r.arrival, r.prompt_tokens, r.output_tokens) for r in loaded.requests] == [
        ("r0", 0.0, 10, 1),
        ("r1", 1.0, 20, 2),
        ("r2", 1.0, 21, 3),
        ("r3", 5.0, 1, 4),
        ("r4", 10.0, 5000, 900),
    ]
    assert all(request.tokens == () for request in loaded.requests)
    assert loaded.failed == 1
    assert loaded.malformed == (f"{burst_trace.path}, line 6: 1 fields, where the header has 6",)


def test_times_go_on_over_midnight_to_a_microsecond(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-03-01 00:00:00.1234567,10,1\n2024-02-29 23:59:59.9999990,20,1\n2024-03-01 01:00:00+01:00,30,1\n"
    )
    loaded = serve(TraceSource(kind="azure", path=path), mode="generate")
    assert [request.prompt_tokens for request in loaded.requests] == [20, 30, 10]
    assert [request.arrival for request in loaded.requests] == pytest.approx([0, 1e-6, 0.123457], abs=1e-6)


def test_a_temporary_directory_without_room_is_named(burst_trace: TraceSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match=r"trace\.csv: its requests cannot be kept in .*: No space left.* Set TMPDIR"):
        serve(burst_trace)


def test_window_limit_and_rate(burst_trace: TraceSource) -> None:
    window = Window(start_s=1, end_s=10, limit=2)
    loaded = serve(burst_trace, mode="generate", window=window, rate_scale=2)
    assert [(r.arrival, r.prompt_tokens) for r in loaded.requests] == [(0.0, 20), (0.0, 21)]
    later = serve(burst_trace, mode="generate", window=Window(start_s=2, end_s=10), rate_scale=2)
    assert [(r.arrival, r.prompt_tokens) for r in later.requests] == [(1.5, 1)]


def test_empty_window_says_how_long_the_trace_is(burst_trace: TraceSource) -> None:
    with pytest.raises(UserError, match=r"trace.csv: no request between 20 s and the end; its 10 s have requests"):
        serve(burst_trace, window=Window(start_s=20))
    with pytest.raises(UserError, match=r"serving.source \(poisson\): no request .* it has no request at all"):
        serve(GeneratedSource(kind="poisson", rate=1e-6, duration_s=1.0))


def test_a_window_a_hundred_times_thinner_than_its_trace_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    busy = "".join(f"{10_000 + second / 10},5,5\n" for second in range(10_000))
    path.write_text(f"Timestamp,Request tokens,Response tokens\n0,5,5\n500,5,5\n900,5,5\n{busy}")
    trace = TraceSource(kind="burstgpt", path=path)
    told = serve(trace, window=Window(end_s=1000)).warnings
    assert told == (
        f"{path}: the window has 0.003 requests/s, and the whole trace 0.909, 303 times as many. "
        "Set serving.window to a busier part, or raise serving.rate_scale.",
    )
    assert serve(trace, window=Window(limit=3)).warnings, "the first three take 900 s"
    for meant in ({}, {"window": Window(start_s=10_000)}, {"window": Window(end_s=1000), "rate_scale": 10}):
        assert not serve(trace, **meant).warnings
    assert not serve(GeneratedSource(kind="bursty", rate=9, on_s=9, off_s=999, requests=9)).warnings


@given(times)
def test_every_row_comes_in_order_of_time(at: list[float]) -> None:
    assert [row.time for row in replayed(rows(at), Window())] == sorted(time - min(at) for time in at)


@given(st.floats(0.25, 8))
def test_scaling_divides_every_arrival(scale: float) -> None:
    plain, scaled = serve(POISSON).requests, serve(POISSON, rate_scale=scale).requests
    assert [request.arrival for request in scaled] == [request.arrival / scale for request in plain]


@given(times, st.integers(1, 999).map(lambda quarter: quarter / 4))
def test_two_windows_that_meet_hold_every_request_once(at: list[float], cut: float) -> None:
    whole = replayed(rows(at), Window())
    head = replayed(rows(at), Window(end_s=cut))
    tail = [] if max(at) - min(at) < cut else replayed(rows(at), Window(start_s=cut))
    joined = [(row.prompt_tokens, row.time) for row in head] + [(row.prompt_tokens, row.time + cut) for row in tail]
    assert joined == [(row.prompt_tokens, row.time) for row in whole]


@given(times, st.integers(1, 20))
def test_limit_takes_the_earliest(at: list[float], limit: int) -> None:
    whole = replayed(rows(at), Window())
    assert replayed(rows(at), Window(limit=limit)) == whole[:limit]


def test_caps_and_what_each_mode_needs(burst_trace: TraceSource) -> None:
    generated = serve(burst_trace, mode="generate", max_prompt_tokens=15, max_new_tokens=2)
    assert [(r.prompt_tokens, r.output_tokens) for r in generated.requests] == [
        (10, 1),
        (15, 2),
        (15, 2),
        (1, 2),
        (15, 2),
    ]
    scored = serve(burst_trace, mode="score", max_prompt_tokens=15)
    assert [(r.prompt_tokens, r.output_tokens) for r in scored.requests] == [(10, 0), (15, 0), (15, 0), (2, 0), (15, 0)]
    with pytest.raises(UserError, match=r"serving.max_prompt_tokens is 1, but scoring needs 2"):
        serve(burst_trace, mode="score", max_prompt_tokens=1)


def test_generated_workload_keeps_the_clock_of_its_process() -> None:
    constant = serve(GeneratedSource(kind="constant", rate=2, requests=4), mode="generate", window=Window(start_s=0.5))
    assert [request.arrival for request in constant.requests] == [0.0, 0.5, 1.0]
    assert serve(POISSON).requests[0].arrival > 0


@given(st.integers(0, 2**31))
def test_the_seed_decides_everything(seed: int) -> None:
    source = GeneratedSource(kind="poisson", rate=10.0, requests=5)
    one = serve(source, seed=seed, text=True, max_prompt_tokens=50)
    assert one == serve(source, seed=seed, text=True, max_prompt_tokens=50)
    other = serve(source, seed=seed + 1, text=True, max_prompt_tokens=50)
    assert {r.arrival for r in one.requests}.isdisjoint(r.arrival for r in other.requests)


def test_random_tokens_fill_prompts_within_the_vocabulary() -> None:
    requests = serve(POISSON, text=True).requests
    assert len(requests) == 50
    for request in requests:
        assert len(request.tokens) == request.prompt_tokens
        assert all(0 <= token < 257 for token in request.tokens)
    assert len({request.tokens for request in requests}) == 50
    assert [(r.arrival, r.prompt_tokens) for r in requests] == [
        (r.arrival, r.prompt_tokens) for r in serve(POISSON).requests
    ]


@pytest.mark.parametrize("longest", [10, 14, 100])
def test_text_fills_prompts_and_starts_again_at_its_end(write_jsonl: Callable[..., Path], longest: int) -> None:
    path = write_jsonl({"q": "One?", "a": "1."}, {"q": "bad"}, {"q": "Two?", "a": "2."})
    prompts = TextData(path=path, fields=TextFields(prompt="q", completion="a"))
    loaded = serve(POISSON, text=True, prompts=prompts, max_prompt_tokens=longest)
    eos = ByteTokenizer.eos
    stream = [*b"One?1.", eos, *b"Two?2.", eos]
    endless = stream * math.ceil(2 + 100 / len(stream))
    starts = set()
    for request in loaded.requests:
        assert len(request.tokens) == request.prompt_tokens
        matches = [at for at in range(len(stream)) if tuple(endless[at : at + request.prompt_tokens]) == request.tokens]
        assert matches
        starts.add(matches[0])
    assert len(starts) > 5
    assert len(loaded.malformed) == 1 and "line 2" in loaded.malformed[0]


def test_lines_of_a_batch_file_are_of_class_batch_and_others_as_the_recipe_says(
    write_jsonl: Callable[..., Path],
) -> None:
    path = write_jsonl(*({"custom_id": f"c{n}", "body": {"prompt": "x"}} for n in range(9)))
    lines = TraceSource(kind="openai-batch", path=path)
    assert [request.service for request in serve(lines).requests] == ["batch"] * 9
    assert {request.service for request in serve(lines, batch_requests=0.0).requests} == {"interactive"}
    drawn = GeneratedSource(kind="poisson", rate=10, requests=2000)
    assert {request.service for request in serve(drawn).requests} == {"interactive"}
    mixed = serve(drawn, batch_requests=0.3).requests
    assert sum(request.service == "batch" for request in mixed) == pytest.approx(600, rel=0.1)
    assert mixed == serve(drawn, batch_requests=0.3).requests
    plain = [msgspec.structs.replace(request, service="interactive") for request in mixed]
    assert tuple(plain) == serve(drawn).requests, "all else is drawn as before"


def test_batch_requests_bring_their_own_text(write_jsonl: Callable[..., Path]) -> None:
    bodies = [{"prompt": "A longer prompt", "max_tokens": 5}, {"prompt": "x"}]
    path = write_jsonl(*({"custom_id": f"c{n}", "body": body} for n, body in enumerate(bodies)))
    source = TraceSource(kind="openai-batch", path=path)
    generated = serve(source, text=True, mode="generate", max_prompt_tokens=8, max_new_tokens=3).requests
    assert [(r.id, r.arrival, bytes(r.tokens), r.output_tokens) for r in generated] == [
        ("c0", 0.0, b"A longer", 3),
        ("c1", 0.0, b"x", 3),
    ]
    assert serve(source, text=True, mode="generate").requests[1].output_tokens == 16
    scored = serve(source, text=True, mode="score").requests
    assert scored[1].tokens == (ByteTokenizer.eos, ord("x")) and scored[1].prompt_tokens == 2
    assert [(r.prompt_tokens, r.tokens) for r in serve(source).requests] == [(4, ()), (2, ())]
    with pytest.raises(UserError, match=r"serving.prompts is not used with an openai-batch source"):
        serve(source, text=True, prompts=TextData(path=path))


@pytest.mark.trial_data
def test_real_trace_with_real_text(trial_data: Path) -> None:
    source = TraceSource(kind="azure", path=trial_data / "azure-llm-2023" / "conv.csv")
    fields = TextFields(prompt="question", completion="answer")
    prompts = TextData(path=trial_data / "gsm8k" / "test.jsonl", fields=fields)
    loaded = serve(source, text=True, prompts=prompts, window=Window(end_s=60), rate_scale=2, max_prompt_tokens=512)
    whole = serve(source)
    assert len(whole.requests) == 9682 and whole.malformed == loaded.malformed == ()
    assert [r.arrival for r in loaded.requests] == [r.arrival / 2 for r in whole.requests if r.arrival < 60]
    assert [r.prompt_tokens for r in loaded.requests[:4]] == [374, 396, 512, 91]
    assert b" the " in max((bytes(t for t in r.tokens if t < 256) for r in loaded.requests), key=len)
