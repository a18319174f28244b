"""Clients that connect and do nothing, or too slowly."""

import socket
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from lemix_hpc.runtime.http import connections as module
from lemix_hpc.runtime.http import descriptors, server
from lemix_hpc.runtime.http.connections import HEAD_S, READ_S, Connections
from tests.runtime.http.in_process import KEY, Run, post, running


@dataclass(eq=False)
class Pretended:
    """A connection."""

    busy: bool = False
    unread: int = 0
    cycle: object = None
    hung_up: bool = False

    def hang_up(self) -> None:
        self.hung_up = True


class Open:
    """Pretended connections, and their clock."""

    def __init__(self, most: int) -> None:
        self.time = 0.0
        self.all = Connections(most, lambda: self.time)

    def add(self, **state: Any) -> Pretended:
        connection = Pretended(**state)
        assert self.all.opened(connection)  # type: ignore[arg-type]
        return connection

    def at(self, time: float) -> None:
        self.time = time
        self.all.look()


def test_who_sends_no_request_is_hung_up_on() -> None:
    clients = Open(10)
    idle, asks, asked = clients.add(), clients.add(), clients.add()
    clients.at(1.0)
    asks.busy, asks.cycle = True, "first"
    clients.at(HEAD_S - 1)
    # Between two looks: a request that came and was answered.
    asked.cycle = "first"
    clients.at(HEAD_S)
    assert (idle.hung_up, asks.hung_up, asked.hung_up) == (True, False, False)
    asks.busy = False
    clients.at(2 * HEAD_S - 0.5)
    assert not asks.hung_up and not asked.hung_up
    clients.at(2 * HEAD_S)
    assert asked.hung_up and not asks.hung_up
    clients.at(3 * HEAD_S)
    assert asks.hung_up


def test_who_does_not_read_is_hung_up_on() -> None:
    clients = Open(10)
    slow, reads = clients.add(busy=True, unread=9), clients.add(busy=True, unread=9)
    clients.at(1.0)
    reads.unread = 0
    clients.at(2.0)
    reads.unread = 9
    clients.at(READ_S)
    assert not slow.hung_up
    clients.at(READ_S + 1)
    assert slow.hung_up and not reads.hung_up


def test_newcomers_take_the_place_of_those_without_a_request() -> None:
    clients = Open(3)
    kept, busy, new = clients.add(cycle="over"), clients.add(busy=True, cycle="now"), clients.add()
    clients.add(busy=True, cycle="now")
    assert (kept.hung_up, busy.hung_up, new.hung_up, len(clients.all)) == (False, False, True, 3)
    clients.add(busy=True, cycle="now")
    assert kept.hung_up and clients.all.turned_away == 2
    assert not clients.all.opened(Pretended()), "all are busy"  # type: ignore[arg-type]
    assert clients.all.turned_away == 3


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK_S", 0.05), ("HEAD_S", 0.5), ("READ_S", 0.5)):
        monkeypatch.setattr(module, name, seconds)


def connect(run: Run, said: bytes = b"") -> socket.socket:
    client = socket.create_connection(run.address, timeout=20)
    client.sendall(said)
    return client


def dribble(client: socket.socket, piece: bytes, over: threading.Event) -> None:
    """A byte now and then, until somebody hangs up."""
    while not over.wait(0.05):
        try:
            client.sendall(piece)
        except OSError:
            return


REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n" % KEY.encode()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("said", "piece"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\nx: ", b"y"),
        # Refused before its body has come, which then never ends.
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n", b"x"),
    ],
)
def test_real_sockets_that_take_for_ever(said: bytes, piece: bytes) -> None:
    over = threading.Event()
    with running() as run, connect(run, said) as client:
        thread = threading.Thread(target=dribble, args=(client, piece, over))
        thread.start()
        try:
            while client.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        over.set()
        thread.join()
        with run.client() as other:
            assert post(other).status_code == 200


@pytest.mark.usefixtures("hurried")
def test_a_body_that_takes_for_ever() -> None:
    with running(body_s=0.3) as run, connect(run, REQUEST + b"content-length: 100\r\n\r\n{") as client:
        assert b"408" in client.recv(1 << 16).split(b"\r\n")[0]


def test_what_is_no_http_is_told_so_in_the_form_of_all_errors() -> None:
    with running() as run:
        for said in (
            b"\x16\x03\x01\x02\x00\r\n\r\n",
            b"GET  / / HTTP/9\r\n\r\n",
            b"GET / HTTP/1.1\r\nx" + b"y" * 100_000,
        ):
            with connect(run, said) as client:
                answer = client.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 4") and b'"type":"invalid_request_error"' in answer
        upgrade = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        with connect(run, upgrade) as client:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_crowd_of_idle_connections_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 20)
    with running() as run:
        crowd = [connect(run) for _ in range(100)]
        with run.client() as client:
            assert post(client).status_code == 200
            assert run.server.connections <= 20
            assert "lemix_http_turned_away_total 8" in client.get("/metrics").text
        for idle in crowd:
            idle.close()


def test_connections_leave_descriptors_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    assert descriptors.FEWEST <= descriptors.room() < 256 - descriptors.RESERVE
    descriptors.raise_limit()
    assert limits[-1] == (4096, 4096) and descriptors.room() > 3000
    limits.append((1 << 20, 1 << 20))
    descriptors.raise_limit()
    assert limits[-1] == (1 << 20, 1 << 20)
    limits.append((64, 64))
    assert descriptors.room() == descriptors.FEWEST
