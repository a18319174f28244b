"""The scheduler: events in, decisions out. Deterministic, and on the state and functions that the simulator's loop drives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lemix_hpc.policy import transitions
from lemix_hpc.policy.decode_load import note_passes
from lemix_hpc.policy.drift import Drift, Straggler
from lemix_hpc.policy.estimates import note_output
from lemix_hpc.policy.event_records import EVENT, record_of
from lemix_hpc.policy.events import (
    AnswerPassed,
    BatchMeasured,
    Decision,
    Event,
    GroupOffered,
    PassMeasured,
    Place,
    Refuse,
    RequestArrived,
    RulesChanged,
    Tick,
)
from lemix_hpc.policy.latency import Affine, LatencyModel, Shape
from lemix_hpc.policy.latency_tables import make_times, with_own_kind
from lemix_hpc.policy.memory import Learned, Memory
from lemix_hpc.policy.recalibration import Measured, Recalibrated
from lemix_hpc.policy.rules import Rules, SchedulerConfig, admission_code, make_rules
from lemix_hpc.policy.state import NONE, WINDOW, State, make_state
from lemix_hpc.policy.stragglers import Peers
from lemix_hpc.policy.task_slots import full, grown

FIRST_GUESS = 128.0
"""Output tokens that are expected of a request before any has finished."""


class Scheduler:
    """Places requests when they arrive and training micro-batches when the release rule and admission let them go.

    `latencies`: one model for every kind of node, or one for all, with the same number of stages; `kinds`: the kind of every
    node, by its place among those. Each task is forecast with the stage times that are known when it comes, and keeps them.
    Raises ValueError for a configuration that cannot be: an unknown placement, or a split with an empty part.
    """

    def __init__(
        self, config: SchedulerConfig, latencies: LatencyModel | Sequence[LatencyModel], kinds: Sequence[int] = ()
    ) -> None:
        models = [latencies] if isinstance(latencies, LatencyModel) else list(latencies)
        self._recalibrated = [Recalibrated(model, limit=config.drift_limit) for model in models]
        self._kinds = list(kinds) or [0] * config.nodes
        self._peers = [
            Peers((node for node, of in enumerate(self._kinds) if of == kind), model.stages)
            for kind, model in enumerate(models)
        ]
        self._apart: list[int] = []
        self._learns = config.recalibrate
        self.rules: Rules = make_rules(config)
        self.state: State = make_state(
            make_times(models, np.array(self._kinds)),
            lanes=config.lanes_in_all,
            seed=config.seed,
            expected_output=FIRST_GUESS,
        )
        self.state.counters[0]["overhead"] = self.rules.overhead
        note_passes(self.state)
        self._record = np.zeros(1, EVENT)
        self._times = np.zeros(models[0].stages, [("start", "f8"), ("end", "f8")])

    @property
    def drifts(self) -> list[Drift]:
        """Every alarm of stage times that left the given ones', by kind of node, stage and kind of pass."""
        return [drift for recalibrated in self._recalibrated[: len(self._peers)] for drift in recalibrated.drifts]

    @property
    def stragglers(self) -> list[Straggler]:
        """Every stage that was slower than the same one of other nodes for long, by kind of node, node and stage."""
        return [straggler for peers in self._peers for straggler in peers.stragglers]

    @property
    def learned(self) -> tuple[Learned, ...]:
        """What was learned of stage times so far, on nodes of the first kind."""
        return self._recalibrated[0].learned

    @property
    def memory(self) -> Memory:
        """All that forecasts go by and that was learned."""
        counters, recent = self.state.counters[0], self.state.window[0]
        seen = int(counters["outputs"])
        outputs = recent[:seen] if seen < WINDOW else np.roll(recent, -(seen % WINDOW))
        return Memory(
            tuple(recalibrated.memory for recalibrated in self._recalibrated),
            float(counters["overhead"]),
            tuple(outputs.tolist()),
            tuple(self._apart),
        )

    def recall(self, memory: Memory) -> None:
        """Before the first event: go on from what another scheduler has learned. What it knows of stage times must be of the
        same ones, or be left out."""
        if memory.lessons:
            for node in memory.apart:
                self._set_apart(node)
        for kind, (recalibrated, lessons) in enumerate(zip(self._recalibrated, memory.lessons, strict=False)):
            recalibrated.recall(lessons, self.state.times.linear[kind] if self._learns else None)
        if memory.overhead > 0.0:
            self.state.counters[0]["overhead"] = memory.overhead
        for output in memory.outputs:
            note_output(self.state, output)
        note_passes(self.state)

    @property
    def next_tick(self) -> float:
        """When the scheduler wants a `Tick` [s], inf if not at all."""
        return float(transitions.next_tick(self.state))

    def handle(self, event: Event) -> list[Decision]:
        """Take in one event; events come in the order of their times [s]. What is decided by it, in that order.

        Raises TypeError for what is no event, ValueError for a group whose tasks are not numbered one after the other.
        """
        if isinstance(event, GroupOffered):
            self._group_offered(event)
        elif isinstance(event, PassMeasured | BatchMeasured):
            self._measured(event)
        elif isinstance(event, AnswerPassed):
            self._times["start"], self._times["end"] = event.starts, event.ends
            transitions.answer_passed(self.state, self.rules, event.time, event.node, event.task, self._times)
        elif isinstance(event, RulesChanged):
            self.rules = self.rules._replace(admission=admission_code(event.admission), max_hold=event.max_hold)
            self.state.counters[0]["tick_at"] = event.time  # by the old rules that was later
            self._tell(Tick(event.time))
        else:
            if isinstance(event, RequestArrived):
                self._make_room(1)
            self._tell(event)
        counters = self.state.counters[0]
        count = counters["decided"]
        if not count:
            return []
        counters["decided"] = 0
        return [self._decision(task, slot) for task, slot in self.state.decided[:count].tolist()]

    def _tell(self, event: Event) -> None:
        self._record[0] = record_of(event)
        transitions.tell(self.state, self.rules, self._record[0])

    def _decision(self, task: int, place: int) -> Decision:
        if place == NONE:
            return Refuse(task)
        slot = self.state.slots[place]
        eligible = slot["eligible"] if slot["training"] else slot["release"]
        where = task, int(slot["node"]), float(eligible), float(slot["predicted"]), float(slot["key"])
        if slot["training"] or slot["each"] == 0.0:
            return Place(*where)
        return Place(*where, float(slot["first"]), float(slot["each"]))

    def _make_room(self, more: int) -> None:
        while full(self.state, more):
            self.state = grown(self.state)

    def _group_offered(self, event: GroupOffered) -> None:
        first, count = event.tasks[0], len(event.tasks)
        if event.tasks != tuple(range(first, first + count)):
            raise ValueError(f"tasks of a group are numbered one after the other, not {event.tasks}")
        self._make_room(count)
        lengths = np.array(event.lengths, dtype=np.int64)
        node = NONE if event.node is None else event.node
        transitions.group_offered(self.state, self.rules, event.time, first, lengths, event.rows, node)

    def _measured(self, event: PassMeasured | BatchMeasured) -> None:
        kind, shared = int(self.state.times.kind_of[event.node]), self._kinds[event.node]
        linear = self.state.times.linear[kind] if self._learns else None
        took = Measured(event)
        if kind == shared:
            expected = self._recalibrated[kind].measured(took, linear)
        else:
            expected = self._recalibrated[shared].predicted(took)
            self._recalibrated[kind].measured(took, linear)
        differs = self._peers[shared].took(event.time, event.node, took.first, took.seconds, expected)
        if differs and self._learns and kind == shared and np.count_nonzero(self.state.times.kind_of == kind) > 1:
            self._set_apart(event.node)

    def _set_apart(self, node: int) -> None:
        """From now on learn this node's stage times from its own passes alone."""
        self._recalibrated.append(self._recalibrated[self._kinds[node]].copy())
        self._apart.append(node)
        self.state = self.state._replace(times=with_own_kind(self.state.times, node))


def compile_policy() -> None:
    """Compile everything that a scheduler calls, or take it from the cache: the first time this takes half a minute."""
    moment = LatencyModel((Affine(1.0, 0.0, 0.0),), (Affine(1.0, 0.0, 0.0),))
    scheduler = Scheduler(SchedulerConfig(nodes=1), moment)
    scheduler.handle(RequestArrived(0.0, 0, prompt=1, output=2))
    scheduler.handle(GroupOffered(0.0, 0, (1,), 1, (1,)))
    scheduler.handle(AnswerPassed(0.0, 0, 0, (0.0,), (1.0,)))
    scheduler.handle(BatchMeasured(0.0, 0, Shape.of((1,)), (1.0,)))
