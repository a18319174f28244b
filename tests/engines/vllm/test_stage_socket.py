"""Both ends of the way between engine and stages, in one process."""

from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lemix_hpc.engines.protocol import PermissionToCommit, ServeBatch, ServeSequence
from lemix_hpc.engines.vllm.engine_ipc import Ask, Bye, Call, Output, Reply, Run, Sample, connect, receive, send
from lemix_hpc.engines.vllm.stage_socket import StageSocket

BATCH = ServeBatch(0, [ServeSequence(1, 5, 0, True, [])], plan=b"plan", version=3)


class Both:
    """A started stage and its engine."""

    def __init__(self, directory: Path) -> None:
        # Connections wait in the listener's backlog, so that one thread can play both parts.
        from threading import Thread

        connected: list[Connection] = []
        thread = Thread(target=lambda: connected.extend(connect(directory, 0, 10.0) for _ in range(2)))
        thread.start()
        self.socket = StageSocket(directory, 0)
        thread.join()
        self.engine, self.leave = connected


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def refuse(call: Call) -> object:
    raise ValueError(f"no method {call.method!r}")


def test_batches_and_leaves_come_in_the_order_they_were_sent(both: Both) -> None:
    for message in (Run(BATCH), PermissionToCommit(), Run(BATCH)):
        send(both.engine, message)
    assert both.socket.poll(refuse) == [BATCH, PermissionToCommit(), BATCH]
    assert both.socket.poll(refuse) == []


def test_calls_are_performed_at_once_and_what_they_raise_is_answered(both: Both) -> None:
    send(both.engine, Call("double", (4,), {}))
    assert both.socket.poll(lambda call: call.args[0] * 2) == []
    assert receive(both.engine) == Reply(8)
    send(both.engine, Call("double", (), {}))
    both.socket.poll(refuse)
    assert receive(both.engine) == Reply(None, "ValueError: no method 'double'")


def test_what_bounds_samples_waits_for_its_batch(both: Both) -> None:
    send(both.engine, Run(BATCH))
    send(both.engine, Sample("grammar"))
    assert both.socket.poll(refuse) == [BATCH]
    assert list(both.socket.samples) == ["grammar"]
    both.socket.answer("tokens")
    assert receive(both.engine) == Output("tokens")


def test_the_first_stage_asks_on_a_way_of_its_own(both: Both) -> None:
    both.socket.ask()
    assert receive(both.leave) == Ask()


def test_a_farewell_ends_it_and_a_broken_line_is_an_error(both: Both, tmp_path: Path) -> None:
    send(both.engine, Bye())
    both.engine.close()
    assert both.socket.poll(refuse) == []
    assert both.socket.closed
    assert both.socket.poll(refuse) == []
    other = tmp_path / "other"
    other.mkdir()
    broken = Both(other)
    broken.engine.close()
    with pytest.raises(RuntimeError, match="engine process has ended"):
        broken.socket.poll(refuse)


def test_a_stage_that_never_comes_is_a_timeout(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="stage 5 did not answer"):
        connect(tmp_path, 5, 0.1)
