"""What clients of the endpoint notice of others that idle, dawdle and vanish: p99 of their response times, and its ratio.

    python benchmarks/hostile_clients.py [--each 1000] [--seconds 10] [--rounds 3] [--url URL --key-file FILE] [--json]

Ordinary clients ask one short completion after the other. By turns they are alone, and beside `--each` clients of one kind, and
of all kinds: `idle` ones connect and say nothing, `slow` ones send a byte of a head or of a body a second, or read nothing of
what they asked for, and `vanishing` ones hang up while they are being answered. All of them come again. Each kind runs in a
process of its own.

Without `--url` the endpoint is one of this program's, in a process of its own, in front of a node that pretends: it answers
after 20 ms, whatever comes. With it, any run's that serves; `--key-file` is the `api_key` in that run's directory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ORDINARY = 8
ANSWER_S = 0.02
COMES_AGAIN_S = 10.0
Client = Callable[[Any, Any], Coroutine[Any, Any, None]]
ANSWER = json.dumps({"object": "text_completion", "choices": [{"index": 0, "text": "yes"}], "usage": None}).encode()


@dataclass(frozen=True)
class Target:
    """An endpoint, and a key that it takes."""

    host: str
    port: int
    key: str
    model: str

    def head(self, length: int) -> bytes:
        lines = (
            "POST /v1/completions HTTP/1.1",
            f"Host: {self.host}",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
        )
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def request(self) -> bytes:
        body = json.dumps({"model": self.model, "prompt": "1 + 1 =", "max_tokens": 4}).encode()
        return self.head(len(body)) + body


def pretend(listening: Connection, over: Event) -> None:
    """An endpoint whose node answers after a while, until it is over."""
    from lemix_hpc.config.serving_section import Http
    from lemix_hpc.records.key_file import keep_key
    from lemix_hpc.runtime.http import descriptors
    from lemix_hpc.runtime.http.answers import Answers
    from lemix_hpc.runtime.http.app import AppContext, make_app
    from lemix_hpc.runtime.http.call import Call, ResponsePart
    from lemix_hpc.runtime.http.keys import KeyRing
    from lemix_hpc.runtime.http.metrics import Figures
    from lemix_hpc.runtime.http.request_guard import Guard
    from lemix_hpc.runtime.http.server import HttpServer, bind
    from lemix_hpc.workload.tokenizer import ByteTokenizer

    descriptors.raise_limit()
    woken = threading.Event()
    listener = bind(Http(port=0))
    with tempfile.TemporaryDirectory() as directory:
        key_file = keep_key(Path(directory), None)
        server = HttpServer(listener, woken.set)
        guard = Guard(KeyRing(key_file), 16.0)
        context = AppContext(
            server, guard, 1, ByteTokenizer(), 1024, time.monotonic, Figures, Answers([], []), samples=None
        )
        server.open(make_app(context))
        server.accept()
        listening.send((*listener.getsockname()[:2], key_file.read_text().strip()))
        waiting: list[tuple[float, int, Call]] = []
        headers = [("content-type", "application/json")]
        while not over.is_set():
            woken.wait(max(0.0, min(0.1, waiting[0][0] - time.monotonic())) if waiting else 0.1)
            woken.clear()
            for call in server.poll():
                if not call.gone:
                    heapq.heappush(waiting, (time.monotonic() + ANSWER_S, id(call), call))
            while waiting and waiting[0][0] <= time.monotonic():
                call = heapq.heappop(waiting)[2]
                call.part(ResponsePart(200, headers, ANSWER, False))
        server.close()


async def connected(target: Target, client: Client) -> None:
    """One client that comes again and again, however it is treated."""
    while True:
        await asyncio.sleep(random.uniform(0.0, COMES_AGAIN_S))
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(target.host, target.port, limit=1024)
            try:
                await client(reader, writer)
            finally:
                writer.transport.abort()


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    await reader.read()


def slow(target: Target, number: int) -> Client:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if number % 3 == 2:
            # Asks, and does not read.
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(target.request() * 3)
            await asyncio.sleep(60)
            return
        sent = target.head(10_000) if number % 3 else b"GET /health HTTP/1.1\r\nX: "
        writer.write(sent)
        while not reader.at_eof():
            writer.write(b" ")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # `wait_for` would now and then lose that it is all over
                    await reader.read(100)

    return client


def vanishing(target: Target) -> Client:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
        writer.write(target.request())
        await asyncio.sleep(random.uniform(0.0, 2 * ANSWER_S))

    return client


def crowd(kind: str, target: Target, count: int, over: Event) -> None:
    """So many clients of a kind, until it is over."""
    from lemix_hpc.runtime.http import descriptors

    descriptors.raise_limit()
    # They would be on other machines, and must not take this one's processors.
    os.nice(19)

    async def run() -> None:
        clients: dict[str, Callable[[int], Client]] = {
            "idle": lambda number: idle,  # noqa: ARG005
            "slow": lambda number: slow(target, number),
            "vanishing": lambda number: vanishing(target),  # noqa: ARG005
        }
        client_of = clients[kind]
        tasks = [asyncio.create_task(connected(target, client_of(number))) for number in range(count)]
        while not over.is_set():
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


@contextlib.contextmanager
def beside(kinds: tuple[str, ...], target: Target, each: int) -> Iterator[None]:
    over = multiprocessing.Event()
    processes = [multiprocessing.Process(target=crowd, args=(kind, target, each, over)) for kind in kinds]
    for process in processes:
        process.start()
    try:
        if processes:
            time.sleep(COMES_AGAIN_S)  # until all have come
        yield
    finally:
        over.set()
        for process in processes:
            process.join()


def ordinary(target: Target, seconds: float) -> tuple[list[float], int]:
    """Response times [s] of clients that ask one call after the other, and how many calls were not answered well."""

    async def client(times: list[float], end: float) -> int:
        failed = 0
        reader, writer = await asyncio.open_connection(target.host, target.port)
        while time.monotonic() < end:
            begin = time.monotonic()
            try:
                writer.write(target.request())
                head = await reader.readuntil(b"\r\n\r\n")
                length = (
                    int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                    if b"content-length" in head
                    else None
                )
                if length is None:
                    await chunked(reader)
                else:
                    await reader.readexactly(length)
                failed += not head.startswith(b"HTTP/1.1 200")
            except (OSError, asyncio.IncompleteReadError):
                failed += 1
                reader, writer = await asyncio.open_connection(target.host, target.port)
            times.append(time.monotonic() - begin)
        writer.close()
        return failed

    async def run() -> tuple[list[float], int]:
        times: list[float] = []
        end = time.monotonic() + seconds
        failed = await asyncio.gather(*(client(times, end) for _ in range(ORDINARY)))
        return times, sum(failed)

    return asyncio.run(run())


async def chunked(reader: asyncio.StreamReader) -> None:
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
    await reader.readline()


def open_connections(target: Target) -> int:
    """As the endpoint counts them."""
    request = urllib.request.Request(f"http://{target.host}:{target.port}/metrics")
    request.add_header("Authorization", f"Bearer {target.key}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("lemix_http_connections "))


def percentile(times: list[float], percent: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@contextlib.contextmanager
def endpoint(url: str | None, key_file: Path | None, model: str) -> Iterator[Target]:
    if url is not None:
        parts = urlsplit(url)
        assert key_file is not None and parts.hostname is not None and parts.port is not None, (
            "a whole address, and a key"
        )
        yield Target(parts.hostname, parts.port, key_file.read_text().strip(), model)
        return
    over = multiprocessing.Event()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=pretend, args=(theirs, over))
    process.start()
    try:
        host, port, key = ours.recv()
        yield Target(host, port, key, model)
    finally:
        over.set()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=1000, help="clients of each kind")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="of turns")
    parser.add_argument("--url", help="of a run's endpoint, such as http://127.0.0.1:8000")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--model", default="vllm-http")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    turns: dict[str, tuple[str, ...]] = {"alone": ()} | {kind: (kind,) for kind in ("idle", "slow", "vanishing")}
    turns["all"] = ("idle", "slow", "vanishing")
    times: dict[str, list[list[float]]] = {name: [] for name in turns}
    connections: dict[str, list[int]] = {name: [] for name in turns}
    failed = dict.fromkeys(turns, 0)
    multiprocessing.set_start_method("spawn")
    with endpoint(given.url, given.key_file, given.model) as target:
        ordinary(target, 1.0)
        for _ in range(given.rounds):
            for name, kinds in turns.items():
                with beside(kinds, target, given.each):
                    connections[name].append(open_connections(target))
                    found, wrong = ordinary(target, given.seconds)
                    connections[name].append(open_connections(target))
                times[name].append(found)
                failed[name] += wrong
    p99 = {name: [percentile(found, 99) for found in of_turns] for name, of_turns in times.items()}
    result = {
        name: {
            "requests": sum(map(len, times[name])),
            "failed": failed[name],
            "connections": statistics.median(connections[name]),
            "p50_ms": 1e3 * statistics.median(time for found in times[name] for time in found),
            "p99_ms": 1e3 * statistics.median(p99[name]),
            "p99_ratio": statistics.median(one / alone for one, alone in zip(p99[name], p99["alone"], strict=True)),
        }
        for name in turns
    }
    if given.json:
        print(json.dumps(result))
        return
    print(
        f"{given.each} clients of each kind, {given.rounds} turns of {given.seconds:g} s; ratios to the turn alone, medians"
    )
    for name, row in result.items():
        asked = f"{row['connections']:5.0f} connections, {row['requests']:6} requests, {row['failed']} failed"
        print(f"{name:10} {asked}, p50 {row['p50_ms']:7.1f} ms, p99 {row['p99_ms']:7.1f} ms, x {row['p99_ratio']:.2f}")


if __name__ == "__main__":
    main()
