"""Asks the lines of batches, a number of them at a time, from their upload to their results, over all attempts of a run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import math
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.files import patiently
from lemix_hpc.records.line_file import LineFile
from lemix_hpc.runtime.http.batch_results import body_in_json, result_line
from lemix_hpc.runtime.http.batches.batch import OVER, Batch, Counts, Errors, LineError, Status
from lemix_hpc.runtime.http.batches.batch_store import BatchStore, results_in, split_results
from lemix_hpc.runtime.http.batches.file_store import FileStore
from lemix_hpc.runtime.http.call import Call, Gone, ResponsePart
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.http.server import HttpServer
from lemix_hpc.workload.batch_calls import read_batch_calls
from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.tokenizer import Tokenizer
from lemix_hpc.workload.traces import TraceRow

T = TypeVar("T")

LINES_UNDER_WAY = 256
"""Lines of all batches that wait for their answers at the same time: enough for full passes, few enough to keep in memory."""
MOST_LINES = 50_000
"""Of one batch, as OpenAI has it."""
MOST_ERRORS = 100
"""Bad lines that are told of."""
READ_AT_ONCE = 64

_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
_LOST = {"code": "lost", "message": "Every attempt of the run to answer this request has ended its engine."}


class BatchRunner:
    """In the server's thread, but for the disk and for counting tokens, which have a thread each, and a `tokenizer` of its own.

    `context`: tokens that the model takes at once; `now` in seconds of the run; `lost`: names of calls that are not tried
    again.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        server: HttpServer,
        tokenizer: Tokenizer,
        context: int,
        now: Callable[[], float],
        lost: Container[str] = (),
    ) -> None:
        self._store = store
        self._files = files
        self._server = server
        self._tokenizer = tokenizer
        self._context = context
        self._now = now
        self._lost = lost
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="http-batches-disk")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="http-batches-reader")
        self._slots = asyncio.Semaphore(LINES_UNDER_WAY)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._done: dict[str, Counter[bool]] = {}
        self._closing = False

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Work on what earlier attempts have left, and on what comes, meanwhile."""
        for batch in await self.on_disk(self._store.unfinished):
            self.start(batch)
        try:
            yield
        finally:
            self._closing = True
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._disk.shutdown()
            self._reader.shutdown()

    def start(self, batch: Batch) -> None:
        """Work on a batch that was written down."""
        self._tasks[batch.id] = task = asyncio.create_task(self._work_on(batch), name=batch.id)
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))

    async def cancel(self, id: str) -> Batch:
        """Begin to end a batch. Raises ApiError for one that is over."""
        batch = await self.on_disk(lambda: self._store.change(id, "cancelling", cancelling_at=_seconds()))
        if id in self._tasks:
            self._tasks[id].cancel()
        return self.counted(batch)

    def counted(self, batch: Batch) -> Batch:
        """A batch with the lines done so far."""
        done = self._done.get(batch.id)
        return batch if done is None else msgspec.structs.replace(batch, request_counts=_counts(batch, done))

    async def on_disk(self, work: Callable[[], T]) -> T:
        """The result of work that waits for the disk. It is tried again while that takes nothing."""
        patient = functools.partial(patiently, work, math.inf, lambda: self._closing)
        return await asyncio.get_running_loop().run_in_executor(self._disk, patient)

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    async def _work_on(self, batch: Batch) -> None:
        try:
            await self._carry_out(batch)
        except asyncio.CancelledError:
            # By a client; else the run is ending, and the next attempt goes on.
            if not self._closing:
                await self._finalise(batch.id)
        except Exception as error:  # noqa: BLE001  a fault of ours must not end the run
            traceback.print_exception(error)
            failed = Errors([LineError("server_error", "Internal error; the run's log has the details.")])
            await self._change(batch.id, "failed", errors=failed, failed_at=_seconds())
        finally:
            self._done.pop(batch.id, None)

    async def _carry_out(self, batch: Batch) -> None:
        if batch.status == "validating":
            batch = await self._validate(batch)
        if batch.status == "in_progress":
            batch = await self._ask_lines(batch)
        if batch.status not in OVER:
            await self._finalise(batch.id)

    async def _validate(self, batch: Batch) -> Batch:
        try:
            total, errors = await self._read(lambda: self._check(batch))
        except (UserError, ApiError) as error:
            # Not where on the disk the file is.
            why = str(error).replace(f"{self._files.directory}/", "")
            total, errors = 0, [LineError("invalid_file", why)]
        if errors:
            return await self._change(batch.id, "failed", errors=Errors(errors[:MOST_ERRORS]), failed_at=_seconds())
        return await self._change(batch.id, "in_progress", in_progress_at=_seconds(), request_counts=Counts(total))

    def _check(self, batch: Batch) -> tuple[int, list[LineError]]:
        """How many lines there are, and what is wrong with them."""
        findings, count, errors = Findings(), 0, []
        for row in self._rows(batch, findings):
            count += 1
            if row.call is not None and row.call.path != batch.endpoint:
                errors.append(LineError("mismatched_endpoint", f"{row.id}: `url` is not {batch.endpoint}"))
        errors += [LineError("invalid_request", line.reason) for line in findings.bad_lines]
        if count > MOST_LINES:
            errors.append(LineError("too_many_tasks", f"There are {count} lines, and at most {MOST_LINES} in a batch."))
        return count, errors

    def _rows(self, batch: Batch, findings: Findings) -> Iterator[TraceRow]:
        path = self._files.path(batch.input_file_id, batch.owner)
        return read_batch_calls(path, findings, self._tokenizer, self._context)

    async def _ask_lines(self, batch: Batch) -> Batch:
        """All that have no result yet, until the completion window is over."""
        file, known = await self.on_disk(lambda: self._store.go_on(batch.id))
        self._done[batch.id] = Counter(known.values())
        try:
            async with asyncio.timeout(max(0.0, batch.expires_at - time.time())):
                await self._ask_rows(batch, file, known)
        except TimeoutError:
            return await self._change(batch.id, "finalizing", finalizing_at=_seconds(), expired_at=_seconds())
        finally:
            file.close()
        return await self._change(batch.id, "finalizing", finalizing_at=_seconds())

    async def _ask_rows(self, batch: Batch, file: LineFile, known: Container[str]) -> None:
        rows = self._rows(batch, Findings())
        async with asyncio.TaskGroup() as group:
            number = 0
            while chunk := await self._read(lambda: list(islice(rows, READ_AT_ONCE))):
                for row in chunk:
                    number += 1
                    if row.id in known:
                        continue
                    await self._slots.acquire()
                    asked = group.create_task(self._ask(batch, f"{batch.id}-{number}", row, file))
                    asked.add_done_callback(lambda _: self._slots.release())

    async def _ask(self, batch: Batch, name: str, row: TraceRow, file: LineFile) -> None:
        """One line, again and again while it is told to come back later."""
        assert row.call is not None and row.id is not None, "it is a line of a batch"
        if name in self._lost:
            self._write(batch, file, result_line(row.id, None, _LOST), answered=False)
            return
        while True:
            lengths = row.prompt_tokens, row.output_tokens
            call = Call(name, replace(row.call, key=batch.owner), self._now(), lengths, service="batch")
            call.patient = True
            try:
                status, body = await self._answer(call)
            except ApiError as error:
                if error.retry_after is not None:
                    await asyncio.sleep(error.retry_after)
                    continue
                failed = {"code": error.code or error.kind, "message": error.message}
                self._write(batch, file, result_line(row.id, None, failed), answered=False)
                return
            response = {"status_code": status, "request_id": f"lemix-{call.number}", "body": body_in_json(body)}
            self._write(batch, file, result_line(row.id, response, None), answered=status == 200)
            return

    async def _answer(self, call: Call) -> tuple[int, bytes]:
        """Status and body. Raises ApiError if there is none. Gives the call up when it is cancelled."""
        self._server.enter(call, counted=False)
        status, body = 0, bytearray()
        try:
            while True:
                part = await call.next()
                if isinstance(part, ApiError):
                    raise part
                assert isinstance(part, ResponsePart) and not isinstance(part, Gone), "nobody hangs up here"
                status = status or part.status
                body += part.body
                if not part.more:
                    return status, bytes(body)
        except asyncio.CancelledError:
            self._server.abandon(call)
            raise

    def _write(self, batch: Batch, file: LineFile, line: bytes, *, answered: bool) -> None:
        file.write(line)
        file.flush()
        self._done[batch.id][answered] += 1

    async def _finalise(self, id: str) -> None:
        """Make files of the results: one of the answers, one of the errors."""
        batch = await self.on_disk(lambda: self._store.get(id))
        results, ended = await self._read(lambda: self._make_files(batch)), _seconds()
        if batch.status == "cancelling":
            await self._change(id, "cancelled", cancelled_at=ended, **results)
        elif batch.expired_at is not None:
            await self._change(id, "expired", **results)
        else:
            await self._change(id, "completed", completed_at=ended, **results)

    def _make_files(self, batch: Batch) -> dict[str, Any]:
        """Counts, and the names of the files."""
        path = self._store.results(batch.id)
        good, bad = split_results(path)
        if batch.status != "cancelling" and batch.expired_at is not None:
            known = results_in(path)
            rows = self._rows(batch, Findings())
            bad += [result_line(row.id, None, _EXPIRED) for row in rows if row.id not in known]
        made: dict[str, Any] = {"request_counts": Counts(batch.request_counts.total, len(good), len(bad))}
        for what, lines in (("output", good), ("error", bad)):
            if lines:
                # By one name, however often this has to be tried.
                digest = hashlib.sha256(f"{batch.id} {what}".encode()).hexdigest()
                name = f"{batch.id}_{what}.jsonl"
                made[f"{what}_file_id"] = self._files.add(
                    lines, name, "batch_output", batch.owner, f"file-{digest[:24]}"
                ).id
        return made

    async def _change(self, id: str, status: Status, **changes: object) -> Batch:
        return await self.on_disk(lambda: self._store.change(id, status, **changes))


def _counts(batch: Batch, done: Counter[bool]) -> Counts:
    return Counts(batch.request_counts.total, done[True], done[False])


def _seconds() -> int:
    return int(time.time())
