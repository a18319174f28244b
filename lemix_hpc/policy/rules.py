"""What the policy depends on: the configuration as people give it, and the same as numbers for compiled code."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from lemix_hpc.policy.drift import DEFAULT_LIMIT
from lemix_hpc.policy.events import AdmissionName
from lemix_hpc.policy.placements import DEFAULT, SCORE_KNOBS, code, placement_named

OrderName = Literal["fcfs", "shortest", "deadline"]
Release = Literal["async", "sync"]

SLACK, PAPER, OPEN = range(3)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What the policy depends on; times in seconds.

    `placement`: a name in `placements.PLACEMENTS`; `knobs`: what is given of its `SCORE_KNOBS`, by name. `t0`: mean unloaded
    response; requests aim at `slo_factor` times that. `training_nodes`: of `separate`, default half. `lanes`: how many groups
    are fed to nodes at the same time, default one per node. `pieces`: in how many a training pass is cut, at whose ends it
    can rest. `max_hold`: how long admission may hold training back. `end`: when the allocation ends, less the drain reserve.
    `batch_requests`: the most that generate in one batch. `oracle`: forecasts know output lengths. `recalibrate`: correct
    stage times by what ran; `overhead`: what a response takes besides its stages' work, for each pass, which is learned from
    then on; `drift_limit`: relative error of given times that raises an alarm; `ttft`, `tpot`: what first tokens and
    decode are paced to [s], 0 where they are not; `window`: in which batch requests are to be completed.
    """

    nodes: int
    placement: str = DEFAULT
    knobs: Mapping[str, float] = field(default_factory=dict)
    release: Release = "async"
    training_nodes: int | None = None
    lanes: int | None = None
    order: OrderName = "deadline"
    serving_first: bool = True
    yield_training: bool = True
    pieces: int = 16
    admission: AdmissionName = "slack"
    max_hold: float = 10.0
    t0: float = 1.0
    slo_factor: float = 5.0
    end: float = math.inf
    batch_requests: int = 8
    oracle: bool = False
    seed: int = 0
    recalibrate: bool = True
    overhead: float = 0.0
    drift_limit: float = DEFAULT_LIMIT
    ttft: float = 0.0
    tpot: float = 0.0
    window: float = 86400.0

    @property
    def split(self) -> Split | None:
        """Which nodes serve and which train, where they are separate."""
        splits = placement_named(self.placement).splits
        return Split.of(self.nodes, self.training_nodes) if splits else None

    @property
    def lanes_in_all(self) -> int:
        """How many groups are fed at the same time: no more than there are nodes that train."""
        trainers = len(self.split.training) if self.split else self.nodes
        return trainers if self.lanes is None else min(self.lanes, trainers)


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts of a separated cluster."""

    serving: range
    training: range

    @staticmethod
    def of(nodes: int, training_nodes: int | None) -> Split:
        """The last `training_nodes` nodes train (default: half). Raises ValueError when a part would be empty."""
        train = nodes // 2 if training_nodes is None else training_nodes
        if not 0 < train < nodes:
            raise ValueError(f"{train} of {nodes} nodes cannot train while at least one serves")
        return Split(range(nodes - train), range(nodes - train, nodes))

    def served_by(self, trainer: int) -> tuple[int, ...]:
        """The serving nodes that get their weights from this training node: trainers take turns, so each has one source."""
        return tuple(n for n in self.serving if self.training[n % len(self.training)] == trainer)


Knobs: Any = namedtuple("Knobs", [knob.name for knob in SCORE_KNOBS])  # type: ignore[misc]
"""What scores are made with, a field for each of `SCORE_KNOBS`."""


class Rules(NamedTuple):
    """A `SchedulerConfig` for compiled code. Nodes below `servers` serve, those from `trainers` on train.

    A request's key is its arrival, plus `patience` times its seconds of work, plus `postpone` if it will miss its limit; a
    batch request's is when it is promoted, by `window`.
    """

    placement: int
    servers: int
    trainers: int
    sync: bool
    serving_first: bool
    pieces: int
    admission: int
    max_hold: float
    knobs: Any
    t0: float
    limit: float
    patience: float
    postpone: float
    end: float
    batch_requests: int
    oracle: bool
    learns: bool
    overhead: float
    ttft: float
    tpot: float
    window: float


PATIENCE = 5.0
"""`shortest`: a request gives way to shorter ones that come up to so many times its own work later."""
POSTPONED = 100.0
"""`deadline`: a request that is expected to miss its limit gives way to those that come up to so many T0 later."""


def admission_code(name: AdmissionName) -> int:
    """One of SLACK, PAPER and OPEN."""
    return get_args(AdmissionName).index(name)


def make_rules(config: SchedulerConfig) -> Rules:
    """The configuration as numbers. Raises ValueError for a placement or split that cannot be."""
    split = config.split
    return Rules(
        placement=code(config.placement),
        servers=len(split.serving) if split else config.nodes,
        trainers=split.training.start if split else 0,
        sync=config.release == "sync",
        serving_first=config.serving_first,
        pieces=config.pieces if config.yield_training else 1,
        admission=admission_code(config.admission),
        max_hold=config.max_hold,
        knobs=Knobs(**placement_named(config.placement).knob_values(config.knobs)),
        t0=config.t0,
        limit=config.slo_factor * config.t0,
        patience=PATIENCE if config.order == "shortest" else 0.0,
        postpone=POSTPONED * config.t0 if config.order == "deadline" else 0.0,
        end=config.end,
        batch_requests=config.batch_requests,
        oracle=config.oracle,
        learns=config.recalibrate,
        overhead=config.overhead if config.recalibrate else 0.0,
        ttft=config.ttft,
        tpot=config.tpot,
        window=config.window,
    )
