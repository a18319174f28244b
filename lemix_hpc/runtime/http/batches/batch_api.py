"""The calls of `/v1/files` and `/v1/batches`."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from lemix_hpc.runtime.http.batches.batch import WINDOWS_S, Batch
from lemix_hpc.runtime.http.batches.batch_runner import BatchRunner
from lemix_hpc.runtime.http.batches.batch_store import BatchStore, no_batch
from lemix_hpc.runtime.http.batches.file_store import FileObject, FileStore
from lemix_hpc.runtime.http.errors import ApiError, bad_request, too_much, too_slow
from lemix_hpc.runtime.http.request_guard import Guard

T = TypeVar("T")
Item = TypeVar("Item", Batch, FileObject)

MOST_MB = 200
"""Of one file, as OpenAI has it for batches."""
MOST_FILES = 1000
MOST_LISTED = 100
MOST_BATCHES = 100
"""Of those that are not over."""
MOST_UPLOADS = 4
"""At the same time: each may take as much room in the temporary directory as a file may have."""
UPLOAD_S = 600.0
LONGEST_NAME = 255
FIELDS = 8
PIECE = 1 << 20


class _NewBatch(msgspec.Struct):
    input_file_id: str
    endpoint: Literal["/v1/completions", "/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


class BatchApi:
    """`refusal` tells why nothing new is taken now, or None."""

    def __init__(
        self,
        guard: Guard,
        refusal: Callable[[], ApiError | None],
        files: FileStore,
        store: BatchStore,
        runner: BatchRunner,
    ) -> None:
        self._guard = guard
        self._refusal = refusal
        self._files = files
        self._store = store
        self.runner = runner
        self._uploads = 0

    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.list_files),
            Route("/v1/files/{id}", self.file),
            Route("/v1/files/{id}", self.remove_file, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content),
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.list_batches),
            Route("/v1/batches/{id}", self.batch),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def upload(self, request: Request) -> Response:
        """A file, as a form with `file` and `purpose`."""
        owner = await self._let_in(request)
        if len(await self._on_disk(self._files.all)) >= MOST_FILES:
            raise ApiError(429, f"There are {MOST_FILES} files; remove some first.", "rate_limit_error")
        if self._uploads >= MOST_UPLOADS:
            raise too_much(f"{MOST_UPLOADS} files are being uploaded already.")
        self._uploads += 1
        try:
            return _told(await self._take_in(request, owner))
        finally:
            self._uploads -= 1

    async def _take_in(self, request: Request, owner: str) -> FileObject:
        try:
            async with asyncio.timeout(UPLOAD_S):
                body = self._guard.pieces(request, MOST_MB)
                form = await MultiPartParser(request.headers, body, max_files=1, max_fields=FIELDS).parse()
        except (MultiPartException, KeyError) as error:
            raise bad_request(f"The body is not a form with a file: {error}") from error
        except TimeoutError:
            raise too_slow(UPLOAD_S) from None
        try:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile) or purpose != "batch":
                raise bad_request('The form needs a `file`, and the `purpose` "batch".')
            stored, name = file.file, (file.filename or "file.jsonl")[:LONGEST_NAME]
            pieces = iter(lambda: stored.read(PIECE), b"")
            return await self._on_disk(lambda: self._files.add(pieces, name, "batch", owner))
        finally:
            await form.close()

    async def list_files(self, request: Request) -> Response:
        owner, purpose = await self._owner(request), request.query_params.get("purpose")
        files = await self._on_disk(self._files.all)
        return _page(request, [file for file in files if file.owner == owner and purpose in (None, file.purpose)])

    async def file(self, request: Request) -> Response:
        owner = await self._owner(request)
        return _told(await self._on_disk(lambda: self._files.get(_id(request), owner)))

    async def content(self, request: Request) -> Response:
        owner = await self._owner(request)
        path = await self._on_disk(lambda: self._files.path(_id(request), owner))
        return FileResponse(path, media_type="application/octet-stream")

    async def remove_file(self, request: Request) -> Response:
        """Not one whose batch is at work."""
        owner, id = await self._owner(request), _id(request)
        for batch in await self._on_disk(self._store.unfinished):
            if batch.input_file_id == id and batch.owner == owner:
                raise ApiError(409, f"The batch {batch.id} reads this file; cancel it first.", "invalid_request_error")
        await self._on_disk(lambda: self._files.remove(id, owner))
        return _told({"id": id, "object": "file", "deleted": True})

    async def create(self, request: Request) -> Response:
        owner = await self._let_in(request)
        try:
            asked = msgspec.json.decode(await self._guard.body(request), type=_NewBatch)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise bad_request(f"This is no batch: {error}.") from error
        await self._on_disk(lambda: self._files.get(asked.input_file_id, owner))
        if len(await self._on_disk(self._store.unfinished)) >= MOST_BATCHES:
            raise ApiError(429, f"{MOST_BATCHES} batches are under way; wait for one to end.", "rate_limit_error")
        now = int(time.time())
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            completion_window=asked.completion_window,
            created_at=now,
            expires_at=now + WINDOWS_S[asked.completion_window],
            metadata=asked.metadata,
            owner=owner,
        )
        await self._on_disk(lambda: self._store.put(batch))
        self.runner.start(batch)
        return _told(batch)

    async def list_batches(self, request: Request) -> Response:
        owner = await self._owner(request)
        batches = await self._on_disk(self._store.all)
        return _page(request, [self.runner.counted(batch) for batch in batches if batch.owner == owner])

    async def batch(self, request: Request) -> Response:
        return _told(self.runner.counted(await self._owned(request)))

    async def cancel(self, request: Request) -> Response:
        return _told(await self.runner.cancel((await self._owned(request)).id))

    async def _owned(self, request: Request) -> Batch:
        """The batch that a client asks about. Raises ApiError if that has none of this name."""
        owner = await self._owner(request)
        batch = await self._on_disk(lambda: self._store.get(_id(request)))
        if batch.owner != owner:
            raise no_batch(batch.id)
        return batch

    async def _let_in(self, request: Request) -> str:
        """The name of the client's key, if something new can be taken now."""
        owner = await self._owner(request)
        if (refusal := self._refusal()) is not None:
            raise refusal
        return owner

    async def _owner(self, request: Request) -> str:
        return (await self._guard.check_key(request, "serve")).name

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await self.runner.on_disk(work)


def _id(request: Request) -> str:
    id: str = request.path_params["id"]
    return id


def _page(request: Request, items: Sequence[Item]) -> Response:
    """As many items as are asked for, behind the one that `after` names."""
    limit = request.query_params.get("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit) <= MOST_LISTED:
        raise bad_request(f"`limit` is {limit!r}; it is a number from 1 to {MOST_LISTED}.")
    ids = [item.id for item in items]
    after = request.query_params.get("after")
    if after is not None and after not in ids:
        raise bad_request(f"`after`: there is no {after!r}.")
    first = 0 if after is None else ids.index(after) + 1
    data = items[first : first + int(limit)]
    ends = {"first_id": data[0].id, "last_id": data[-1].id} if data else {"first_id": None, "last_id": None}
    return _told({"object": "list", "data": data, "has_more": first + len(data) < len(items)} | ends)


def _told(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
