from itertools import combinations

import pytest

from lemix_hpc.policy.stage_queue import Ready, forward_limit, pick

# From first to last: nobody waits for training, and what frees memory goes before what takes it.
ORDER = [Ready.SERVE, Ready.COMMIT, Ready.BACKWARD, Ready.FORWARD]


def test_the_first_of_what_is_ready_is_picked() -> None:
    for count in range(1, len(ORDER) + 1):
        for ready in combinations(ORDER, count):
            assert pick(set(ready)) is ready[0]


def test_nothing_is_picked_when_nothing_is_ready() -> None:
    assert pick(set()) is None


@pytest.mark.parametrize(("stage", "limit"), [(0, 4), (1, 3), (3, 1)])
def test_1f1b_keeps_one_micro_batch_for_each_stage_from_here_on(stage: int, limit: int) -> None:
    assert forward_limit(stage, 4, group_size=16, gpipe=False) == limit


@pytest.mark.parametrize("stage", range(4))
def test_gpipe_keeps_the_whole_group(stage: int) -> None:
    assert forward_limit(stage, 4, group_size=16, gpipe=True) == 16
