"""The live view where there is no screen: a line when something changes, and the figures every half minute."""

from __future__ import annotations

import math

from lemix_hpc.cli.live.figures import figures
from lemix_hpc.cli.live.picture import Picture
from lemix_hpc.cli.live.words import alarms, duration, endpoint, facts_of_job, phase, time_left

FIGURES_EVERY_S = 30.0


class Lines:
    """Knows what it has said, and says nothing twice."""

    def __init__(self) -> None:
        self._phase_key: str | None = None
        self._phase_words = ""
        self._job: list[str] = []
        self._ends = 0
        self._endpoint: str | None = None
        self._alarms: dict[tuple[object, ...], str] = {}
        self._figures = ""
        self._figures_at = -math.inf

    def news(self, picture: Picture) -> list[str]:
        """What a picture tells that is new."""
        lines = self._attempts(picture)
        if picture.over:
            return [*lines, *self._changed_alarms(picture), *self._running(picture), *self._phase(picture)]
        lines += self._phase(picture)
        if (where := endpoint(picture)) is not None and where != self._endpoint:
            self._endpoint = where
            lines.append(where)
        return [*lines, *self._changed_alarms(picture), *self._running(picture)]

    def _attempts(self, picture: Picture) -> list[str]:
        """How attempts ended that others follow."""
        told = [
            f"attempt {number} ended: {end.reason}: {end.message.partition(chr(10))[0]}"
            for number, end in picture.before.items()
            if number >= self._ends
        ]
        self._ends = max(self._ends, picture.attempt)
        return told

    def _phase(self, picture: Picture) -> list[str]:
        now = phase(picture)
        due = picture.now - self._figures_at >= FIGURES_EVERY_S
        if now.key == self._phase_key and (now.words == self._phase_words or not due):
            return []
        began = now.key != self._phase_key
        self._phase_key, self._phase_words, self._figures_at = now.key, now.words, picture.now
        since = picture.now - now.since if now.since is not None else 0.0
        words = f"{now.words}, for {duration(since)}" if since >= 1.0 else now.words
        job = [fact for fact in facts_of_job(picture) if began and fact not in self._job]
        self._job += job
        return [", ".join([words, *job]), *([now.hint] if began and now.hint is not None else [])]

    def _changed_alarms(self, picture: Picture) -> list[str]:
        if picture.current is None:
            return []  # nothing is known of them now
        now = alarms(picture)
        told = [f"alarm: {text}" for key, text in now.items() if key not in self._alarms]
        # At its end a run has no news any more, and its report has them all.
        over = [] if picture.over else [f"over: {text}" for key, text in self._alarms.items() if key not in now]
        self._alarms = now
        return told + over

    def _running(self, picture: Picture) -> list[str]:
        progress = picture.current
        if progress is None or progress.state == "starting":
            return []
        if not picture.over and picture.now - self._figures_at < FIGURES_EVERY_S:
            return []
        told = "; ".join(
            f"{name}: {', '.join(facts)}" for name, facts in figures(progress, picture.memory, over=picture.over)
        )
        self._figures_at = picture.now
        if not told or told == self._figures:
            return []
        self._figures = told
        left = None if picture.over or picture.job is None else time_left(picture.job, picture.now)
        limit = "" if left is None else f", {duration(left)} left"
        return [f"{duration(progress.elapsed_s)}{limit}: {told}"]
