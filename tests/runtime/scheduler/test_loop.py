"""The scheduler rank's loop on a clock that stands still, with a real scheduler: what it sends, tells the policy and records.

Whole runs over MPI are in test_run.py, the clock of HTTP calls is in http/test_exchange.py.
"""

from __future__ import annotations

import math

import msgspec
import pytest

from lemix_hpc.policy.events import (
    GroupOffered,
    PassMeasured,
    RequestArrived,
    StageFinished,
    TaskFinished,
    Tick,
    TrainingClosed,
)
from lemix_hpc.records.inheritance import Inheritance
from lemix_hpc.records.journal import Accepted
from lemix_hpc.records.places import Places
from lemix_hpc.records.schema import ServedTask, Span, TrainedTask
from lemix_hpc.run_setup.scheduler_setup import Partners
from lemix_hpc.runtime.http.call import ResponsePart
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox
from lemix_hpc.workload.tasks import ApiCall, Request
from tests.runtime.scheduler.conftest import (
    LAYOUT,
    LEADERS,
    SHAPE,
    Caller,
    Rank,
    Server,
    Start,
    done,
    ran,
    trained,
    training,
    work,
)


def test_a_request_goes_when_it_is_due_to_the_leader_that_the_policy_chooses(start: Start) -> None:
    rank = start(Request("r0", 1.0, 3, 0, (4, 5, 6)), Request("r1", 1.25, 3, 2, (7, 8, 9)))
    assert rank.loop.until_due() == 1.0
    assert not rank.turn(0.5) and rank.sent() == [] and rank.loop.until_due() == 0.5
    assert rank.turn(1.0)
    assert rank.sent() == [(LEADERS[0], m.PlaceRequest(0, 3, 0, [4, 5, 6], 1.0, 1.0, expected=3.0))]
    assert rank.turn(1.5), "late, and let in all the same"
    [(leader, placed)] = rank.sent()
    assert leader == LEADERS[1], "node 0 has something to do"
    assert isinstance(placed, m.PlaceRequest) and placed.expected > 3.5
    assert msgspec.structs.replace(placed, expected=0.0) == m.PlaceRequest(1, 3, 2, [7, 8, 9], 1.5, 1.25)
    assert rank.loop.until_due() == math.inf
    assert rank.events() == [RequestArrived(1.0, 0, 3, 0), RequestArrived(1.5, 1, 3, 2)]
    assert not rank.turn(2.0)


def test_a_request_that_the_model_cannot_take_is_rejected_before_the_policy_hears_of_it(start: Start) -> None:
    long, fits = Request("long", 0.0, 8, 3), Request("fits", 0.0, 8, 2)
    rank = start(long, fits, Request("next", 5.0, 8, 2, after="long", think_s=9.0), context=10)
    rank.turn(0.0)
    assert rank.tasks() == [ServedTask("long", "rejected", 0.0, 8)]
    assert [(to, message.task) for to, message in rank.sent() if isinstance(message, m.PlaceRequest)] == [
        (LEADERS[0], 0)
    ]
    assert rank.events() == [RequestArrived(0.0, 0, 8, 2)]
    assert rank.loop.until_due() == 5.0, "its author goes on by the recorded time"


def test_what_would_outlive_the_allocation_is_refused_and_recorded(start: Start) -> None:
    rank = start(Request("r0", 1.0, 8, 0), Request("r1", 3.0, 8, 0), Request("r2", 0.0, 8, 0, after="r1"), end=4.5)
    rank.turn(1.0)
    assert rank.sent() == [(LEADERS[0], m.PlaceRequest(0, 8, 0, [], 1.0, 1.0, expected=3.0))]
    rank.turn(3.0)
    assert rank.sent() == []
    refused = ServedTask("r1", "rejected", 3.0, 8, number=1)
    assert rank.tasks() == [refused, ServedTask("r2", "rejected", 3.0, 8, number=2)], "the next turn comes by itself"
    assert [type(event) for event in rank.events()] == [RequestArrived] * 3
    assert not rank.loop.finished
    rank.turn(3.5, done(0, 3.5))
    assert rank.loop.finished


def test_a_run_that_is_stopped_takes_back_what_has_not_begun_and_finishes_the_rest(start: Start) -> None:
    requests = [Request(f"r{number}", 1.0, 8, 0) for number in range(4)]
    rank = start(*requests, Request("later", 3.0, 8, 0), Request("turn", 0.0, 8, 0, after="r0"), feed=training(None))
    rank.turn(1.0)
    rank.sent()
    rank.stop()
    rank.turn(3.0)
    assert [sent for sent in rank.sent() if isinstance(sent[1], m.Withdraw)] == [
        (LEADERS[0], m.Withdraw([0, 2])),
        (LEADERS[1], m.Withdraw([1, 3])),
    ]
    # Tasks 0 and 3 had begun, as their leaders know.
    rank.turn(3.5, m.Withdrawn(1, [1]), m.Withdrawn(0, [2]), done(0, 3.5), done(3, 3.5, node=1))
    assert [(task.id, task.outcome) for task in rank.tasks() if isinstance(task, ServedTask)] == [
        ("r0", "finished"),
        ("r3", "finished"),
    ]
    events = rank.events()
    assert RequestArrived(3.0, 4, 8, 0) not in events and TrainingClosed(3.0) in events
    assert TaskFinished(3.5, 1, 1) in events and TaskFinished(3.5, 0, 2) in events
    assert not rank.loop.finished, "a micro-batch is under way"
    assert rank.loop.end.reason == "drained"


def test_what_takes_too_long_after_a_stop_is_left(start: Start) -> None:
    rank = start(Request("r0", 1.0, 8, 0))
    rank.turn(1.0)
    rank.stop()
    rank.turn(2.0)
    rank.turn(61.9)
    assert not rank.loop.finished
    rank.turn(62.1)
    assert rank.loop.finished
    assert rank.tasks() == []


def test_clients_wait_for_their_answers_after_a_stop_and_new_ones_are_turned_away(start: Start) -> None:
    server = Server([Caller("call", 1.0, (8, 2))])
    rank = start(server=server)
    rank.turn(1.0)
    rank.sent()
    rank.stop()
    rank.turn(2.0)
    assert rank.sent() == [] and not server.accepting and not rank.loop.finished
    rank.turn(3.0, m.HttpParts([m.HttpPart(0, 200, [], b"", False)]), done(0, 3.0, [5, 6]))
    assert rank.loop.finished
    assert [task.outcome for task in rank.tasks()] == ["finished"]


def test_of_a_pass_that_rests_the_policy_hears_at_its_end(start: Start) -> None:
    rank = start(feed=training(1))
    rank.turn(0.0)
    rank.turn(1.0, work("forward", [0], 0, 0.0, 0.5, complete=False))
    assert [type(event) for event in rank.events()] == [GroupOffered]
    assert rank.spans() == [Span(0, 0, "t0", "forward", 0.0, 0.5, 3, 7)]
    rank.turn(2.0, work("forward", [0], 0, 1.0, 1.5))
    assert rank.events()[1:] == [PassMeasured(2.0, 0, 0, "forward", SHAPE, 0.5), StageFinished(2.0, 0, 0, 0, 1.0, 1.5)]


def test_weight_updates_are_work_of_no_task(start: Start) -> None:
    rank = start(Request("r0", 9.0, 8, 0))
    rank.turn(1.0, m.SpanReport([m.WorkSpan(1, 0, "step", [], 0.0, 0.5, 1, -1, True)]))
    assert rank.spans() == [Span(1, 0, "", "step", 0.0, 0.5, 1)]
    assert rank.events() == []


def test_an_answered_request_is_recorded_and_its_next_turn_comes_when_its_author_has_thought(start: Start) -> None:
    rank = start(Request("r0", 0.5, 8, 2), Request("r1", 0.0, 8, 0, after="r0", think_s=2.0))
    rank.turn(1.0)
    rank.turn(3.5, done(0, 3.25, [5, 6]))
    [record] = rank.tasks()
    assert isinstance(record, ServedTask) and record.predicted_response_s is not None
    unknown = {"predicted_response_s": None, "predicted_ttft_s": None, "predicted_tpot_s": None}
    assert msgspec.structs.replace(record, **unknown) == ServedTask(
        "r0",
        "finished",
        0.5,
        8,
        node=0,
        placed=1.0,
        first_token=2.25,
        finished=3.25,
        nll=6.0,
        scored_tokens=7,
        output=[5, 6],
        versions=(3, 4),
        number=0,
    )
    assert rank.events()[1:] == [TaskFinished(3.5, 0, 0, output=2)]
    assert rank.loop.until_due() == 1.75 and not rank.loop.finished
    rank.turn(5.25)
    assert rank.events()[2:] == [RequestArrived(5.25, 1, 8, 0)]


# Training


def test_groups_are_offered_ahead_one_for_every_node(start: Start) -> None:
    rank = start(feed=training(9))
    for turn in range(6):
        rank.turn(float(turn))
    offered = [(event.time, event.group) for event in rank.events() if isinstance(event, GroupOffered)]
    assert offered == [(0.0, 0), (1.0, 1), (2.0, 2), (3.0, 3)], "two are under way, two wait"
    assert trained(rank) == [(LEADERS[0], 0, 0), (LEADERS[1], 1, 1)]
    rank.turn(6.0, work("forward", [0], 0, 5.0, 6.0))
    assert trained(rank) == [(LEADERS[0], 2, 2)], "its lane is free"
    assert [event.group for event in rank.events() if isinstance(event, GroupOffered)] == [0, 1, 2, 3, 4]


def test_a_group_is_recorded_when_its_losses_ends_and_step_are_known(start: Start) -> None:
    rank = start(feed=training(2, per_group=2))
    rank.turn(0.5)
    assert trained(rank) == [(LEADERS[0], 0, 0)]
    rank.turn(1.5, work("forward", [0], 0, 0.5, 1.5))
    assert trained(rank) == [(LEADERS[0], 1, 0)], "the next micro-batch follows where the first has left"
    for task in (0, 1):
        rank.turn(2.5 + task, m.Loss(task, 2.0 + task), work("backward", [task], 1, 1.0, 2.0))
    rank.turn(6.0, work("backward", [0], 0, 4.0, 6.0), m.Stepped(0, 0, 1))
    assert rank.tasks() == [] and rank.loop.steps == 1 and not rank.loop.finished
    rank.turn(8.0, work("backward", [1], 0, 6.0, 7.5))
    assert rank.tasks() == [
        TrainedTask("t0", "finished", 0.5, 8, 0, 0.5, 6.0, 2.0, 1, 0),
        TrainedTask("t1", "finished", 1.5, 8, 0, 1.5, 7.5, 3.0, 1, 1),
    ]
    assert rank.loop.finished
    ended = [event for event in rank.events() if isinstance(event, TaskFinished)]
    assert ended == [TaskFinished(6.0, 0, 0), TaskFinished(8.0, 0, 1)]


def test_training_without_an_end_closes_with_serving(start: Start) -> None:
    rank = start(Request("r0", 0.0, 8, 0), feed=training(None))
    for turn in range(6):
        rank.turn(0.1 * turn)
    rank.turn(2.0, done(0, 2.0))
    assert rank.events()[-1] == TrainingClosed(2.0)
    assert not rank.loop.finished, "two groups run to their end, those that wait are dropped"
    for task, node in ((1, 1), (2, 0)):
        step = m.Stepped(node, task - 1, 1)
        rank.turn(9.0, work("forward", [task], 0, 2.0, 3.0, node=node), m.Loss(task, 1.0), step)
        rank.turn(9.0, work("backward", [task], 0, 7.0, 9.0, node=node))
    assert [(task.id, task.outcome) for task in rank.tasks()] == [(name, "finished") for name in ("r0", "t0", "t1")]
    assert rank.loop.finished


def broken(start: Start, on_nan: str) -> Rank:
    """Two groups are under way, two more are offered, and the step of the first is skipped."""
    rank = start(Request("r0", 0.0, 8, 0), feed=training(9), on_nan=on_nan, interval=0.0)
    for turn in range(6):
        rank.turn(0.1 * turn)
    rank.turn(2.0, m.Loss(1, math.nan), m.Stepped(1, 0, 1, skipped=True))
    return rank


def test_a_gradient_that_is_not_finite_ends_training_and_serving_goes_on(start: Start) -> None:
    rank = broken(start, "stop_training")
    assert rank.progress().training_stopped and not rank.loop.finished
    assert rank.events()[-1] == TrainingClosed(2.0)
    assert (rank.loop.steps, rank.loop.skipped, rank.loop.training_stopped) == (0, 1, True)
    rank.turn(3.0, done(0, 3.0), work("backward", [1], 0, 1.0, 2.0, node=1))
    assert not rank.loop.finished, "the other group runs to its end"
    rank.turn(4.0, m.Loss(2, 1.0), m.Stepped(0, 1, 1), work("backward", [2], 0, 3.0, 4.0))
    assert rank.loop.finished and rank.loop.end.reason == "finished"


def test_a_gradient_that_is_not_finite_may_end_the_run_or_nothing(start: Start) -> None:
    rank = broken(start, "stop")
    rank.turn(2.1)
    assert rank.loop.end.reason == "diverged"
    assert "the gradient of node 1's step to version 1 is not finite" in rank.loop.end.message
    rank = broken(start, "skip")
    rank.turn(2.1)
    assert not rank.loop.training_stopped and TrainingClosed not in map(type, rank.events()[-3:])


def test_training_that_was_stopped_stays_so_over_attempts(start: Start) -> None:
    rank = start(feed=training(9), on_nan="stop_training", inherited=Inheritance(skipped=1))
    rank.turn(0.0)
    assert [type(event) for event in rank.events()] == [TrainingClosed] and rank.loop.finished


def test_training_ends_when_a_group_would_outlive_the_allocation(start: Start) -> None:
    rank = start(feed=training(9), end=5.0)
    rank.turn(0.0)
    assert rank.sent() == [] and not rank.loop.finished
    rank.turn(0.1)
    assert [type(event) for event in rank.events()] == [GroupOffered, TrainingClosed]
    assert rank.loop.finished and rank.tasks() == []


def test_held_training_is_looked_at_again_when_the_policy_asks_for_it(start: Start) -> None:
    # Each node's request has 1 s to spare, and one piece of a micro-batch on every stage takes 4 s.
    requests = [Request(f"r{number}", 0.0, 8, 0) for number in range(2)]
    rank = start(*requests, feed=training(1), admission="slack", max_hold=3.0, pieces=1, t0=2.0, slo_factor=1.5)
    rank.turn(0.0)
    assert trained(rank) == [] and rank.loop.until_due() == 3.0
    rank.turn(2.5)
    assert rank.loop.until_due() == 0.5
    assert rank.turn(3.0)
    assert trained(rank) == [(LEADERS[0], 2, 0)]
    assert rank.events()[-1] == Tick(3.0) and rank.loop.until_due() == math.inf


def test_a_step_of_all_nodes_is_ordered_from_every_stage(start: Start) -> None:
    rank = start(feed=training(2), partners=Partners("sync", (0, 1)), release="sync")
    rank.turn(0.0)
    assert [type(message) for _, _, message in rank.post.taken()] == [m.Train]
    rank.turn(0.1)
    (_, _, second), *orders = rank.post.taken()
    assert isinstance(second, m.Train)
    assert orders == [
        (LAYOUT.worker(node, stage), Inbox.STAGE, m.StepTogether(0, [(node, 0.5)]))
        for node in range(2)
        for stage in range(2)
    ]
    for task, node in ((0, 0), (1, 1)):
        ends = work("backward", [task], 0, 4.0, 6.0, node=node)
        rank.turn(6.0, m.Loss(task, 1.0), ends, m.Stepped(node, 0, 1))
    assert rank.loop.steps == 1, "one step of both nodes"
    assert [task.id for task in rank.tasks()] == ["t0", "t1"] and rank.loop.finished


def test_sums_over_nodes_are_counted_when_all_stages_have_told(start: Start) -> None:
    rank = start(feed=training(1), partners=Partners("average", (0, 1)))
    for node in range(2):
        for stage in range(2):
            rank.turn(9.0, m.RingDone(node, stage, 0, 1.0 + stage, 4.0 + node, 100))
    assert rank.loop.rounds is not None
    facts = rank.loop.rounds.facts()
    assert (facts.mode, facts.count, facts.mean_s, facts.nbytes) == ("average", 1, 4.0, 400)


# Calls over HTTP


def test_a_call_goes_through_the_policy_to_its_node_and_its_answer_to_the_client(start: Start) -> None:
    server, caller = Server(), Caller("c0", 0.5, (8, 2))
    rank = start(server=server, closes=5.0)
    assert not rank.turn(0.0) and not rank.loop.finished
    server.calls.append(caller)
    rank.turn(1.0)
    assert rank.sent() == [(LEADERS[0], m.HttpCall(0, "POST", "/v1/completions", [], b"{}", 1.0, answer=2))]
    assert rank.events() == [RequestArrived(1.0, 0, 8, 2)]
    rank.turn(3.0, m.HttpParts([m.HttpPart(0, 200, [], b"x", False)]), done(0, 3.0, [5, 6]))
    assert caller.got == [ResponsePart(200, [], b"x", False)]
    assert [(task.id, task.outcome) for task in rank.tasks()] == [("c0", "finished")]
    assert rank.loop.until_due() == 2.0, "no more calls are taken then"
    rank.turn(5.0)
    assert rank.loop.finished and not server.accepting


def test_answers_of_one_call_are_forecast_side_by_side(start: Start) -> None:
    api = ApiCall("POST", "/v1/completions", (), b'{"n": 4}', answers=4)
    rank = start(server=Server([Caller("c0", 0.5, (8, 8), api)]), closes=5.0)
    rank.turn(1.0)
    assert rank.events() == [RequestArrived(1.0, 0, 8, 2)], "two tokens each"
    assert [message.answer for _, message in rank.sent() if isinstance(message, m.HttpCall)] == [2]
    rank.turn(4.0, m.HttpParts([m.HttpPart(0, 200, [], b"x", False)]), done(0, 4.0, list(range(7))))
    assert rank.events()[-1] == TaskFinished(4.0, 0, 0, output=2)
    [task] = rank.tasks()
    assert (len(task.output), task.answers) == (7, 4), "the record has all"


def test_a_client_that_comes_back_after_a_restart_has_its_place(start: Start) -> None:
    waiting = {4: Accepted(4, "again", 0.5, 8), 5: Accepted(5, "gone", 0.75, 8)}
    inherited = Inheritance(waiting=waiting, next_number=6)
    server = Server([Caller("again", 2.0, (8, 0)), Caller("new", 2.0, (8, 0))])
    rank = start(server=server, closes=5.0, inherited=inherited)
    rank.turn(2.0)
    assert [message.task for _, message in rank.sent() if isinstance(message, m.HttpCall)] == [4, 6]
    parts = m.HttpParts([m.HttpPart(task, 200, [], b"x", False) for task in (4, 6)])
    rank.turn(3.0, parts, done(4, 3.0), done(6, 3.0, node=1))
    rank.turn(5.0)
    assert rank.loop.finished
    rank.loop.end_unclaimed()
    assert [(task.id, task.outcome) for task in rank.tasks()] == [
        ("again", "finished"),
        ("new", "finished"),
        ("gone", "lost"),
    ]


def test_what_has_an_outcome_is_not_served_again(start: Start) -> None:
    waiting = {1: Accepted(1, "r2", 0.5, 8, place=2)}
    over = Places().with_all([0])
    inherited = Inheritance(over=over, turns={1: 1.0}, waiting=waiting, next_number=7, clock=2.0)
    turns = [
        Request("r0", 0.0, 8, 0, followed=True),
        Request("r1", 9.0, 8, 0, after="r0", think_s=1.5),
        Request("r2", 0.25, 8, 0),
    ]
    rank = start(*turns, inherited=inherited)
    rank.turn(2.0)
    assert rank.events() == [RequestArrived(2.0, 1, 8, 0)], "under its number"
    assert rank.loop.until_due() == 0.5, "the next turn of the conversation"
    rank.turn(2.5, done(1, 2.5))
    rank.turn(3.0, done(7, 3.0))
    assert [(task.id, task.arrival, task.number) for task in rank.tasks()] == [("r2", 0.5, 1), ("r1", 2.5, 7)]
    assert rank.loop.finished


def test_losses_of_earlier_attempts_count(start: Start) -> None:
    losses = [2.0, math.nan, math.inf, 4.0, None]
    trained = [TrainedTask(f"t{n}", "finished", 0.0, 8, node=0, loss=loss, step=n) for n, loss in enumerate(losses)]
    rank = start(inherited=Inheritance(trained=trained, lost_losses=1))
    assert rank.loop.lost_losses == 3, "what has no loss was not written down in time"


def test_work_on_a_call_is_a_sign_of_life(start: Start) -> None:
    rank = start(server=Server([Caller("c0", 1.0, (8, 2))]))
    rank.turn(1.0)
    assert rank.loop.until_due() == 60.0, "a call may be silent for so long"
    rank.turn(31.0)
    assert rank.loop.until_due() == 30.0
    rank.turn(31.0, ran([0], 1.0, 16.0))
    assert rank.loop.until_due() == 60.0


def test_a_call_that_needs_no_policy_leaves_no_record(start: Start) -> None:
    server = Server([Caller("models", 0.0, None, node=1)])
    rank = start(server=server)
    rank.turn(0.0)
    assert [to for to, _ in rank.sent()] == [LEADERS[1]]
    rank.turn(1.0, m.HttpParts([m.HttpPart(0, 200, [], b"x", False)]), done(0, 1.0, node=1))
    assert rank.tasks() == [] and rank.events() == []


def test_a_call_is_refused_when_it_would_outlive_the_allocation(start: Start) -> None:
    caller = Caller("c0", 0.0, (8, 0))
    rank = start(server=Server([caller]), end=1.0)
    rank.turn(0.0)
    [error] = caller.got
    assert isinstance(error, ApiError) and error.status == 503
    assert rank.sent() == [] and rank.tasks() == [ServedTask("c0", "rejected", 0.0, 8, number=0)]


# The run itself


def test_progress_is_shown_every_so_often_and_at_the_end(start: Start) -> None:
    rank = start(Request("r0", 0.0, 8, 0), Request("r1", 9.0, 8, 0), feed=training(1), interval=1.0)
    rank.turn(0.0)
    shown = rank.progress()
    assert (shown.state, shown.received, shown.requests, shown.training_total) == ("running", 1, 2, 1)
    rank.turn(0.5, ran([0], 0.0, 0.5), done(0, 0.5), m.Loss(1, 2.5))
    assert rank.progress() == shown, "not due yet"
    rank.turn(1.0)
    shown = rank.progress()
    assert (shown.served, shown.loss, shown.response_ms_p50) == (1, 2.5, 500.0)
    assert (shown.requests_per_s, shown.under_way, shown.waiting, shown.held) == (1.0, 0, 0, 0)
    assert [[stage.idle for stage in node] for node in shown.stages] == [[0.5, 0.5], [1.0, 1.0]]
    assert shown.forecast_error is not None
    rank.loop.show(last=True)
    assert rank.progress().state == "finished"


def test_stages_that_have_stopped_are_collected(start: Start) -> None:
    rank = start()
    assert rank.loop.finished
    rank.turn(0.0, m.Stopped(0, 1), m.Stopped(1, 0))
    assert rank.loop.stopped == {(0, 1), (1, 0)}


@pytest.mark.parametrize("message", [m.EngineReady(0, 0), m.RingDone(0, 0, 0, 0.0, 1.0, 4)])
def test_a_message_that_nobody_sends_now_ends_the_run(start: Start, message: m.AnyMessage) -> None:
    rank = start()
    with pytest.raises(TypeError, match=f"no message for the scheduler: {type(message).__name__}"):
        rank.turn(0.0, message)
