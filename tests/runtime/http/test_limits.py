"""The server's own rules, without a server."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.serving_section import Http
from lemix_hpc.runtime.http.call import Call
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.http.server import MOST_CALLS, HttpServer, bind, url
from lemix_hpc.workload.tasks import ApiCall
from tests.runtime.http.in_process import running


def in_loop(work: Callable[[HttpServer, Callable[[], Call], list[str]], None]) -> None:
    """Run work with a server, a maker of calls, and a list that grows with every wake-up."""

    async def run() -> None:
        woken: list[str] = []
        with bind(Http(port=0)) as listener:
            server = HttpServer(listener, lambda: woken.append("woken"))
            server.accept()
            work(server, lambda: Call("x", ApiCall("GET", "/", (), b""), 0.0, None), woken)

    asyncio.run(run())


def refusal(server: HttpServer, call: Call) -> int:
    with pytest.raises(ApiError) as refused:
        server.enter(call)
    return refused.value.status


def test_only_so_many_are_let_in_at_the_same_time() -> None:
    def work(server: HttpServer, make: Callable[[], Call], woken: list[str]) -> None:
        calls = [make() for _ in range(MOST_CALLS)]
        for call in calls:
            server.enter(call)
        assert refusal(server, make()) == 429
        server.enter(make(), counted=False)
        assert len(server.poll()) == MOST_CALLS + 1 == len(woken)
        server.leave(calls[0], answered=True)
        assert server.poll() == []
        server.enter(make())
        server.leave(calls[1], answered=False)
        assert [call.gone for call in server.poll()] == [False, True]

    in_loop(work)


def test_what_was_let_in_before_the_door_closed_is_still_found() -> None:
    def work(server: HttpServer, make: Callable[[], Call], woken: list[str]) -> None:
        inside = make()
        server.enter(inside)
        server.stop_accepting()
        assert (refusal(server, make()), len(woken)) == (503, 1)
        assert server.refusal is not None and "ending" in server.refusal.message
        assert server.poll() == [inside]

    in_loop(work)


def test_nobody_is_let_in_while_the_engines_start() -> None:
    with running(accepts=False) as run, run.client() as client:
        for answer in (client.get("/health"), client.post("/v1/completions", json={"prompt": "a"})):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["error"]["message"] == "This run is starting: its engines are not ready."


def test_addresses() -> None:
    with bind(Http(port=0)) as listener:
        port = listener.getsockname()[1]
        assert url(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {port} .*give another port, or 0"):
            bind(Http(port=port))
    with bind(Http(port=0, host="0.0.0.0")) as listener:
        assert url(listener) == f"http://{socket.gethostname()}:{listener.getsockname()[1]}"
    with pytest.raises(UserError, match=r"serving\.http\.host: no\.such\.host\.invalid is no address"):
        bind(Http(host="no.such.host.invalid"))
