"""Who is silent for too long is named, and nobody else."""

import pytest

from lemix_hpc.runtime.scheduler.watch import Watch


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_the_rank_that_was_silent_longest_is_named() -> None:
    now = Clock()
    watch = Watch(8.0, now, lambda rank: f"role {rank}")
    for time in range(20):
        now.time = float(time)
        watch.heard(1)
        if time <= 5:
            watch.heard(2)
        if time <= 4:
            watch.heard(3)
        if time <= 12:
            watch.check()
        elif time == 13:
            with pytest.raises(TimeoutError, match=r"rank 3 \(role 3\) has not been heard of for 8 s"):
                watch.check()


def test_a_scheduler_that_was_away_blames_nobody() -> None:
    now = Clock()
    watch = Watch(8.0, now, str)
    watch.heard(1)
    for _ in range(3):
        now.time += 1000.0
        watch.check()
    for _ in range(8):
        now.time += 1.0
        watch.check()
    now.time += 1.0
    with pytest.raises(TimeoutError):
        watch.check()


def test_who_was_never_heard_of_or_has_left_is_not_missed() -> None:
    now = Clock()
    watch = Watch(8.0, now, str)
    watch.heard(1)
    watch.forget(1)
    watch.forget(2)
    for _ in range(20):
        now.time += 1.0
        watch.check()
