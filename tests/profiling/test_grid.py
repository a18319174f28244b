import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Profile
from lemix_hpc.profiling.grid import GridPoint, design, spread_out

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=6)


@given(SIZES, SIZES, st.lists(st.integers(1, 300), max_size=4), st.none() | st.integers(1, 300), st.booleans())
def test_every_point_that_is_allowed_is_there_once(
    batches: list[int], lengths: list[int], contexts: list[int], longest: int | None, training: bool
) -> None:
    profile = Profile(batches=batches, lengths=lengths, contexts=contexts)
    limit = longest or 10**9
    sizes = {(b, n) for b in batches for n in lengths if n <= limit and b * n <= 1000}
    if not sizes:
        with pytest.raises(UserError, match=r"none of profile\.batches x profile\.lengths"):
            design(profile, longest=longest, max_tokens=1000, training=training)
        return
    grid = design(profile, longest=longest, max_tokens=1000, training=training)
    assert len(grid) == len(set(grid))
    assert {(p.batch, p.length) for p in grid if p.kind == "forward"} == sizes
    assert {(p.batch, p.length) for p in grid if p.kind == "backward"} == (sizes if training else set())
    decodes = {(b, c) for b in batches for c in contexts if c < limit}
    assert {(p.batch, p.context) for p in grid if p.kind == "decode"} == decodes
    assert all(p.length == 1 for p in grid if p.kind == "decode")


@given(st.integers(0, 70))
def test_spread_out_keeps_all_points(count: int) -> None:
    points = [GridPoint("forward", 1, length) for length in range(1, count + 1)]
    assert sorted(spread_out(points), key=lambda point: point.length) == points


def test_the_first_points_span_the_range() -> None:
    points = [GridPoint("forward", 1, length) for length in range(1, 66)]
    first = [point.length for point in spread_out(points)[:5]]
    assert first[:2] == [1, 65]
    assert sorted(first)[2] in range(28, 39)
    gaps = [later - earlier for earlier, later in zip(sorted(first), sorted(first)[1:], strict=False)]
    assert max(gaps) <= 34


def test_kinds_take_turns() -> None:
    profile = Profile(batches=[1], lengths=[8, 16, 32], contexts=[4, 8, 16])
    kinds = [point.kind for point in design(profile, longest=None, max_tokens=100, training=True)]
    assert kinds == ["forward", "decode", "backward"] * 3


def test_exceeds_compares_points_of_one_kind() -> None:
    point = GridPoint("forward", 2, 64)
    assert GridPoint("forward", 2, 128).exceeds(point)
    assert not GridPoint("forward", 1, 128).exceeds(point)
    assert not GridPoint("backward", 2, 128).exceeds(point)
