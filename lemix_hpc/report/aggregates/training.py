"""What the micro-batches of a run come to."""

from __future__ import annotations

from lemix_hpc.records.schema import TrainedTask
from lemix_hpc.report.aggregates.cells import TimeCells
from lemix_hpc.report.aggregates.requests import MOST_CELLS, ratio
from lemix_hpc.report.aggregates.schema import Training


class MicroBatches:
    """Takes in all micro-batches of a run, one by one."""

    def __init__(self) -> None:
        self._over_time: TimeCells[str] = TimeCells(MOST_CELLS)
        self._by_step: TimeCells[str] = TimeCells(MOST_CELLS, finest=1.0)
        self._came = False

    def add(self, task: TrainedTask) -> None:
        """The next one."""
        if task.outcome != "finished" or task.finished is None:
            return
        self._came = True
        self._over_time.count("tokens", task.finished, task.tokens)
        if task.loss is None:
            return
        cells = [(self._over_time, task.finished)]
        cells += [(self._by_step, float(task.step))] if task.step is not None else []
        for each, at in cells:
            each.count("loss", at, task.loss)
            each.count("losses", at)

    def training(self) -> Training | None:
        """None if nothing was trained."""
        if not self._came:
            return None
        time, steps = self._over_time, self._by_step
        return Training(
            edges=time.edges,
            loss=ratio(time.sums("loss"), time.sums("losses")),
            tokens_per_s=time.sums("tokens") / time.width,
            steps=steps.edges,
            step_loss=ratio(steps.sums("loss"), steps.sums("losses")),
        )
