"""The profiling job's leader: orders one measurement after the other, and writes each down as it comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lemix_hpc.config.recipe import Profile
from lemix_hpc.measure.measurement_rows import DID_NOT_FIT, OtherRow, PassRow, RowFile, read_rows, spread
from lemix_hpc.profiling.grid import GridPoint
from lemix_hpc.records.files import replace
from lemix_hpc.records.schema import Progress
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.idle_wait import Waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout

POINTS = "points.csv"
CACHED_TOKEN = "cached token"
OTHERS = "others.csv"
COPY_BYTES = 1 << 26
MESSAGE_BYTES = (1, 1 << 12, 1 << 16, 1 << 20, 1 << 24)


class Profiler:
    """Measures what is not in the job's files yet. Only one stage is ever at work; all other ranks wait quietly."""

    def __init__(
        self,
        settings: Profile,
        grid: Sequence[GridPoint],
        layout: Layout,
        directory: Path,
        mailbox: Mailbox,
        waiter: Waiter,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._directory = directory
        self._mailbox = mailbox
        self._waiter = waiter
        self._points = RowFile(directory / POINTS, PassRow)
        self._others = RowFile(directory / OTHERS, OtherRow)
        self._passes = read_rows(directory / POINTS, PassRow)
        self._done = {(row.stage, row.kind, row.nbytes) for row in read_rows(directory / OTHERS, OtherRow)}
        self._grid = [(stage, point) for point in grid for stage in range(layout.stages)]
        self._arrived: deque[Mail] = deque()
        self._started = time.monotonic()

    def run(self) -> None:
        """All of it, in order; then the stages are told that it is over."""
        self._tell("building the engines")
        for _ in range(self._layout.stages):
            self._at_rest()
        self._measure_passes()
        for stage in range(self._layout.stages):
            self._measure_copies(stage)
            if stage + 1 < self._layout.stages:
                self._measure_link(stage)
        for stage in range(self._layout.stages):
            self._mailbox.send(self._layout.worker(0, stage), Inbox.STAGE, m.Stop())
        while not self._mailbox.sent_all:
            self._waiter.idle(in_transit=True)
        self._tell("fitting")

    def _at_rest(self) -> None:
        """Memory that a stage takes before its first pass, from the stage that is the next to be ready."""
        source, measured = self._next()
        stage = self._layout.stage_of(source)
        assert stage is not None, "only stages report"
        if not any(row[:2] == (stage, "at rest") for row in self._done):
            self._others.append(OtherRow(stage, "at rest", measured.peak, "", "", "", 1))
            if measured.cache_bytes is not None:
                self._others.append(OtherRow(stage, CACHED_TOKEN, round(measured.cache_bytes), "", "", "", 1))

    def _measure_passes(self) -> None:
        todo = [(stage, point) for stage, point in self._grid if not self._have(stage, point)]
        before = sum(row.took_s for row in self._passes)
        total, begun = len(self._grid), time.monotonic()
        for index, (stage, point) in enumerate(todo):
            spent = time.monotonic() - begun
            left = spent / index * (len(todo) - index) if index else None
            self._tell(
                f"stage {stage}: {_words(point)}", measured=total - len(todo) + index, to_measure=total, left_s=left
            )
            if before + spent > self._settings.time_budget_s:
                print(f"profile.time_budget_s is spent; {len(todo) - index} points are left out", flush=True)
                return
            if not any(row.stage == stage and row.rules_out(point) for row in self._passes):
                self._measure_pass(stage, point)

    def _have(self, stage: int, point: GridPoint) -> bool:
        return any(row.stage == stage and row.is_of(point) for row in self._passes)

    def _measure_pass(self, stage: int, point: GridPoint) -> None:
        start = time.monotonic()
        measured = self._ask(stage, m.MeasurePass(point.kind, point.batch, point.length, point.context))
        took = round(time.monotonic() - start, 3)
        times = spread(measured.seconds[point.kind]) if measured.fits else (DID_NOT_FIT, "", "")
        repeats = len(measured.seconds.get(point.kind, ()))
        shape = (point.kind, point.batch, point.length, point.context)
        row = PassRow(stage, *shape, *times, repeats, measured.peak, took)
        self._passes.append(row)
        self._points.append(row)
        if "step" in measured.seconds:
            self._note(stage, "step", 0, measured.seconds["step"])

    def _measure_copies(self, stage: int) -> None:
        if not any(row[0] == stage and row[2] == COPY_BYTES for row in self._done):
            for direction, seconds in self._ask(stage, m.MeasureCopy(COPY_BYTES)).seconds.items():
                self._note(stage, direction, COPY_BYTES, seconds)

    def _measure_link(self, stage: int) -> None:
        for nbytes in MESSAGE_BYTES:
            if (stage, "message", nbytes) not in self._done:
                self._note(stage, "message", nbytes, self._ask(stage, m.MeasureLink(nbytes)).seconds["message"])

    def _note(self, stage: int, kind: str, nbytes: int, seconds: Sequence[float]) -> None:
        if (stage, kind, nbytes) not in self._done:
            self._done.add((stage, kind, nbytes))
            self._others.append(OtherRow(stage, kind, nbytes, *spread(seconds), len(seconds)))

    def _ask(self, stage: int, order: m.AnyMessage) -> m.Measured:
        self._mailbox.send(self._layout.worker(0, stage), Inbox.STAGE, order)
        return self._next()[1]

    def _next(self) -> tuple[int, m.Measured]:
        """The next answer, and the rank that it is from."""
        self._waiter.reset()
        while not self._arrived:
            self._arrived += self._mailbox.poll()
            if not self._arrived:
                self._waiter.idle(in_transit=self._mailbox.in_transit)
        mail = self._arrived.popleft()
        assert isinstance(mail.message, m.Measured), "stages only answer"
        return mail.source, mail.message

    def _tell(self, message: str, *, measured: int = 0, to_measure: int = 0, left_s: float | None = None) -> None:
        elapsed = time.monotonic() - self._started
        progress = Progress(
            "running", elapsed_s=elapsed, message=message, measured=measured, to_measure=to_measure, left_s=left_s
        )
        replace(self._directory / "progress.json", msgspec.json.encode(progress))


def _words(point: GridPoint) -> str:
    sequences = f"{point.kind} of {point.batch} x {point.length} tokens"
    return sequences + (f" on {point.context} cached" if point.context else "")
