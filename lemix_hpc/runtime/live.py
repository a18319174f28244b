"""What a run shows of itself while it lasts: its progress file, replaced every so often."""

from __future__ import annotations

from lemix_hpc.policy.drift import Drift
from lemix_hpc.runtime.layout import Layout
from lemix_hpc.runtime.recorder import LiveFigures, Recorder
from lemix_hpc.runtime.records import Progress


class LiveView:
    """Counts what happens. `interval`: seconds between two pictures; `training_total`: None without an end."""

    def __init__(self, recorder: Recorder, layout: Layout, interval: float, training_total: int | None) -> None:
        self._recorder = recorder
        self._interval = interval
        self._training_total = training_total
        self._shown = -interval
        self.figures = LiveFigures(layout.nodes, layout.stages)
        self.served = 0

    def due(self, now: float) -> bool:
        return now - self._shown >= self._interval

    def show(
        self, now: float, *, received: int, requests: int, trained: int, steps: int, drifts: list[Drift], last: bool
    ) -> None:
        """Replace the picture. `received` of `requests` have come; `drifts`: alarms so far."""
        self._shown = now
        self._recorder.progress(
            Progress(
                state="finished" if last else "running",
                elapsed_s=now,
                received=received,
                requests=requests,
                served=self.served,
                trained=trained,
                training_total=self._training_total,
                steps=steps,
                loss=self.figures.loss,
                response_ms_p50=self.figures.response_ms_p50,
                stage_busy=self.figures.look(now),
                drift=[drift for drift in drifts if drift.until_s is None],
            )
        )
