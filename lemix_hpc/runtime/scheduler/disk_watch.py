"""A run whose disk takes nothing for a while: it says so, serves on, and promises nothing that it cannot keep."""

from __future__ import annotations

from collections.abc import Callable

from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.schema import DiskFacts
from lemix_hpc.records.writer import Recorder


class DiskWatch:
    """Over the files of an attempt. `others`: why the disk does not take files of others, None while it does.

    `hold` is told why no more can be promised, and None once that is over; `now` gives seconds.
    """

    def __init__(
        self,
        recorder: Recorder,
        journal: Journal,
        others: Callable[[], str | None],
        hold: Callable[[str | None], None],
        now: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._journal = journal
        self._others = others
        self._hold = hold
        self._now = now
        self._since: float | None = None
        self._seconds = 0.0
        self._last: str | None = None
        self._held = False

    @property
    def trouble(self) -> str | None:
        """What to tell of it now, None while all is well."""
        if self._since is None:
            return None
        waiting = self._journal.waiting
        return f"{self._last}; {waiting} records of the journal wait" if waiting else self._last

    def look(self) -> None:
        """Each turn of the loop."""
        trouble = self._journal.trouble or self._recorder.trouble or self._others()
        if (trouble is None) != (self._since is None):
            self._changed(trouble)
        self._last = trouble or self._last
        if self._journal.full != self._held:
            self._held = self._journal.full
            self._hold(self._last if self._held else None)

    def facts(self) -> DiskFacts | None:
        """What there is to tell in the report; None if nothing happened."""
        if self._last is None:
            return None
        open_s = 0.0 if self._since is None else self._now() - self._since
        return DiskFacts(self._last, self._seconds + open_s, self._recorder.left_out)

    def _changed(self, trouble: str | None) -> None:
        if trouble is not None:
            self._since = self._now()
            print(
                f"the disk does not take everything: {trouble}; what is promised goes into reserved space", flush=True
            )
            return
        assert self._since is not None, "it was not well"
        seconds, self._since = self._now() - self._since, None
        self._seconds += seconds
        print(f"the disk takes everything again, after {seconds:.1f} s", flush=True)
