"""Files that clients upload, and that batches leave: in the run's directory, each whole or not there, and never changed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from lemix_hpc.records.files import replace, sync_directory
from lemix_hpc.runtime.http.errors import ApiError

FILES = "files"
_ID = re.compile(r"file-[0-9a-f]{24}")


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """What clients are told of a file. `bytes`: its size; `created_at` in seconds since the epoch; `owner`: the name of the key
    with which it came, as which alone it is seen."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    owner: str = ""


class FileStore:
    """The files of a run. For any thread; nothing here is changed, only added and removed. Methods raise OSError."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / FILES
        self.directory.mkdir(exist_ok=True)

    def add(
        self, content: Iterable[bytes], filename: str, purpose: str, owner: str, id: str | None = None
    ) -> FileObject:
        """A new file, on the disk when this returns. One with an `id` takes the place of what an earlier try has left."""
        id = id or f"file-{secrets.token_hex(12)}"
        partial, path = self.directory / f"{id}.partial", self.directory / id
        try:
            with partial.open("wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        told = FileObject(
            id=id,
            bytes=path.stat().st_size,
            created_at=int(time.time()),
            filename=filename,
            purpose=purpose,
            owner=owner,
        )
        # The file counts once it has this beside it.
        replace(self._about(id), msgspec.json.encode(told), sync=True)
        return told

    def get(self, id: str, owner: str) -> FileObject:
        """Raises ApiError if the owner has none of this name."""
        if _ID.fullmatch(id):
            with contextlib.suppress(FileNotFoundError):
                file = self._read(id)
                if file.owner == owner:
                    return file
        raise ApiError(404, f"There is no file {id!r}.", "invalid_request_error")

    def path(self, id: str, owner: str) -> Path:
        """Where the content of a file is. Raises ApiError as `get`."""
        return self.directory / self.get(id, owner).id

    def all(self) -> list[FileObject]:
        """Of all owners, the newest first."""
        found = [self._read(path.stem) for path in self.directory.glob("file-*.json")]
        return sorted(found, key=lambda file: (file.created_at, file.id), reverse=True)

    def remove(self, id: str, owner: str) -> None:
        """Raises ApiError as `get`."""
        path = self.path(id, owner)
        self._about(id).unlink()
        path.unlink()
        sync_directory(self.directory)

    def _read(self, id: str) -> FileObject:
        return msgspec.json.decode(self._about(id).read_bytes(), type=FileObject)

    def _about(self, id: str) -> Path:
        return self.directory / f"{id}.json"
