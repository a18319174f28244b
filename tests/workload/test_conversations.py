import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.serving_section import Conversations
from lemix_hpc.workload.conversations import in_conversations
from lemix_hpc.workload.tasks import Request


def source(lengths: list[tuple[int, int]], *, tokens: bool = False) -> list[Request]:
    return [
        Request(f"r{n}", float(n), prompt, output, tuple(range(prompt)) if tokens else ())
        for n, (prompt, output) in enumerate(lengths)
    ]


def joined(requests: list[Request], turns: int, longest: int | None = None) -> tuple[Request, ...]:
    thinking = np.random.default_rng(0).exponential(2.0, size=len(requests)).tolist()
    return tuple(in_conversations(requests, Conversations(turns=turns, think_s=2.0), longest, thinking))


def test_a_turn_carries_everything_said_before() -> None:
    first, second, third, other = joined(source([(10, 5), (20, 5), (30, 5), (40, 5)]), turns=3)
    assert (first.after, second.after, third.after, other.after) == (None, "r0", "r1", None)
    assert [r.prompt_tokens for r in (first, second, third, other)] == [10, 35, 70, 40]
    assert first.think_s == other.think_s == 0.0
    assert second.think_s > 0.0


def test_the_last_tokens_of_a_long_history_stay() -> None:
    _, second = joined(source([(4, 3), (5, 0)], tokens=True), turns=2, longest=7)
    assert second.prompt_tokens == 7
    assert second.tokens == (1, 2, 0, 1, 2, 3, 4), "the end of the stand-in for the answer, then the new prompt"


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=30), st.integers(1, 5))
def test_every_request_stays_and_prompts_have_their_tokens(lengths: list[tuple[int, int]], turns: int) -> None:
    requests = source(lengths, tokens=True)
    done = joined(requests, turns, longest=120)
    assert [r.id for r in done] == [r.id for r in requests]
    assert all(len(r.tokens) == r.prompt_tokens <= 120 for r in done)
    assert all((r.after is None) == (n % turns == 0) for n, r in enumerate(done))
    assert all(r.followed == ((n + 1) % turns != 0) for n, r in enumerate(done))
    assert done == joined(requests, turns, longest=120), "the same seed gives the same conversations"
