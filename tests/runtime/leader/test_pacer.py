"""A leader that waits with its batches until they are due, on messages handed to it one by one."""

from dataclasses import dataclass

import pytest

from lemix_hpc.engines.protocol import SequenceResult
from lemix_hpc.policy.pacing import FIRST_MARGIN, NO_PATIENCE, PASS_SHARE, PATIENCE, RECENT
from lemix_hpc.profiling.coefficients import CoefficientFile
from lemix_hpc.runtime.leader.batching_leader import Leader
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.rank_layout import Layout
from tests.runtime.leader.no_limits import NO_LIMITS
from tests.runtime.leader.test_batching_leader import Post, members, ran

TTFT, TPOT, PASS = 1.0, 0.1, 0.01


def keep_pace(per_token: float = 0.0, stages: int = 1) -> m.KeepPace:
    """Every pass takes 10 ms on each stage, and `per_token` [s] more for each new token."""
    times = {
        "schema": 1,
        "form": "affine-quadratic",
        "hardware": "any",
        "model": "any",
        "dtype": "float32",
        "layers": stages,
        "per_layer": {"forward": {"a": PASS, "b": per_token, "c": 0.0}},
        "provenance": {},
    }
    file = CoefficientFile.model_validate(times)
    return m.KeepPace(TTFT, TPOT, file.model_dump_json(by_alias=True, exclude_none=True), batch_share=0.5)


MARGIN = FIRST_MARGIN * TPOT


@dataclass
class Clock:
    time: float = 0.0

    def now(self) -> float:
        return self.time

    def start(self, start_time: float) -> None:
        """It has started."""


@dataclass
class Paced:
    """A leader that keeps pace."""

    post: Post
    clock: Clock

    def __post_init__(self) -> None:
        limits = {"max_requests": 8, "max_tokens": 1000}
        self.leader = Leader(Layout(1, 1), 0, self.post, self.clock, **limits, temperature=0.0, memory=NO_LIMITS)  # type: ignore[arg-type]

    def at(self, time: float, *messages: m.AnyMessage) -> list[list[int]]:
        """The batches that it forms at this time when these messages come."""
        self.clock.time = time
        self.post.arriving = list(messages)
        self.leader.turn()
        return [members(serve) for serve in self.post.taken(m.Serve)]


@pytest.fixture
def paced() -> Paced:
    leader = Paced(Post([]), Clock())
    assert leader.at(0.0, keep_pace()) == []
    return leader


def request(task: int, arrival: float) -> m.PlaceRequest:
    return m.PlaceRequest(task, 5, 9, [], arrival, arrival)


def served(batch: int, tasks: list[int], time: float) -> tuple[m.AnyMessage, ...]:
    return ran(batch, tasks), m.Served(batch, [SequenceResult(task, 0.0, 4, 7) for task in tasks], 0, time)


def test_requests_wait_until_the_first_of_them_is_due_and_go_together(paced: Paced) -> None:
    assert paced.at(0.0, request(1, 0.0)) == []
    due = TTFT - PASS - MARGIN
    assert paced.leader.until_due() == pytest.approx(due)
    assert paced.at(due - 0.01, request(2, due - 0.01)) == []
    assert paced.at(due + 1e-9) == [[1, 2]]
    # The first token is there. The next one is aimed at a margin before its limit, so it comes at once; then there is credit.
    assert paced.at(0.92, *served(1, [1, 2], 0.92)) == [[1, 2]]
    assert paced.at(0.93, *served(2, [1, 2], 0.93)) == []
    assert paced.at(0.92 + 2 * TPOT - PASS - MARGIN) == []
    assert paced.at(0.92 + 2 * TPOT - PASS - 0.9 * MARGIN) == [[1, 2]], "the margin has become a little smaller"


def test_without_training_on_the_first_stage_nothing_waits(paced: Paced) -> None:
    assert paced.at(0.0, request(1, 0.0), trained(0.01)) == []
    assert paced.at(0.1, m.FirstStageIdle(0.1)) == []
    assert paced.leader.until_due() == pytest.approx(PATIENCE * TPOT), "more of it may come"
    assert paced.at(0.1 + PATIENCE * TPOT) == [[1]]
    assert paced.at(0.11, *served(1, [1], 0.11)) == [[1]]
    assert paced.at(0.12, *served(2, [1], 0.12)) == [[1]], "for as long as there is none"
    assert paced.at(0.13, m.FirstStageIdle(float("inf")), *served(3, [1], 0.13)) == []


def test_where_nothing_has_trained_for_a_while_nothing_waits_for_it(paced: Paced) -> None:
    later = 0.1 + RECENT * TPOT
    assert paced.at(0.0, trained(0.01)) == []
    assert paced.at(later, m.FirstStageIdle(later), request(1, later)) == []
    assert paced.leader.until_due() == pytest.approx(NO_PATIENCE * TPOT)


def test_what_is_late_goes_at_once(paced: Paced) -> None:
    assert paced.at(5.0, request(1, 0.0)) == [[1]]
    assert paced.at(5.1, *served(1, [1], 5.1)) == [[1]], "the margin has grown by that"


def test_a_stage_that_speaks_before_there_is_a_pace_to_keep_says_it_again() -> None:
    leader = Paced(Post([]), Clock())
    assert leader.at(0.0, m.FirstStageIdle(0.0), keep_pace()) == []
    assert leader.at(0.0, request(1, 0.0)) == []


def parts(post: Post) -> list[list[tuple[int, int, int, bool]]]:
    """Of each batch that was sent: request, new tokens, cached ones, and whether more of the prompt follows."""
    sent = [serve for serve in post.taken(m.Serve) if isinstance(serve, m.Serve)]
    return [[(s.request, s.length, s.cached, s.partial) for s in serve.batch.sequences] for serve in sent]


def test_long_prompts_are_cut_to_what_keeps_nobody_waiting_for_long() -> None:
    leader = Paced(Post([]), Clock())
    leader.at(0.0, keep_pace(per_token=1e-3))
    limit = round((PASS_SHARE * TPOT - PASS) / 1e-3)
    tokens = list(range(limit + 30))
    leader.clock.time = 2.0  # both are late
    leader.post.arriving = [m.PlaceRequest(1, limit + 30, 2, tokens, 0.0, 0.0), m.PlaceRequest(2, 25, 2, [], 1.0, 1.0)]
    leader.leader.turn()
    assert parts(leader.post)[0] == [(1, limit, 0, True)]
    answer = m.Served(1, [SequenceResult(1, 0.0, 0, None)], 0, 2.1)
    leader.post.arriving = [ran(1, [1]), answer]
    leader.leader.turn()
    assert parts(leader.post)[-1] == [(1, 30, limit, False), (2, 25, 0, False)]


def test_prompts_are_whole_where_there_is_no_training() -> None:
    leader = Paced(Post([]), Clock())
    leader.at(0.0, keep_pace(per_token=1e-3))
    leader.at(0.0, m.FirstStageIdle(-1.0))
    leader.post.arriving = [m.PlaceRequest(1, 90, 2, [], 0.0, 0.0)]
    leader.leader.turn()
    assert parts(leader.post) == [[(1, 90, 0, False)]]


LATER = 1e6


def patient(task: int, key: float = LATER) -> m.PlaceRequest:
    return m.PlaceRequest(task, 5, 9, [], key, 0.0, patient=True)


def trained(seconds: float) -> m.SpanReport:
    return m.SpanReport([m.WorkSpan(0, 0, "forward", [99], 0.0, seconds, 0, -1, True)])


def test_batch_requests_wait_until_they_are_owed_time_and_pay_for_it(paced: Paced) -> None:
    assert paced.at(0.0, patient(1), patient(2)) == []
    assert paced.leader.until_due() == LATER, "when they are promoted"
    assert paced.at(0.1, trained(0.01)) == [[1, 2]], "half of that is theirs"
    assert paced.at(0.11, *served(1, [1, 2], 0.11)) == [], "a pass takes 10 ms, half of which they have to pay"
    assert paced.at(0.12, trained(0.005)) == [[1, 2]]


def test_batch_requests_join_what_is_due_and_make_nothing_due(paced: Paced) -> None:
    assert paced.at(0.0, patient(1), trained(0.01)) == [[1]]
    assert paced.at(0.01, *served(1, [1], 0.01), request(3, 0.01), patient(2)) == []
    due = 0.01 + TTFT - PASS - MARGIN
    assert paced.leader.until_due() == pytest.approx(due - 0.01), "as if they were not there"
    assert paced.at(due + 1e-9) == [[3, 1]], "the one that has begun joins; prompts only while they are owed time"


def test_a_batch_of_batch_requests_ends_before_the_next_other_one_is_due(paced: Paced) -> None:
    due = TTFT - PASS - MARGIN
    assert paced.at(due - PASS / 2, request(1, 0.0), patient(2), trained(0.1)) == []
    assert paced.at(due + 1e-9) == [[1, 2]]


def test_without_training_batch_requests_go_at_once_and_behind_others(paced: Paced) -> None:
    assert paced.at(0.0, m.FirstStageIdle(-1.0), patient(2), request(1, 0.0)) == [[1, 2]]
    assert paced.at(0.1, *served(1, [1, 2], 0.1), patient(3)) == [[1, 2, 3]]


def test_a_batch_request_whose_window_is_nearly_over_is_due_at_once(paced: Paced) -> None:
    assert paced.at(0.0, patient(1, key=7.0)) == []
    assert paced.leader.until_due() == pytest.approx(7.0)
    assert paced.at(7.0) == [[1]]


def test_a_prompt_that_would_be_late_is_cut_in_fewer_parts() -> None:
    leader = Paced(Post([]), Clock())
    leader.at(0.0, keep_pace(per_token=1e-3))
    limit = round((PASS_SHARE * TPOT - PASS) / 1e-3)
    # In parts of that length it would take four batches, in one it is just in time.
    leader.clock.time = TTFT - 4 * limit * 1e-3 - 2 * PASS
    leader.post.arriving = [m.PlaceRequest(1, 4 * limit, 2, list(range(4 * limit)), 0.0, 0.0)]
    leader.leader.turn()
    assert parts(leader.post) == [[(1, 4 * limit, 0, False)]]
