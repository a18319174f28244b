"""Two requests that generate on two stages, by hand."""

import pytest

from lemix_hpc.records.schema import ServedTask, Span
from lemix_hpc.report.recent import AtHand
from lemix_hpc.report.token_times import BetweenTokens, StageShares
from tests.report.work import work


def serve(stage: int, batch: int, start: float, end: float, *tasks: str) -> list[Span]:
    return [Span(0, stage, task, "serve", start, end, 0, batch) for task in tasks]


# a has its prompt in batch 1, which is cut in two: its second part is in batch 2. b joins in batch 3.
SPANS = [
    *serve(0, 1, 0.0, 1.0, "a"),
    *serve(1, 1, 1.0, 2.0, "a"),
    *serve(0, 2, 2.0, 3.0, "a"),
    *serve(1, 2, 3.0, 4.0, "a"),
    *serve(0, 3, 4.0, 6.0, "a", "b"),
    *serve(1, 3, 6.0, 8.0, "a", "b"),
    *serve(0, 4, 8.0, 8.5, "a", "b"),
    *serve(1, 4, 9.0, 9.5, "a", "b"),
    Span(0, 0, "t", "forward", 8.5, 9.0, 0, -1),
    Span(0, 0, "t", "backward", 9.0, 10.0, 0, -1),
]
SERVED = [
    ServedTask("a", "finished", 0.0, 4, first_token=4.0, finished=9.5, output=[1, 2, 3]),
    ServedTask("b", "finished", 3.5, 4, first_token=8.0, finished=9.5, output=[1, 2]),
    ServedTask("c", "lost", 0.0, 4),
]


def test_tokens_follow_the_first_one_at_the_ends_of_passes_on_the_last_stage() -> None:
    between = BetweenTokens(AtHand(SERVED), last_stage=1)
    assert sorted(gap for stretch in work(SPANS) for _, gap in between.add(stretch)) == [1.5, 1.5, 4.0]


def test_stage_time_is_told_apart_by_what_batches_are_for() -> None:
    shares = StageShares(AtHand(SERVED))
    for stretch in work(SPANS):
        shares.add(stretch)
    expected = {"prefill": 8.0, "decode": 1.0, "forward": 0.5, "backward": 1.0, "step": 0.0}
    assert shares.of(20.0) == pytest.approx({kind: seconds / 20.0 for kind, seconds in expected.items()})
    assert set(shares.of(0.0).values()) == {None}
