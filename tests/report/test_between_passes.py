"""What passes wait for although their stage is free, from spans that can be added up by hand."""

import pytest

from lemix_hpc.records.schema import ServedTask, Span
from lemix_hpc.report.between_passes import HandedOn, NextToken
from lemix_hpc.report.recent import AtHand
from tests.report.work import work


def serve(stage: int, batch: int, start: float, end: float, *tasks: str) -> list[Span]:
    return [Span(0, stage, task, "serve", start, end, 0, batch) for task in tasks]


SPANS = [
    *serve(0, 1, 0.0, 1.0, "a", "b"),
    *serve(1, 1, 1.25, 2.0, "a", "b"),
    Span(0, 0, "t", "forward", 1.5, 3.0, 0),
    # The first stage is free 1 s after the tokens of both, and the next one only when another batch has left it.
    *serve(0, 2, 3.125, 4.0, "a", "b"),
    *serve(0, 3, 4.0, 4.25, "c"),
    *serve(1, 3, 4.5, 6.0, "c"),
    *serve(1, 2, 6.5, 7.0, "a", "b"),
    # A prompt among its requests: who knows when that came.
    *serve(0, 4, 9.0, 10.0, "a", "d"),
]
SERVED = [
    ServedTask("a", "finished", 0.0, 1, first_token=2.0),
    ServedTask("b", "finished", 0.0, 1, first_token=2.0),
    ServedTask("c", "finished", 0.0, 1, first_token=6.0),
    ServedTask("d", "finished", 0.0, 1, first_token=11.0),
]


def handed_on(spans: list[Span]) -> list[float]:
    waits = HandedOn()
    return [wait for stretch in work(spans) if (wait := waits.add(stretch)) is not None]


def next_token(served: list[ServedTask], spans: list[Span], last_stage: int) -> list[float]:
    waits = NextToken(AtHand(served), last_stage)
    return [wait for stretch in work(spans) if (wait := waits.add(stretch)) is not None]


def test_a_batch_is_handed_on_when_it_is_there_and_the_stage_is_free() -> None:
    assert handed_on(SPANS) == pytest.approx([0.25, 0.25, 0.5])


def test_the_next_token_waits_for_the_one_before_and_for_the_stage() -> None:
    assert next_token(SERVED, SPANS, last_stage=1) == pytest.approx([0.125])


def test_on_a_single_stage_the_next_token_follows_the_same_one() -> None:
    spans = [*serve(0, 1, 0.0, 1.0, "a"), *serve(0, 2, 1.5, 2.0, "a")]
    served = [ServedTask("a", "finished", 0.0, 1, first_token=1.0)]
    assert next_token(served, spans, last_stage=0) == [0.5]
    assert handed_on(spans) == []


def test_nothing_ran() -> None:
    assert handed_on([]) == next_token([], [], last_stage=0) == []
