"""The writer of an attempt's journal.

Records are written in groups by a thread, which waits for the disk; whoever appends does not. Space is reserved ahead, so that
a full disk does not stop it at once. Old parts are not needed any more, and are removed: the rest is bounded by what is open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from lemix_hpc.records import fold as folds
from lemix_hpc.records.files import RETRY_S, sync_directory
from lemix_hpc.records.fold import Fold
from lemix_hpc.records.journal import Folded, Record, frame, journal_part

PART = 8 << 20
"""Bytes of records in a part, about."""
RESERVE = 16 << 20
"""Bytes that are reserved ahead of what is written."""
GATHER_S = 0.025
"""How long records gather before they are written. Each group takes the interpreter's lock from the scheduler a few times, so
there should not be a group for every record."""


class Journal:
    """Writes into `directory`, which must have no journal. `append` never waits for the disk; what cannot be written is kept,
    and tried again. `fold`: what comes before the first record.

    In the writing thread `first` is called before each group is written, to make safe what the records count on, and `settle`
    before the journal is cut, to make the lines of `tasks.jsonl` safe (both may raise OSError; where `settle` does, the part
    goes on). `saved` gives the versions of weights behind which training will not go back; None: it never does. Raises OSError
    if the file cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        fold: Fold | None = None,
        first: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
        saved: Callable[[], Mapping[int, int] | None] = lambda: {},
    ) -> None:
        self._directory = directory
        self._first = first
        self._settle = settle
        self._saved = saved
        self._number = 1
        self._path = journal_part(directory, 1)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._listed = False
        self._encoder = msgspec.msgpack.Encoder()
        beginning = folds.encode(fold or Fold())
        # A copy: it changes with every record that is written.
        self._fold = folds.decode(beginning)
        self._beginning = frame(self._encoder.encode(Folded(beginning)), 0)
        self._in_part = 1
        self._cut_at = 0
        self._offset = 0
        self._reserved = 0
        self._appended = 0
        self._waiting: list[tuple[Record, bytes]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._hurry = False
        self.synced = 0
        """How many records are safe on the disk."""
        self.trouble: str | None = None
        """Why the disk does not take more, None while it does."""
        self.full = False
        """Whether it does not even take what is waiting: nothing can be promised then."""
        self._reserve()
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    def append(self, record: Record) -> int:
        """Hand a record over. Returns how many there are with it: it is safe once `synced` is as large."""
        content = self._encoder.encode(record)
        with self._changed:
            self._waiting.append((record, content))
            self._appended += 1
            if len(self._waiting) == 1:
                self._changed.notify_all()
            return self._appended

    @property
    def waiting(self) -> int:
        """How many records are not safe yet."""
        return self._appended - self.synced

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all records so far are safe; False if that takes longer than `timeout_s`."""
        with self._changed:
            wanted, self._hurry = self._appended, True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self.synced >= wanted, timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Write what is left, give unused space back and close the file.

        Raises OSError if the disk does not take it in `timeout_s`.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise OSError(errno.EIO, f"not all of it could be written: {self.trouble}", str(self._path))
        os.ftruncate(self._file, self._offset)
        os.close(self._file)

    def _write_all(self) -> None:
        self._insist(self._beginning)
        self._cut_at = 2 * self._offset + PART
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                self._changed.wait_for(lambda: self._hurry or self._closing, GATHER_S)
                group, self._hurry = list(self._waiting), False
                if not group:
                    return
            self._insist(b"".join(frame(content, number) for number, (_, content) in enumerate(group, self._in_part)))
            self._in_part += len(group)
            for record, _ in group:
                self._fold.add(record)
            with self._changed:
                del self._waiting[: len(group)]
                self.synced += len(group)
                self._changed.notify_all()
            if self._offset >= self._cut_at:
                self._cut()

    def _insist(self, content: bytes) -> None:
        while not self._written(content):
            with self._changed:
                self._changed.wait(RETRY_S)

    def _written(self, content: bytes) -> bool:
        """Put a group of records onto the disk; False, and why in `trouble`, if it does not take it."""
        try:
            self._first()
            done = 0
            while done < len(content):
                done += os.pwrite(self._file, content[done:], self._offset + done)
            os.fdatasync(self._file)
            if not self._listed:
                sync_directory(self._directory)
                self._listed = True
        except OSError as error:
            self._failed(error)
            return False
        self._offset += len(content)
        self.full = False
        self._reserve()
        return True

    def _failed(self, error: OSError) -> None:
        self.full, self.trouble = True, error.strerror or str(error)
        if error.errno in (errno.ESTALE, errno.EBADF):
            # The file server has forgotten the open file.
            try:
                file = os.open(self._path, os.O_WRONLY)
            except OSError as again:
                self.trouble = again.strerror or str(again)
                return
            os.dup2(file, self._file)
            os.close(file)

    def _cut(self) -> None:
        """Begin the next part. Where the disk does not let that be done, this one goes on, and it is tried again later."""
        self._cut_at += PART // 8
        path = journal_part(self._directory, self._number + 1)
        try:
            self._settle()
            self._fold.forget(self._saved())
            content = frame(self._encoder.encode(Folded(folds.encode(self._fold))), 0)
            file = _written_file(path, content)
        except OSError:
            return
        # Nothing is written into the old part once the new one is there. If this fails, it only keeps space.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._offset)
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file, self._path, self._listed = file, path, False
        self._offset, self._reserved = len(content), 0
        self._number, self._in_part, self._cut_at = self._number + 1, 1, 2 * len(content) + PART
        self._reserve()
        # The part before stays: what this one begins with may be damaged one day.
        with contextlib.suppress(OSError):
            journal_part(self._directory, self._number - 2).unlink(missing_ok=True)

    def _reserve(self) -> None:
        """Keep space for some more. A file system that has none left, or cannot do that, is found when it is written to."""
        if self._reserved - self._offset >= RESERVE // 2:
            self.trouble = None
            return
        try:
            reserved = _allocate(self._file, self._reserved, self._offset + RESERVE)
        except OSError as error:
            self.trouble = error.strerror
            return
        self.trouble = None
        self._reserved = self._offset + RESERVE if reserved else self._reserved


def _written_file(path: Path, content: bytes) -> int:
    """A file that is there with its content, or not at all. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        # A full disk is to be found before the old part, which has space left, is given up.
        _allocate(file, 0, len(content) + RESERVE)
        done = 0
        while done < len(content):
            done += os.pwrite(file, content[done:], done)
        os.fdatasync(file)
        partial.rename(path)
    except OSError:
        os.close(file)
        partial.unlink(missing_ok=True)
        raise
    return file


def _allocate(file: int, start: int, end: int) -> bool:
    """Keep space between these bytes of a file; False if the file system cannot do that. Raises OSError if it has none."""
    try:
        os.posix_fallocate(file, start, end - start)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True
