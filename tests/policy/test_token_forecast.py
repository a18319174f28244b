"""When first tokens and further ones are expected of requests that generate, in situations that can be followed by hand."""

from dataclasses import replace
from typing import Any

import pytest

from lemix_hpc.policy.events import GroupOffered, Place, RequestArrived, TaskFinished
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.token_forecast import TOKEN_MEMORY

# A pass takes 2 ms, and 0.1 ms for a token, on each of two stages.
TIMES = LatencyModel((Affine(2e-3, 1e-4, 0.0),) * 2, (Affine(4e-3, 2e-4, 0.0),) * 2)
BASE = SchedulerConfig(nodes=1, oracle=True, recalibrate=False, admission="none")
PACED = replace(BASE, ttft=1.0, tpot=0.05, placement="fill")


def placed(scheduler: Scheduler, now: float, task: int, prompt: int = 100, output: int = 101) -> Any:
    (place,) = scheduler.handle(RequestArrived(now, task, prompt, output))
    assert isinstance(place, Place)
    return place


def test_a_request_by_itself_takes_its_prompt_and_one_pass_for_each_token() -> None:
    place = placed(Scheduler(BASE, TIMES), 0.0, 0)
    # Beside its tokens the prompt's pass has the fixed cost, and is counted with one of a single token.
    assert place.first_token == pytest.approx(2 * (2e-3 + 1e-4 + 100 * 1e-4))
    assert place.token == pytest.approx(2 * (2e-3 + 1e-4))


def test_prompts_that_are_only_scored_have_no_such_forecast() -> None:
    place = placed(Scheduler(BASE, TIMES), 0.0, 0, output=0)
    assert (place.first_token, place.token) == (None, None)


def test_paced_tokens_come_as_they_are_due_and_a_response_follows_from_them() -> None:
    place = placed(Scheduler(PACED, TIMES), 0.0, 0)
    assert place.token == pytest.approx(0.05)
    assert place.response == pytest.approx(place.first_token + 100 * place.token)


def test_the_first_prompt_of_a_node_that_trains_waits_until_it_is_due() -> None:
    idle, trains = Scheduler(PACED, TIMES), Scheduler(PACED, TIMES)
    trains.handle(GroupOffered(0.0, 0, (0,), 1, (100,)))
    early, late = placed(idle, 0.0, 1), placed(trains, 0.0, 1)
    assert early.first_token < 0.03
    # One TPOT limit, the first margin, before its own limit.
    assert late.first_token == pytest.approx(0.95)


def test_beside_others_it_waits_for_half_the_time_between_passes_and_prompts_go_one_behind_the_other() -> None:
    scheduler = Scheduler(replace(PACED, batch_requests=64), TIMES)
    for task in range(10):
        placed(scheduler, 0.0, task, prompt=1)
    pass_seconds = 2 * (2e-3 + 11 * 1e-4)
    first = placed(scheduler, 1.0, 10)
    assert first.first_token == pytest.approx(0.025 + 0.02 + pass_seconds)
    # The next one goes on in the second pass from now, which follows the first one at its full length.
    second = placed(scheduler, 1.0, 11)
    one_more = pass_seconds + 2e-4
    assert second.first_token == pytest.approx(0.025 + 0.04 + one_more + (0.04 - (0.04 - one_more)), rel=0.01)
    # When those have begun, a prompt finds the queue as long as what is left of it.
    later = placed(scheduler, 1.02, 12)
    assert first.first_token < later.first_token < second.first_token + 0.02


def test_a_long_prompt_takes_as_many_passes_as_its_parts() -> None:
    scheduler = Scheduler(PACED, TIMES)
    placed(scheduler, 0.0, 0, prompt=1)
    decode = 2 * (2e-3 + 2 * 1e-4)
    room = 0.8 * 0.05 - decode
    full = int(0.2 / room)
    place = placed(scheduler, 1.0, 1, prompt=1000)
    assert place.first_token == pytest.approx(0.025 + full * 0.04 + decode + 0.2 - full * room)


def test_a_request_far_back_in_the_queue_waits_for_full_batches_and_no_larger_ones() -> None:
    """Each prompt takes 20 ms, at 5.6 ms of decode for 8 requests in passes of 40 ms."""
    scheduler = Scheduler(replace(PACED, batch_requests=8), TIMES)
    firsts = [placed(scheduler, 0.0, task).first_token for task in range(2000)]
    each = 0.02 * 0.04 / (0.04 - 2 * (2e-3 + 8 * 1e-4))
    assert (firsts[1999] - firsts[1000]) / 999 == pytest.approx(each, rel=0.01)


def test_the_time_between_tokens_is_learned_from_answers_by_their_length() -> None:
    scheduler = Scheduler(PACED, TIMES)
    first = placed(scheduler, 0.0, 0, output=1025)
    # It took nine tenths of the limit for each token.
    scheduler.handle(TaskFinished(first.first_token + 1024 * 0.045, 0, 0, output=1025))
    share = 1024 / TOKEN_MEMORY
    assert placed(scheduler, 100.0, 1).token == pytest.approx(0.05 * (1 - 0.1 * share))


def test_passes_that_take_longer_than_the_limit_are_what_tokens_take() -> None:
    scheduler = Scheduler(PACED, TIMES)
    for task in range(400):
        place = placed(scheduler, 0.0, task, prompt=1)
    assert place.token == pytest.approx(2 * (2e-3 + 400e-4), rel=0.02)
