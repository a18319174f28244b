"""Batch requests on a simulated node: a pass takes 1 s on each of two stages, a training backward 2 s, in four pieces."""

import dataclasses
import math
from typing import Any

import pytest

from lemix_hpc.policy.execution_rules import SERVE
from lemix_hpc.policy.pacing import Pace
from lemix_hpc.simulator.cluster_state import make_requests
from lemix_hpc.simulator.dtypes import FINISHED
from tests.simulator.cluster import SimulationResult, run

PACE = Pace(ttft=40.0, tpot=12.0)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A run of interactive and batch requests, which are tasks in the order of their arrivals."""

    result: SimulationResult

    @property
    def patient(self) -> list[bool]:
        found: list[bool] = self.result.cluster.requests["patient"].tolist()
        return found

    def begin(self, task: int) -> float:
        """When its first pass began."""
        return self.result.of(task)[0][2]

    @property
    def late(self) -> float:
        """By how much any token of an interactive request came too late [s]; it is negative if none did."""
        worst = -math.inf
        for task, patient in enumerate(self.patient):
            if not patient:
                arrival = float(self.result.cluster.requests["arrival"][task])
                ends = [end for stage, _, _, end in self.result.of(task) if stage == 1]
                deadlines = [arrival + PACE.ttft, *(ends[0] + k * PACE.tpot for k in range(1, len(ends)))]
                worst = max(worst, *(end - deadline for end, deadline in zip(ends, deadlines, strict=True)))
        return worst

    def seconds(self, until: float) -> tuple[float, float]:
        """Stage seconds up to then of passes, and of training."""
        spans = self.result.records
        early = spans[spans["end"] <= until]
        passes = early[early["kind"] == SERVE]
        times = set(zip(*(passes[name].tolist() for name in ("stage", "start", "end")), strict=True))
        trained = early[early["kind"] != SERVE]
        return sum(end - start for _, start, end in times), float((trained["end"] - trained["start"]).sum())


def mixed(
    interactive: list[tuple[float, int, int]],
    batch: list[tuple[float, int, int]],
    groups: int = 200,
    **changes: Any,
) -> Mixed:
    """Requests by arrival, prompt and output, beside so many groups of one micro-batch."""
    tasks = sorted([*((*of, False) for of in interactive), *((*of, True) for of in batch)])
    requests = make_requests(*(list(column) for column in zip(*tasks, strict=True)))
    options: dict[str, Any] = {"paced": True, "pace": PACE, "max_requests": 8, "batch_share": 0.5} | changes
    return Mixed(run(requests, [[4]] * groups if groups else None, **options))


INTERACTIVE = [(0.0, 4, 9), (5.0, 4, 9), (30.0, 4, 9)]


def test_batch_requests_cost_no_interactive_one_its_deadline() -> None:
    assert mixed(INTERACTIVE, []).late <= 0.0
    beside = mixed(INTERACTIVE, [(40.0, 5, 20)] * 6, batch_share=1.0)
    assert beside.late <= 0.0
    assert (beside.result.cluster.requests["outcome"] == FINISHED).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_batch_requests_and_training_share_the_time(share: float) -> None:
    load = mixed([], [(0.0, 4, 400)] * 6, 600, batch_share=share, max_requests=2)
    served, trained = load.seconds(until=600.0)
    assert served / (served + trained) == pytest.approx(share, abs=0.05)


def test_without_a_share_they_run_when_nothing_trains() -> None:
    load = mixed([], [(0.0, 4, 20)] * 2, 10, batch_share=0.0)
    forwards = [end for task, _, stage, kind, _, end in load.result.log if task >= 2 and stage == 0 and kind == "F"]
    assert min(load.begin(0), load.begin(1)) > max(forwards), "while the first stage has more of it, they wait"


def test_without_a_pace_they_come_behind_interactive_ones_that_come_later() -> None:
    load = mixed([(1.0, 4, 0), (1.5, 4, 0)], [(0.5, 5, 0), (0.7, 5, 0), (0.9, 5, 0)], 0, paced=False, max_requests=1)
    assert load.patient == [True, True, True, False, False]
    assert sorted(range(5), key=load.begin) == [0, 3, 4, 1, 2], "even before one whose batch waits at the stage"


def test_a_window_that_is_nearly_over_promotes() -> None:
    load = mixed([], [(0.0, 5, 3)], batch_share=0.0, config={"window": 100.0})
    assert 90.0 <= load.begin(0) <= 92.0
