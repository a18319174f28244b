"""The web application: which calls there are, and which node answers them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lemix_hpc.runtime.http.answers import Answers, Recording, Replay
from lemix_hpc.runtime.http.call import Call, Gone, ResponsePart
from lemix_hpc.runtime.http.errors import ApiError, bad_request
from lemix_hpc.runtime.http.metrics import CONTENT_TYPE, Figures, exposition
from lemix_hpc.runtime.http.request_guard import Guard
from lemix_hpc.runtime.http.response_stream import Relay, for_client, for_node
from lemix_hpc.runtime.http.sample_intake import SampleIntake
from lemix_hpc.runtime.http.server import HttpServer
from lemix_hpc.workload.api_lengths import GENERATING, call_lengths
from lemix_hpc.workload.tasks import ApiCall
from lemix_hpc.workload.tokenizer import Tokenizer

LONGEST_ID = 128
OTHERS = (("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/v1/models"))
"""What generates nothing, and so goes to the first node."""


@dataclass(frozen=True)
class AppContext:
    """What the application works with. `figures`: the newest ones; `context`: tokens that the model takes at once."""

    server: HttpServer
    guard: Guard
    nodes: int
    tokenizer: Tokenizer
    context: int
    now: Callable[[], float]
    figures: Callable[[], Figures]
    answers: Answers
    samples: SampleIntake | None


def make_app(context: AppContext) -> Starlette:
    """The application of a run."""
    return Starlette(routes=_Endpoints(context).routes(), exception_handlers=_HANDLERS)


class _Endpoints:
    def __init__(self, context: AppContext) -> None:
        self._context = context
        # Tokenising, and waiting for the disk, must not hold up what streams; one at a time, as tokenizers want it.
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="http-aside")

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/training/samples", self.samples, methods=["POST"]),
            *(Route(path, self.generate, methods=["POST"]) for path in GENERATING),
            *(Route(path, self.pass_on, methods=[method]) for method, path in OTHERS),
        ]

    async def generate(self, request: Request) -> ASGIApp:
        """A call that the policy finds a node for."""
        self._context.guard.check_key(request)
        body = await self._context.guard.body(request)
        path, context = request.url.path, self._context
        lengths = await self._do_aside(lambda: call_lengths(path, _json(body), context.tokenizer, context.context))
        api, name = self._as_it_came(request, body), _given_id(request)
        return self._relay(api, lengths) if name is None else self._relay_once(name, api, lengths)

    async def pass_on(self, request: Request) -> ASGIApp:
        """A call that any node can answer."""
        self._context.guard.check_key(request)
        api = self._as_it_came(request, await self._context.guard.body(request))
        return self._relay(api, None, _given_id(request))

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Whether every node's engine answers that it is well. Open to all, for load balancers."""
        if (refusal := self._context.server.refusal) is not None:
            raise refusal
        answers = await self._ask_all("/health")
        ill = [node for node, (status, _) in enumerate(answers) if status != 200]
        if ill:
            names = ", ".join(map(str, ill))
            raise ApiError(503, f"The engine of node {names} does not answer.", "service_unavailable_error")
        return JSONResponse({"status": "ok", "nodes": len(answers)})

    async def metrics(self, request: Request) -> Response:
        """The nodes' metrics and the run's own, in Prometheus' format."""
        self._context.guard.check_key(request)
        answers = await self._ask_all("/metrics")
        texts = [text.decode() if status == 200 else None for status, text in answers]
        return Response(exposition(texts, self._context.figures()), media_type=CONTENT_TYPE)

    async def samples(self, request: Request) -> Response:
        """Training samples: one JSON object, or one in each line; all are taken, or none."""
        self._context.guard.check_key(request)
        intake = self._context.samples
        if intake is None:
            raise bad_request("This run does not train: its recipe has no `training` section.")
        body = await self._context.guard.body(request)
        if (refusal := self._context.server.refusal) is not None:
            raise refusal
        name = _given_id(request)
        ids = await self._do_aside(lambda: intake.take(body, self._context.now(), name))
        return JSONResponse({"object": "training.samples", "accepted": len(ids), "ids": ids})

    def _relay(self, api: ApiCall, lengths: tuple[int, int] | None, name: str | None = None) -> ASGIApp:
        call = Call(name or f"http-{secrets.token_hex(8)}", api, self._context.now(), lengths)
        self._context.server.enter(call)
        return Relay(self._context.server, call)

    def _relay_once(self, name: str, api: ApiCall, lengths: tuple[int, int]) -> ASGIApp:
        """A call that its client has named: it is answered once, and is told the same again."""
        answers, now = self._context.answers, self._context.now
        digest = api.digest
        given = answers.begin(name, digest)
        if given is not None:
            return Replay(given, for_client(given.headers, name))
        call = Call(name, api, now(), lengths, recording=Recording(answers, name, digest, now))
        try:
            self._context.server.enter(call)
        except ApiError:
            answers.end(name)
            raise
        return Relay(self._context.server, call, lambda: answers.end(name))

    def _as_it_came(self, request: Request, body: bytes) -> ApiCall:
        query = f"?{request.url.query}" if request.url.query else ""
        path: str = request.scope["raw_path"].decode("ascii") + query
        return ApiCall(request.method, path, for_node(request.headers.items()), body)

    async def _ask_all(self, path: str) -> list[tuple[int, bytes]]:
        """Status and body of every node's answer; an error's status where there is none."""
        return await asyncio.gather(*(self._ask(path, node) for node in range(self._context.nodes)))

    async def _ask(self, path: str, node: int) -> tuple[int, bytes]:
        call = Call(f"{path[1:]}-{node}", ApiCall("GET", path, (), b""), self._context.now(), None, node)
        self._context.server.enter(call, counted=False)
        status, body = 0, bytearray()
        while isinstance(part := await call.next(), ResponsePart):
            status = status or part.status
            body += part.body
            if not part.more:
                return status, bytes(body)
        assert not isinstance(part, Gone), "nobody hangs up here"
        return part.status, part.body

    async def _do_aside(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)


def _json(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"The body is not a JSON object: {error}") from error


def _given_id(request: Request) -> str | None:
    """The client's own name for its call, if it can be one."""
    given: str = request.headers.get("x-request-id", "")
    return given if given.isprintable() and 0 < len(given) <= LONGEST_ID else None


async def _told(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, ApiError), "registered for these"
    return Response(error.body, error.status, dict(error.headers))


async def _left(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return Response(status_code=400)  # which nobody reads: the client went in the middle of its body


async def _broken(request: Request, error: Exception) -> Response:  # noqa: ARG001
    # Its traceback goes to the rank's log.
    fault = ApiError(500, "Internal error of the endpoint; the run's log has the details.", "server_error")
    return await _told(request, fault)


async def _no_such_call(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for these"
    message = f"{request.method} {request.url.path}: {error.detail}"
    refusal = ApiError(error.status_code, message, "invalid_request_error")
    return Response(refusal.body, refusal.status, dict(error.headers or {}) | dict(refusal.headers))


_HANDLERS = {ApiError: _told, HTTPException: _no_such_call, ClientDisconnect: _left, Exception: _broken}
