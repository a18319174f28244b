import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from lemix_hpc.engines.vllm import asgi


async def echo(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"query": request.query_params["q"], "body": body.decode(), "name": request.headers["x-name"]})


async def stream(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        while not await request.is_disconnected():
            await asyncio.sleep(0)
        yield b"gone"

    return StreamingResponse(pieces())


async def endless(request: Request) -> StreamingResponse:  # noqa: ARG001
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


ROUTES = [Route("/echo", echo, methods=["POST"]), Route("/stream", stream), Route("/endless", endless)]
APP = Starlette(routes=ROUTES)


def answer(method: str, target: str, body: bytes = b"", *, gone: bool = False) -> list[tuple[int, bytes, bool]]:
    parts: list[tuple[int, bytes, bool]] = []

    async def run() -> None:
        hung_up = asyncio.Event()
        if gone:
            hung_up.set()
        headers = [("X-Name", "me"), ("content-type", "application/json")]
        await asgi.call(
            APP,
            method,
            target,
            headers,
            body,
            hung_up,
            lambda status, _, data, more: parts.append((status, data, more)),
        )

    asyncio.run(run())
    return parts


def test_a_call_reaches_the_application_whole() -> None:
    ((status, data, more),) = answer("POST", "/echo?q=%C3%A9", b"hello")
    assert (status, more) == (200, False)
    assert data.decode() == '{"query":"é","body":"hello","name":"me"}'


def test_an_unknown_path_is_the_applications_own_answer() -> None:
    assert answer("GET", "/nothing")[0][0] == 404


def test_a_stream_comes_in_pieces_and_ends_when_the_client_hangs_up() -> None:
    parts = answer("GET", "/stream", gone=True)
    assert parts[0][0] == 200
    assert all(status == 0 for status, _, _ in parts[1:])


def test_a_stream_that_asks_nobody_ends_when_the_client_hangs_up() -> None:
    assert all(more for _, _, more in answer("GET", "/endless", gone=True))
