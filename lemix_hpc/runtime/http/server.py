"""The endpoint: a socket, a web server in a thread, and the queue of its calls for the scheduler's loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.serving_section import Http
from lemix_hpc.runtime.http import descriptors
from lemix_hpc.runtime.http.call import Call
from lemix_hpc.runtime.http.errors import ApiError, closing, disk_full, starting, too_many, too_much

if TYPE_CHECKING:
    from starlette.applications import Starlette

MOST_CALLS = 1024
"""More under way at the same time are turned away."""
MOST_BYTES = 256 << 20
"""Of the bodies of all calls under way."""
MOST_CONNECTIONS = 4096
"""Fewer where the process may not have as many descriptors."""
GOODBYE_S = 10
"""How long the server waits, in the end, for clients that read the last bytes slowly."""
BACKLOG = 2048
AT_A_TIME = 16
"""Connections that are accepted before the first of them is looked at: there are descriptors for so many in reserve."""


def bind(http: Http) -> socket.socket:
    """The endpoint's address is taken from here on; who connects waits until it opens. Raises UserError if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"serving.http.host: {http.host} is no address of this host ({error.strerror})") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # With SO_REUSEADDR two can bind to an address, but only one can listen.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(
            f"serving.http: cannot listen on {http.host}, port {http.port} ({error.strerror}); give another port, or 0 "
            "for one that is free"
        ) from error
    return listener


def url(listener: socket.socket) -> str:
    """Where clients find the endpoint; the host's name where it listens on all addresses."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer:
    """Made and polled by the scheduler's loop. `wake` is called from the server's thread when there is something to poll.

    From `open` on it answers, and lets calls in between `accept` and `stop_accepting`.
    """

    def __init__(self, listener: socket.socket, wake: Callable[[], None]) -> None:
        self._listener = listener
        self._wake = wake
        self._lock = threading.Lock()
        self._refusal: Callable[[], ApiError] | None = starting
        self.disk: str | None = None
        """Why nothing can be promised, so that calls are turned away; None while all is well."""
        self._calls: SimpleQueue[Call] = SimpleQueue()
        self._under_way = 0
        self._bytes = 0
        self._failure: BaseException | None = None

    def open(self, app: Starlette) -> None:
        """Answer from now on."""
        import uvicorn

        from lemix_hpc.runtime.http.connections import Connections, guarded_by

        # By the clock of the loop, which is this one.
        self._connections = Connections(min(MOST_CONNECTIONS, descriptors.room()), time.monotonic)
        config = uvicorn.Config(
            app,
            http=guarded_by(self._connections),
            ws="none",
            # Clients must not fill the log; what the application fails in is told by itself.
            log_level="critical",
            access_log=False,
            server_header=False,
            backlog=AT_A_TIME,
            timeout_graceful_shutdown=GOODBYE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def turned_away(self) -> int:
        """Connections that were closed for being slow, idle or too many."""
        return self._connections.turned_away

    def poll(self) -> list[Call]:
        """Calls that have come, and, once more each, those whose client has `gone`. Raises if the server has died."""
        if self._failure is not None:
            raise RuntimeError(f"the HTTP endpoint has failed: {self._failure}") from self._failure
        return [self._calls.get() for _ in range(self._calls.qsize())]

    def accept(self) -> None:
        """Let calls in from now on."""
        with self._lock:
            self._refusal = None

    def stop_accepting(self) -> None:
        """What the next `poll` brings is all that was let in."""
        with self._lock:
            self._refusal = closing

    def close(self) -> None:
        """Let the last answers out, hang up, and end the thread."""
        self._server.should_exit = True
        self._thread.join()

    @property
    def refusal(self) -> ApiError | None:
        """What calls are told now that may not come in; None if they may."""
        refusal, disk = self._refusal, self.disk
        if refusal is not None:
            return refusal()
        return None if disk is None else disk_full(disk)

    def enter(self, call: Call, *, counted: bool = True) -> None:
        """In the server's thread: hand a call over; each one `counted` must `leave`. Raises ApiError if it has to stay out."""
        with self._lock:
            if (refusal := self.refusal) is not None:
                raise refusal
            if counted and self._under_way >= MOST_CALLS:
                raise too_many(MOST_CALLS)
            if self._bytes + len(call.api.body) > MOST_BYTES:
                raise too_much("There are too many large requests under way already.")
            self._under_way += counted
            self._bytes += len(call.api.body) * counted
            self._calls.put(call)
        self._wake()

    def leave(self, call: Call, *, answered: bool) -> None:
        """In the server's thread: a call that was let in is over."""
        with self._lock:
            self._under_way -= 1
            self._bytes -= len(call.api.body)
        if not answered:
            self.abandon(call)

    def abandon(self, call: Call) -> None:
        """In the server's thread: nobody wants the answer to a call any more that was let in."""
        call.gone = True
        self._calls.put(call)
        self._wake()

    async def _answer(self) -> None:
        with self._connections.watched():
            serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            # The server takes as many at a time as it lets wait; more may wait.
            self._listener.listen(BACKLOG)
            await serving

    def _serve(self) -> None:
        try:
            asyncio.run(self._answer())
        except BaseException as error:  # noqa: BLE001  raised again in the scheduler's loop
            self._failure = error
            self._wake()
