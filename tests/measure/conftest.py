"""A profiling job in one process: the profiler's messages go straight to the passes of emulated stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.recipe import Profile
from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.meter import HostMeter
from lemix_hpc.engines.protocol import MicroBatch, Payload, SequenceResult, ServeBatch, StageEngine, Work
from lemix_hpc.measure.passes import StagePasses
from lemix_hpc.measure.profiler import Profiler
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.profiling.grid import GridPoint, design
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mail
from lemix_hpc.runtime.transport.rank_layout import Layout

STAGES = 2
LATENCY = LatencyModel((Affine(1e-5, 1e-8, 0.0),) * STAGES, (Affine(2e-5, 2e-8, 0.0),) * STAGES)
SMALL = Profile(batches=[1, 2, 4], lengths=[8, 16, 32], contexts=[8, 16], repeats=2, warm_up=1)


class SmallStage(EmulatedStage):
    """A device that holds so many tokens."""

    def __init__(self, stage: int, room: int) -> None:
        super().__init__(LATENCY, stage, 1)
        self._room = room

    def serve(self, batch: ServeBatch, hidden: Payload | None) -> Work[Payload | list[SequenceResult] | None]:
        self._check(sum(sequence.length + sequence.cached for sequence in batch.sequences))
        return super().serve(batch, hidden)

    def forward(self, micro_batch: MicroBatch, hidden: Payload | None) -> Work[Payload | float]:
        self._check(micro_batch.rows * micro_batch.length)
        return super().forward(micro_batch, hidden)

    def _check(self, tokens: int) -> None:
        if tokens > self._room:
            raise MemoryError(f"{tokens} tokens")


def stage_passes(engine: StageEngine, stage: int = 0, **changes: Any) -> StagePasses:
    settings: dict[str, Any] = {"vocabulary": 2, "generate": False, "warm_up": 1, "repeats": 2} | changes
    return StagePasses(engine, HostMeter(), first=stage == 0, last=stage == STAGES - 1, **settings)


class Loopback:
    """Stands for the mailbox: every order is obeyed at once. `asked` are the passes that were measured."""

    def __init__(self, room: int) -> None:
        self.asked: list[tuple[int, m.MeasurePass]] = []
        self.dies_after: int | None = None
        self._stages = [stage_passes(SmallStage(stage, room), stage) for stage in range(STAGES)]
        self._arrived = deque(Mail(rank, m.Measured({}, 1000), None) for rank in (2, 1))
        self.in_transit, self.sent_all = False, True

    def send(self, rank: int, _inbox: Inbox, message: m.AnyMessage) -> None:
        match message:
            case m.MeasurePass(kind, batch, length, context):
                if self.dies_after is not None and len(self.asked) == self.dies_after:
                    raise KeyboardInterrupt
                self.asked.append((rank - 1, message))
                answer = self._stages[rank - 1].measure(GridPoint(kind, batch, length, context))  # type: ignore[arg-type]
            case m.MeasureCopy():
                answer = m.Measured({"host to host": [0.01, 0.02, 0.03]})
            case m.MeasureLink(nbytes):
                answer = m.Measured({"message": [1e-4 + nbytes * 1e-9] * 3})
            case m.Stop():
                return
        self._arrived.append(Mail(rank, answer, None))

    def poll(self) -> list[Mail]:
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived


class NoWaiting:
    def reset(self) -> None:
        pass

    def idle(self, **_: object) -> None:
        raise AssertionError("everything is answered at once")


RunJob = Callable[..., Loopback]


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """Runs a job in tmp_path on devices with room for so many tokens; gives its loopback."""

    def run(*, room: int = 10**9, dies_after: int | None = None, profile: Profile = SMALL) -> Loopback:
        loopback = Loopback(room)
        loopback.dies_after = dies_after
        grid = design(profile, longest=None, max_tokens=100, training=True)
        profiler = Profiler(profile, grid, Layout(1, STAGES), tmp_path, loopback, NoWaiting())  # type: ignore[arg-type]
        if dies_after is None:
            profiler.run()
        else:
            with pytest.raises(KeyboardInterrupt):
                profiler.run()
        return loopback

    return run
