"""Rows of a trace in order of time, however many there are: those that are read lie sorted in a temporary file."""

from __future__ import annotations

import heapq
import os
import pickle
import struct
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from lemix_hpc.workload.traces import TraceRow

SORTED = 1 << 15
"""Rows that are sorted in memory at a time."""
BLOCK = 1 << 8
"""Rows that are read back at a time, of each stretch that is in order."""
_LENGTH = struct.Struct("<Q")
_TIME = attrgetter("time")


class _Ordered(NamedTuple):
    """A stretch of the file whose rows are in order: its bytes, and the time of its last row."""

    start: int
    end: int
    last: float


class OrderedRows:
    """Gives the rows in order of time, those of one time in the order in which they came, as often as it is asked.

    They are read once, here: what becomes of their file later changes nothing. The temporary file has no name, and is gone
    with this object. Raises OSError if it cannot be written.
    """

    def __init__(self, rows: Iterable[TraceRow]) -> None:
        self._file = tempfile.TemporaryFile(prefix="lemix-rows-")  # noqa: SIM115  lives as long as this object
        self._stretches: list[_Ordered] = []
        rows = iter(rows)
        while part := sorted(islice(rows, SORTED), key=_TIME):
            self._keep(part)
        self._file.flush()

    def __iter__(self) -> Iterator[TraceRow]:
        return heapq.merge(*map(self._read, self._stretches), key=_TIME)

    def _keep(self, rows: list[TraceRow]) -> None:
        start = self._file.tell()
        for first in range(0, len(rows), BLOCK):
            content = pickle.dumps(rows[first : first + BLOCK], pickle.HIGHEST_PROTOCOL)
            self._file.write(_LENGTH.pack(len(content)) + content)
        end = self._file.tell()
        if self._stretches and self._stretches[-1].last <= rows[0].time:
            start = self._stretches.pop().start
        self._stretches.append(_Ordered(start, end, rows[-1].time))

    def _read(self, stretch: _Ordered) -> Iterator[TraceRow]:
        at = stretch.start
        while at < stretch.end:
            (length,) = _LENGTH.unpack(os.pread(self._file.fileno(), _LENGTH.size, at))
            at += _LENGTH.size
            yield from pickle.loads(os.pread(self._file.fileno(), length, at))
            at += length
