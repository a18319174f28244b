"""The web application: which calls there are, and which node answers them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.faults import Faults
from lemix_hpc.runtime.http.answers import Answers, Recording, Replay
from lemix_hpc.runtime.http.batches.batch_api import BatchApi
from lemix_hpc.runtime.http.call import Call, Gone, ResponsePart
from lemix_hpc.runtime.http.errors import ApiError, bad_request, reused, too_much, wrong_type
from lemix_hpc.runtime.http.keys import Key
from lemix_hpc.runtime.http.metrics import CONTENT_TYPE, DoorFigures, Figures, exposition
from lemix_hpc.runtime.http.request_guard import CloseToStrangers, Guard
from lemix_hpc.runtime.http.response_stream import Relay, for_client, for_node
from lemix_hpc.runtime.http.sample_intake import SampleIntake
from lemix_hpc.runtime.http.server import HttpServer
from lemix_hpc.runtime.http.shared_look import SharedLook
from lemix_hpc.workload.api_lengths import GENERATING, call_class, call_lengths
from lemix_hpc.workload.call_body import check_costs, read_body, sequences
from lemix_hpc.workload.tasks import ApiCall
from lemix_hpc.workload.tokenizer import Tokenizer

LONGEST_ID = 128
OTHERS = (("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/v1/models"))
"""What generates nothing, and so goes to the first node."""
LONGEST_OTHER = 1 << 20
"""Bytes of such a call: the node's server tokenises one text at a time, and those of prompts wait meanwhile."""
MOST_OTHERS = 16
MOST_POSTS = 16
"""Calls of these kinds at the same time."""
JSON_TYPES = ("application/json", "application/jsonl", "application/x-ndjson", "application/json-lines")
T = TypeVar("T")


@dataclass(frozen=True)
class AppContext:
    """What the application works with. `figures`: the newest ones; `context`: tokens that the model takes at once; `taken`: ids
    of requests that are not clients'."""

    server: HttpServer
    guard: Guard
    nodes: int
    tokenizer: Tokenizer
    context: int
    now: Callable[[], float]
    figures: Callable[[], Figures]
    answers: Answers
    samples: SampleIntake | None
    taken: Container[str] = ()
    batches: BatchApi | None = None


def make_app(context: AppContext) -> Starlette:
    """The application of a run."""
    endpoints, batches = _Endpoints(context), context.batches
    app = Starlette(
        routes=[*endpoints.routes(), *(batches.routes() if batches is not None else ())],
        exception_handlers=_HANDLERS | {Exception: endpoints.broken},
        lifespan=None if batches is None else lambda app: batches.runner.going_on(),  # noqa: ARG005
    )
    app.add_middleware(CloseToStrangers)
    return app


class _Endpoints:
    def __init__(self, context: AppContext) -> None:
        self._context = context
        # Tokenising, and waiting for the disk, must hold up neither what streams nor one another; one at a time of each, as
        # tokenizers want it.
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="http-tokens")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="http-samples")
        self._posts = self._others = 0
        self._faults = Faults()
        self._health = SharedLook(lambda: self._ask_all("/health"))
        self._metrics = SharedLook(lambda: self._ask_all("/metrics"))

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
        key = await self._context.guard.check_key(request, "serve")
        body = await self._context.guard.body(request)
        path = request.scope["path"]
        lengths, answers, service = await _aside(self._counting, lambda: self._understood(path, body))
        self._context.guard.keys.take_tokens(key, lengths)
        api, name = self._as_it_came(request, body, key, answers), self._given_id(request, key)
        if name is None:
            return self._relay(api, lengths, service=service)
        return self._relay_once(name, api, lengths, service)

    async def pass_on(self, request: Request) -> ASGIApp:
        """A call that any node can answer."""
        key = await self._context.guard.check_key(request, "serve")
        body = await self._context.guard.body(request)
        if len(body) > LONGEST_OTHER:
            raise bad_request(f"The text is longer than {LONGEST_OTHER} bytes; send it in parts.")
        if request.method == "POST":
            await _aside(self._counting, lambda: _read(body))
        if self._others >= MOST_OTHERS:
            raise too_much(f"There are {MOST_OTHERS} such requests under way already.")
        api = self._as_it_came(request, body, key)
        relay = self._relay(api, None, self._given_id(request, key), self._other_over)
        self._others += 1
        return relay

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Whether every node's engine answers that it is well. Open to all, for load balancers."""
        if (refusal := self._context.server.refusal) is not None:
            raise refusal
        answers = await self._health.get()
        ill = [node for node, (status, _) in enumerate(answers) if status != 200]
        if ill:
            names = ", ".join(map(str, ill))
            raise ApiError(503, f"The engine of node {names} does not answer.", "service_unavailable_error")
        return JSONResponse({"status": "ok", "nodes": len(answers)})

    async def metrics(self, request: Request) -> Response:
        """The nodes' metrics and the run's own, in Prometheus' format."""
        await self._context.guard.check_key(request, "metrics")
        answers = await self._metrics.get()
        texts = [text.decode() if status == 200 else None for status, text in answers]
        refused, turned_away = self._context.guard.keys.refused, self._context.server.turned_away
        door = DoorFigures(dict(refused), turned_away, self._context.server.connections, self._health.asked)
        return Response(exposition(texts, self._context.figures(), door), media_type=CONTENT_TYPE)

    async def samples(self, request: Request) -> Response:
        """Training samples: one JSON object, or one in each line; all are taken, or none."""
        key = await self._context.guard.check_key(request, "train")
        intake = self._context.samples
        if intake is None:
            raise bad_request("This run does not train: its recipe has no `training` section.")
        given: str = request.headers.get("content-type", JSON_TYPES[0])
        if given.partition(";")[0].strip().lower() not in JSON_TYPES:
            raise wrong_type(given[:100], " or ".join(JSON_TYPES[:2]))
        if self._posts >= MOST_POSTS:
            raise too_much(f"There are {MOST_POSTS} calls with samples under way already.")
        self._posts += 1
        try:
            body = await self._context.guard.body(request)
            if (refusal := self._context.server.refusal) is not None:
                raise refusal
            name = self._given_id(request, key)
            ids = await _aside(self._writing, lambda: intake.take(body, self._context.now(), name, key.name))
        finally:
            self._posts -= 1
        return JSONResponse({"object": "training.samples", "accepted": len(ids), "ids": ids})

    async def broken(self, request: Request, error: Exception) -> Response:
        """For what nobody thought of."""
        self._faults.tell(f"the endpoint failed in {request.method} {request.url.path[:100]!r}", error)
        fault = ApiError(500, "Internal error of the endpoint; the run's log has the details.", "server_error")
        return await _told(request, fault)

    def _understood(self, path: str, body: bytes) -> tuple[tuple[int, int], int, ServiceClass]:
        """The lengths of a call that generates, how many answers it asks for, and its class."""
        content = _read(body)
        try:
            check_costs(content)
            lengths = call_lengths(path, content, self._context.tokenizer, self._context.context)
        except ValueError as error:
            raise bad_request(str(error)) from error
        return lengths, sequences(content), call_class(content)

    def _other_over(self) -> None:
        self._others -= 1

    def _relay(
        self,
        api: ApiCall,
        lengths: tuple[int, int] | None,
        name: str | None = None,
        over: Callable[[], None] = lambda: None,
        service: ServiceClass = "interactive",
    ) -> ASGIApp:
        call = Call(name or f"http-{secrets.token_hex(8)}", api, self._context.now(), lengths, service=service)
        self._context.server.enter(call)
        return Relay(self._context.server, call, over)

    def _relay_once(self, name: str, api: ApiCall, lengths: tuple[int, int], service: ServiceClass) -> ASGIApp:
        """A call that its client has named: it is answered once, and is told the same again."""
        answers, now = self._context.answers, self._context.now
        digest = api.digest
        given = answers.begin(name, digest)
        if given is not None:
            return Replay(given, for_client(given.headers, name))
        recording = Recording(answers, name, digest, now)
        call = Call(name, api, now(), lengths, recording=recording, service=service)
        try:
            self._context.server.enter(call)
        except ApiError:
            answers.end(name)
            raise
        return Relay(self._context.server, call, lambda: answers.end(name))

    def _given_id(self, request: Request, key: Key) -> str | None:
        """The client's own name for its call, if it can be one. Raises ApiError for one that a request of the recipe has."""
        given: str = request.headers.get("x-request-id", "")
        if not given.isprintable() or not 0 < len(given) <= LONGEST_ID:
            return None
        if (name := key.scoped(given)) in self._context.taken:
            raise reused(name)
        return name

    def _as_it_came(self, request: Request, body: bytes, key: Key, answers: int = 1) -> ApiCall:
        # The path as it was understood here: a node must not understand another one.
        headers = for_node(request.headers.items())
        return ApiCall(request.method, request.scope["path"], headers, body, key.name, answers)

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


async def _aside(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)


def _read(body: bytes) -> dict[str, Any]:
    try:
        return read_body(body)
    except ValueError as error:
        raise bad_request(str(error)) from error


async def _told(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, ApiError), "registered for these"
    return Response(error.body, error.status, dict(error.headers))


async def _left(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return Response(status_code=400)  # which nobody reads: the client went in the middle of its body


async def _no_such_call(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for these"
    message = f"{request.method} {request.url.path}: {error.detail}"
    refusal = ApiError(error.status_code, message, "invalid_request_error")
    return Response(refusal.body, refusal.status, dict(error.headers or {}) | dict(refusal.headers))


_HANDLERS = {ApiError: _told, HTTPException: _no_such_call, ClientDisconnect: _left}
