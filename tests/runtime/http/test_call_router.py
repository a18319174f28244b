"""The clock of the router, on times and messages handed to it one by one; test_door.py has whole runs."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from lemix_hpc.policy.events import Place
from lemix_hpc.runtime.http.call import ResponsePart
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.tasks import ApiCall, Request

CALL = ApiCall("POST", "/v1/completions", (), b"{}")


@dataclass
class Post:
    """Stands in for a mailbox: what was sent to which rank."""

    sent: list[tuple[int, m.AnyMessage]] = field(default_factory=list)

    def send(self, rank: int, inbox: object, message: m.AnyMessage) -> None:  # noqa: ARG002
        self.sent.append((rank, message))


@dataclass
class Waiting:
    """A client, and what it was given."""

    number: int | None = None
    unhurried: bool = False
    patient: bool = False
    got: list[ResponsePart | int] = field(default_factory=list)

    def part(self, part: ResponsePart) -> None:
        self.got.append(part)

    def fail(self, error: ApiError) -> None:
        self.got.append(error.status)


def router(post: Post, **more: Any) -> CallRouter:
    return CallRouter(Layout(2, 1), post, itertools.count().__next__, 10.0, **more)  # type: ignore[arg-type]


def placed(router: CallRouter, number: int, node: int, now: float, *, patient: bool = False) -> Waiting:
    client = Waiting(unhurried=patient, patient=patient)
    router.expect(number, Request(f"r{number}", now, 1, 1, call=CALL), client)
    router.place(Place(number, node, now, 1.0, now + 0.5), CALL, now, answer=1, patient=patient)
    return client


def part(task: int, status: int = 0, *, more: bool) -> list[m.HttpPart]:
    return [m.HttpPart(task, status, [], b"x", more)]


def look(router: CallRouter, now: float) -> None:
    assert list(router.arrivals(now)) == []


def test_a_call_goes_to_its_nodes_leader_and_its_answer_to_its_client() -> None:
    post = Post()
    calls = router(post)
    client = placed(calls, 4, 1, 1.0)
    assert post.sent == [(2, m.HttpCall(4, "POST", "/v1/completions", [], b"{}", 1.5, answer=1))] and client.number == 4
    assert calls.due == 11.0 and not calls.idle
    calls.parts(part(4, 200, more=True), 5.0)
    calls.parts(part(4, more=False), 6.0)
    assert client.got == [ResponsePart(200, [], b"x", True), ResponsePart(0, [], b"x", False)]
    assert calls.done(4) == "finished"
    assert calls.idle and calls.due == math.inf


def test_every_sign_of_life_moves_the_end_and_silence_is_told_once() -> None:
    post = Post()
    calls = router(post)
    first, second = placed(calls, 0, 0, 0.0), placed(calls, 1, 0, 1.0)
    calls.heard(0, [99, 0], 5.0)
    look(calls, 10.9)
    assert calls.due == 11.0
    look(calls, 11.0)
    assert (first.got, second.got) == ([], [504])
    assert post.sent[2:] == [(0, m.HttpAbort(1))] and calls.due == 15.0
    calls.parts(part(1, 200, more=False), 11.5)
    assert second.got == [504], "too late"
    assert calls.done(1) == "lost"
    look(calls, 15.0)
    assert first.got == [504]


def test_the_lines_of_a_batch_wait_as_long_as_their_node_works() -> None:
    calls = router(Post())
    line, elsewhere, working = (placed(calls, n, node, 0.0, patient=n < 2) for n, node in enumerate((0, 1, 0)))
    calls.heard(0, [2], 8.0)
    look(calls, 10.0)
    assert (line.got, elsewhere.got) == ([], [504]), "node 1 has done nothing for anybody"
    calls.done(1)
    calls.parts(part(2, 200, more=False), 15.0)
    assert calls.done(2) == "finished"
    look(calls, 20.0)
    assert line.got == [] and working.got != []
    look(calls, 30.0)
    assert line.got == [504]


def test_a_node_that_does_not_even_abort_ends_the_run() -> None:
    calls = router(Post())
    placed(calls, 0, 1, 0.0)
    look(calls, 10.0)
    look(calls, 19.9)
    with pytest.raises(RuntimeError, match="node 1 has not ended a call within 10 s"):
        look(calls, 20.0)


def test_an_error_is_a_rejection_and_no_answer_a_loss() -> None:
    calls = router(Post())
    refused, silent, cut = (placed(calls, number, 0, 0.0) for number in range(3))
    calls.parts(part(0, 404, more=False), 1.0)
    calls.parts(part(2, 200, more=True), 1.0)
    assert [calls.done(number) for number in (0, 1, 2)] == ["rejected", "lost", "lost"]
    assert len(refused.got) == 1 and silent.got == [502] and cut.got[1:] == [502]
    assert not calls.carries(0) and not calls.carries(99), "one that is over, and a request that is no call"


def test_what_the_policy_refuses_is_told_to_come_again() -> None:
    calls = router(Post())
    client = Waiting()
    calls.expect(3, Request("r", 0.0, 1, 1, call=CALL), client)
    calls.refuse(3)
    assert client.got == [503] and calls.idle
