"""The leader's queue and batches, on messages handed to it one by one; whole runs over MPI are in test_run.py."""

from dataclasses import dataclass, field

from lemix_hpc.engines.protocol import SequenceResult
from lemix_hpc.policy.latency import Shape
from lemix_hpc.runtime.leader.batching_leader import Leader
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.runtime.transport.run_clock import RunClock
from tests.runtime.leader.no_limits import NO_LIMITS


@dataclass
class Post:
    """Stands in for a mailbox: what is to arrive, and what was sent."""

    arriving: list[m.AnyMessage] = field(default_factory=list)
    sent: list[m.AnyMessage] = field(default_factory=list)
    sent_all: bool = True
    in_transit: bool = False

    def poll(self) -> list[Mail]:
        mails = [Mail(0, message, None) for message in self.arriving]
        self.arriving.clear()
        return mails

    def send(self, rank: int, inbox: Inbox, message: m.AnyMessage) -> None:  # noqa: ARG002
        self.sent.append(message)

    def taken(self, kind: type) -> list[m.AnyMessage]:
        found = [message for message in self.sent if isinstance(message, kind)]
        self.sent = [message for message in self.sent if not isinstance(message, kind)]
        return found


def leader(post: Post, max_requests: int = 2, max_tokens: int = 100) -> Leader:
    limits = {"max_requests": max_requests, "max_tokens": max_tokens}
    return Leader(Layout(1, 1), 0, post, RunClock(0.0), **limits, temperature=0.0, memory=NO_LIMITS)  # type: ignore[arg-type]


def request(task: int, prompt: int, output: int = 0, key: float = 0.0) -> m.PlaceRequest:
    return m.PlaceRequest(task, prompt, output, [], key)


def ran(batch: int, tasks: list[int]) -> m.SpanReport:
    return m.SpanReport([m.WorkSpan(0, 0, "serve", tasks, 0.0, 1.0, 0, batch, True, Shape.of((1,)))])


def members(serve: m.AnyMessage) -> list[int]:
    assert isinstance(serve, m.Serve)
    return [sequence.request for sequence in serve.batch.sequences]


def test_batches_are_first_come_first_served_within_the_limits() -> None:
    post = Post([request(1, 60), request(2, 60), request(3, 10), request(4, 10), request(5, 500)])
    lead = leader(post)
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[1], [2, 3]], "two ahead, no more"
    post.arriving = [ran(1, [1]), m.Served(1, [SequenceResult(1, 2.0, 59, None)], 0, 1.0)]
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[4]]
    post.arriving = [
        ran(2, [2, 3]),
        m.Served(2, [SequenceResult(2, 0.0, 9, None), SequenceResult(3, 0.0, 9, None)], 0, 2.0),
    ]
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[5]], "one that exceeds the limit goes alone"
    first = post.taken(m.RequestDone)[0]
    assert isinstance(first, m.RequestDone)
    assert (first.task, first.nll, first.scored) == (1, 2.0, 59)


def test_new_requests_go_in_the_order_of_their_keys_behind_those_that_generate() -> None:
    post = Post([request(1, 10, output=3, key=9.0), request(2, 10, key=5.0)])
    lead = leader(post, max_requests=1)
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[2], [1]]
    post.arriving = [request(3, 10, key=7.0), request(5, 10, key=2.5), request(4, 10, key=2.5)]
    lead.turn()
    assert post.taken(m.Serve) == [], "two are ahead"
    post.arriving = [ran(1, [2]), m.Served(1, [SequenceResult(2, 0.0, 9, None)], 0, 1.0)]
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[4]], "of equal keys the lower number"
    post.arriving = [ran(2, [1]), m.Served(2, [SequenceResult(1, 0.0, 0, 11)], 0, 2.0)]
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[1]], "it has begun"
    post.arriving = [ran(3, [4]), m.Served(3, [SequenceResult(4, 0.0, 9, None)], 0, 3.0)]
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[5]], "the lowest key that is left"


def test_generation_comes_back_one_token_at_a_time_and_spans_versions() -> None:
    post = Post([request(7, 20, output=3)])
    lead = leader(post)
    for number, (token, version) in enumerate([(11, 4), (12, 5), (13, 5)], start=1):
        lead.turn()
        (serve,) = post.taken(m.Serve)
        assert isinstance(serve, m.Serve)
        sequence = serve.batch.sequences[0]
        assert sequence.generate
        assert (sequence.length, sequence.cached) == ((20, 0) if number == 1 else (1, 18 + number))
        post.arriving = [ran(number, [7]), m.Served(number, [SequenceResult(7, 0.0, 0, token)], version, float(number))]
    lead.turn()
    (done,) = post.taken(m.RequestDone)
    assert isinstance(done, m.RequestDone)
    assert (done.output, done.versions, done.first_token, done.finished) == ([11, 12, 13], (4, 5), 1.0, 3.0)
    assert post.taken(m.Forget) == [m.Forget([7])]
    assert post.taken(m.Serve) == []


def test_what_has_not_begun_is_let_go_of_and_what_has_goes_on() -> None:
    post = Post([request(1, 10), request(2, 10), request(3, 10), request(4, 10), request(5, 10), request(6, 10)])
    lead = leader(post)
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[1, 2], [3, 4]]
    post.arriving = [m.Withdraw([4, 5, 7])]
    lead.turn()
    assert post.taken(m.Withdrawn) == [m.Withdrawn(0, [5])]
    post.arriving = [ran(1, [1, 2])]
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[6]]


def test_nothing_is_begun_after_the_stop_of_a_run_that_ends_early() -> None:
    post = Post([request(1, 10), request(2, 10), request(3, 10), request(4, 10), request(5, 10)])
    lead = leader(post)
    lead.turn()
    post.taken(m.Serve)
    post.arriving = [m.Stop(), ran(1, [1, 2])]
    lead.turn()
    assert post.taken(m.Serve) == []


def test_batch_requests_come_behind_others_and_even_once_they_have_begun() -> None:
    patient = [m.PlaceRequest(task, 10, 2, [], key, 0.0, patient=True) for task, key in ((1, 2e9), (2, 1e9))]
    post = Post([*patient, request(3, 10), request(4, 10)])
    lead = leader(post, max_requests=3)
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[3, 4, 2], [1]]
    post.arriving = [
        request(5, 10),
        ran(1, [3, 4, 2]),
        m.Served(1, [SequenceResult(task, 0.0, 9, 7) for task in (3, 4, 2)], 0, 1.0),
    ]
    lead.turn()
    assert [members(serve) for serve in post.taken(m.Serve)] == [[5, 2]]
