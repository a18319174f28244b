"""Requests are made as they are due, and are those that there would be if all were made at once."""

import hashlib
import itertools
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.serving_section import Conversations, GeneratedSource, Serving, Window
from lemix_hpc.workload.demand import Demand
from lemix_hpc.workload.request_stream import RequestStream
from lemix_hpc.workload.requests import load_requests
from lemix_hpc.workload.tasks import Request
from lemix_hpc.workload.tokenizer import ByteTokenizer

SOURCES: dict[str, dict[str, Any]] = {
    "poisson": {"kind": "poisson", "rate": 7.0, "requests": 3000, "lengths": "azure-code"},
    "duration": {"kind": "poisson", "rate": 7.0, "duration_s": 400.0},
    "bursty": {"kind": "bursty", "rate": 9.0, "on_s": 20.0, "off_s": 15.0, "duration_s": 700.0},
    "daily": {"kind": "daily", "rate": 5.0, "swing": 0.8, "period_s": 300.0, "requests": 2500},
    "constant": {"kind": "constant", "rate": 4.0, "requests": 2200},
}
SERVED: dict[str, dict[str, Any]] = {
    "plain": {"mode": "generate"},
    "text": {"mode": "score", "max_prompt_tokens": 9, "batch_requests": 0.3},
    "talk": {
        "mode": "generate",
        "conversations": Conversations(turns=3, think_s=2.0),
        "max_prompt_tokens": 40,
        "max_new_tokens": 7,
    },
    "window": {
        "mode": "generate",
        "window": Window(start_s=30.0, end_s=250.0, limit=1100),
        "rate_scale": 1.7,
        "batch_requests": 0.5,
    },
}
MADE_AT_ONCE = {
    ("poisson", "plain"): (3000, "5815f7e6c7c66a52"),
    ("poisson", "text"): (3000, "9efebf79b10c776f"),
    ("poisson", "talk"): (3000, "199cbdff5fb328fc"),
    ("poisson", "window"): (1100, "2af07dd3b417fefa"),
    ("duration", "plain"): (2875, "58b9c5dac957aef7"),
    ("duration", "text"): (2875, "b7c3d86bd0a40d56"),
    ("duration", "talk"): (2875, "5f7f17e165c9e10a"),
    ("duration", "window"): (1100, "d8e7724e7e3be1f0"),
    ("bursty", "plain"): (3612, "5b9ba3d27667eb26"),
    ("bursty", "text"): (3612, "a46a77ddfb3495db"),
    ("bursty", "talk"): (3612, "1fc36320a0a93771"),
    ("bursty", "window"): (1100, "7a25dc8eeb7871a6"),
    ("daily", "plain"): (2500, "cc7fc7fdb90dc47e"),
    ("daily", "text"): (2500, "11624bad7f24061b"),
    ("daily", "talk"): (2500, "af367aa1788d4dc5"),
    ("daily", "window"): (1100, "5b6824b2c4999dd0"),
    ("constant", "plain"): (2200, "a830bae01f2ad300"),
    ("constant", "text"): (2200, "e260e7f178e726b8"),
    ("constant", "talk"): (2200, "2da476a17349187f"),
    ("constant", "window"): (880, "ea39ebcc0200c94e"),
}
"""How many requests, and a digest of them, of the code that drew all of them at once and kept them in lists."""


def stream(source: str, served: str) -> RequestStream:
    tokenizer = ByteTokenizer() if served in ("text", "talk") else None
    serving = Serving(source=GeneratedSource(**SOURCES[source]), **SERVED[served])
    return load_requests(serving, seed=11, tokenizer=tokenizer).requests


@pytest.mark.parametrize(("source", "served"), MADE_AT_ONCE)
def test_they_are_those_that_were_made_at_once(source: str, served: str) -> None:
    requests = stream(source, served)
    found = hashlib.sha256()
    for r in requests:
        fields = (r.id, r.arrival, r.prompt_tokens, r.output_tokens, r.tokens, r.after, r.think_s, r.service)
        found.update(repr(fields).encode())
    assert (len(requests), found.hexdigest()[:16]) == MADE_AT_ONCE[source, served]


@given(st.sampled_from(sorted(SERVED)), st.integers(0, 2300))
def test_those_behind_a_place_are_the_same(served: str, place: int) -> None:
    requests = stream("constant", served)
    behind = list(itertools.islice(requests.behind(place), 30))
    assert behind == list(itertools.islice(requests, place, place + 30))
    assert [request.place for request in behind] == list(range(place, min(place + 30, len(requests))))


def test_lengths_come_without_tokens() -> None:
    requests = stream("constant", "talk")
    for request, only in zip(itertools.islice(requests, 30), requests.lengths(), strict=False):
        assert request.tokens and not only.tokens
        assert (request.prompt_tokens, request.output_tokens, request.after) == (
            only.prompt_tokens,
            only.output_tokens,
            only.after,
        )


def test_ten_times_as_many_take_no_more_memory() -> None:
    def peak(count: int) -> int:
        source = GeneratedSource(kind="poisson", rate=100.0, requests=count)
        serving = Serving(source=source, mode="generate", max_prompt_tokens=64, max_new_tokens=64)
        tracemalloc.start()
        requests = load_requests(serving, seed=0, tokenizer=None).requests
        assert sum(1 for _ in requests) == len(requests) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # What is imported and cached once does not count.
    assert peak(50_000) < 1.2 * peak(5_000)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1))
def test_demand_counts_what_a_walk_over_all_requests_would(lengths: list[tuple[int, int]]) -> None:
    demand = Demand.of(Request(f"r{n}", float(n), *both) for n, both in enumerate(lengths))
    found, passes = demand.limited, [(prompt, max(0, output - 1)) for prompt, output in lengths]
    assert (demand.count, found.count) == (len(lengths), len(lengths))
    assert demand.longest == max(map(sum, lengths)) and demand.last_arrival == len(lengths) - 1
    assert demand.generates == any(output for _, output in lengths)
    assert found.passes == sum(count for _, count in passes)
    assert found.read == sum(prompt + earlier for prompt, count in passes for earlier in range(count))
    assert found.halves == sum(2 * prompt + max(0, output - 2) for prompt, output in lengths)
    assert [found.output_at(place) for place in range(len(lengths))] == sorted(output for _, output in lengths)
