"""The memory of a node's stages: who takes it, who waits for it, and who has to make room.

The twin of `lemix_hpc.simulator.memory`. Memory is taken on all stages at once, before the first stage's forward: a started
task never waits for it, since others behind a weight update would wait for that task. What waits is looked at again whenever
the stages or the scheduler tell the leader anything, and when it has waited long enough for others to make room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from lemix_hpc.engines.protocol import StageTakes
from lemix_hpc.policy.memory_rules import (
    OFFLOAD,
    PREEMPT,
    RUN,
    decide,
    moves_for_training,
    patience_of_training,
    waits_for_training,
    won_by_offloading,
    yields,
)
from lemix_hpc.records.schema import NodeMemory, StageMemoryPeaks
from lemix_hpc.run_setup.memory_limits import StageRoom
from lemix_hpc.runtime.leader.request_queues import NodeRequest
from lemix_hpc.runtime.transport import messages as m

TELL_EVERY_S = 2.0
"""How often the scheduler is told of the memory in use, for those who watch."""
SAFE_PART = 0.95
"""Of what a stage held, by the accounts, when its device had no more."""


@dataclass(frozen=True, slots=True)
class NodeMemoryLimits:
    """The memory of a node's stages as far as it is `known` before their engines are built, and what `room_of` makes of what a
    stage says then; how long work waits before others make room [s], and whether activations move to the host for that; how
    long requests may keep training from it [s], whether backwards wait for all forwards of their group, and how many
    micro-batches in flight keep the stages busy."""

    stages: int
    known: Sequence[StageRoom]
    room_of: Callable[[int, StageTakes], StageRoom]
    max_wait: float
    offloads: bool
    max_hold: float
    gpipe: bool
    useful_in_flight: int


@dataclass(slots=True)
class _Claim:
    """Waits for memory, since when if one goes on, and when it was looked after last; `bit` marks stages that lack it."""

    bit: int
    since: float = math.inf
    looked: float = -math.inf
    waits: int = 0
    waited: float = 0.0
    longest: float = 0.0


@dataclass(slots=True)
class _Stage:
    """Bytes on a stage. `movable`, `leaving`: activations of micro-batches between forward and backward, in the order of their
    forwards, and those on their way to the host, which are part of `activations`; `away`: those that have left, until their
    backward is over; `back`: those of them that have come back."""

    room: StageRoom
    cache: int = 0
    activations: int = 0
    movable: dict[int, int] = field(default_factory=dict)
    leaving: dict[int, int] = field(default_factory=dict)
    away: dict[int, int] = field(default_factory=dict)
    back: int = 0
    lacks: int = 0
    peak: int = 0
    peak_activations: int = 0
    peak_cache: int = 0
    waits: int = 0
    offloads: int = 0
    offloaded: int = 0
    preemptions: int = 0

    @property
    def free(self) -> int:
        return self.room.limit - self.cache - self.activations - self.kept

    @property
    def kept(self) -> int:
        """For what is away: it comes back one micro-batch at a time."""
        return max(self.away.values(), default=0)

    def won_by(self, activations: Collection[int]) -> int:
        """What others can take once these have left."""
        return won_by_offloading(sum(activations), max(activations, default=0), self.kept)

    def note_peak(self) -> None:
        activations = self.activations + self.back
        self.peak_cache = max(self.peak_cache, self.cache)
        self.peak_activations = max(self.peak_activations, activations)
        self.peak = max(self.peak, self.cache + activations)

    @property
    def peaks(self) -> StageMemoryPeaks:
        counts = (getattr(self, name) for name in StageMemoryPeaks.__struct_fields__[2:])
        return StageMemoryPeaks(self.room.capacity, self.room.resting, *counts)


class MemoryGate:
    """The accounts of all stages of a node. Without a limit there are none, and everything fits.

    `send` takes messages for a stage; `victim` gives the request that would lose its cache first, other than the one that asks;
    `preempt` takes it away, and gives the tokens that will be computed again.
    """

    def __init__(
        self,
        limits: NodeMemoryLimits,
        now: Callable[[], float],
        send: Callable[[int, m.AnyMessage], None],
        victim: Callable[[NodeRequest | None], NodeRequest | None] = lambda spared: None,  # noqa: ARG005
        preempt: Callable[[NodeRequest], int] = lambda request: 0,  # noqa: ARG005
    ) -> None:
        self._limits = limits
        self._ready: dict[int, StageRoom] = {}
        self._stages = [_Stage(room) for room in limits.known]
        self._now = now
        self._send = send
        self._victim = victim
        self._preempt = preempt
        self._serving = _Claim(1)
        self._training = _Claim(2)
        self._told = -math.inf
        self._asked: m.AskMemory | None = None
        # Of micro-batches between their forward and their backwards on all stages.
        self._tokens: dict[int, int] = {}
        self._held_by: dict[int, int] = {}
        self._preemptions = 0
        self._recomputed = 0
        self._starved: set[int] = set()
        self._looked = -math.inf

    @property
    def until(self) -> float:
        """When to look again, should nothing come before: the patience of a claim ends [s]; inf if there is none."""
        claims = [(claim.since + self._limits.max_wait, claim.looked) for claim in (self._serving, self._training)]
        claims.append((self._training.since + self._patience, self._training.looked))
        return min((end for end, looked in claims if end > max(looked, self._looked)), default=math.inf)

    @property
    def due(self) -> bool:
        """Whether to look again although nothing has come."""
        return self.until <= self._now()

    def cache_fits(self, tokens: int) -> bool:
        """Whether there is room for so many more tokens of requests on all stages, without asking anybody."""
        return all(tokens * stage.room.cache_bytes <= stage.free for stage in self._stages)

    def claim_cache(self, request: NodeRequest, tokens: int) -> bool:
        """Room for a request's next pass: whether it is there. If not, others make room once it has waited long enough."""
        now, serving = self._now(), self._serving
        if waits_for_training(self._training.since, serving.since, self._patience, now):
            serving.since, serving.looked = min(serving.since, now), now
            return False
        return self._claim(self._serving, [tokens * stage.room.cache_bytes for stage in self._stages], request)

    def take_cache(self, request: NodeRequest, tokens: int) -> None:
        """A request goes into a batch, for which there is room."""
        request.held += tokens
        for stage in self._stages:
            stage.cache += tokens * stage.room.cache_bytes
            stage.note_peak()

    def release_cache(self, request: NodeRequest) -> None:
        """A request needs its cache no more, or has lost it."""
        self.take_cache(request, -request.held)

    def forget_claim(self) -> None:
        """No batch is due that lacks memory: until one is, training may have what is free."""
        self._serving.since = math.inf

    def look(self) -> bool:
        """Let the forward run that waits for memory, if that is there now: whether it does. Serving has claimed its memory
        before."""
        self._looked = now = self._now()
        asked, training = self._asked, self._training
        if asked is None:
            return False
        if yields(training.since, self._serving.since, len(self._held_by), self._limits.gpipe):
            training.since, training.looked = min(training.since, now), now
            return False
        needs = [asked.tokens * stage.room.activation_bytes for stage in self._stages]
        if not self._claim(self._training, needs, None):
            return False
        self._asked = None
        self._tokens[asked.micro_batch] = asked.tokens
        self._held_by[asked.micro_batch] = len(self._stages)
        for stage, need in zip(self._stages, needs, strict=True):
            stage.activations += need
            stage.note_peak()
        self._send(0, m.GrantMemory(asked.micro_batch))
        return True

    @property
    def _patience(self) -> float:
        """How long a micro-batch waits before it takes caches away [s]."""
        limits = self._limits
        return patience_of_training(limits.max_wait, limits.max_hold, len(self._held_by), limits.gpipe)

    @property
    def limited(self) -> bool:
        return bool(self._stages)

    def heard(self, message: m.EngineReady | m.AskMemory | m.Moved | m.OutOfMemory | m.HoldTraining) -> None:
        """From a stage of the node, or a new rule. Raises UserError if a stage has no memory left for tasks."""
        match message:
            case m.EngineReady(_, stage, takes):
                if takes is not None:
                    self._ready[stage] = self._limits.room_of(stage, takes)
                if len(self._ready) == self._limits.stages:
                    self._stages = [_Stage(room) for _, room in sorted(self._ready.items())]
            case m.AskMemory() as asked:
                self._asked = asked
            case m.Moved() as moved:
                self._moved(moved)
            case m.HoldTraining(longest):
                self._limits = replace(self._limits, max_hold=longest)
            case m.OutOfMemory(stage, begun):
                self._out_of_memory(stage, begun)

    def worked(self, spans: Sequence[m.WorkSpan]) -> None:
        """Passes have ended: activations rest until their backward, or are gone."""
        for span in spans if self._stages else ():
            if span.complete and span.kind == "forward":
                stage = self._stages[span.stage]
                stage.movable[span.tasks[0]] = self._bytes(stage, span.tasks[0])
            elif span.complete and span.kind == "backward":
                self._release(span.stage, span.tasks[0])

    @property
    def used(self) -> NodeMemory:
        """What has become of the node's memory so far."""
        waits = [(claim.waits, claim.waited, claim.longest) for claim in (self._serving, self._training)]
        stages = [stage.peaks for stage in self._stages]
        return NodeMemory(stages, *waits[0], *waits[1], self._preemptions, self._recomputed)

    def news(self) -> NodeMemory | None:
        """What is used, now and then; None in between, and without a limit."""
        now = self._now()
        if not self.limited or now - self._told < TELL_EVERY_S:
            return None
        self._told = now
        return self.used

    def _out_of_memory(self, at: int, begun: int) -> None:
        """A stage has less memory than the accounts say: count on less from now on, and let one micro-batch make room."""
        stage = self._stages[at] if self._stages else None
        if stage is not None:
            held = stage.cache + stage.activations + stage.back
            # What its backward has begun with stays, also where it has been told to leave.
            stage.movable.pop(begun, None)
            stage.leaving.pop(begun, None)
            safe = max(round(SAFE_PART * held), stage.room.least)
            stage.room = replace(stage.room, limit=min(stage.room.limit, safe))
            print(
                f"stage {at} ran out of memory: tasks get {stage.room.limit / 1e9:.3g} GB there from now on", flush=True
            )
            if self._limits.offloads and stage.movable and not stage.leaving:
                self._offload(at)
            if stage.leaving:
                self._starved.add(at)
                return
        self._send(at, m.TryAgain())

    def _moved(self, report: m.Moved) -> None:
        """Activations are on the host, or on their way back."""
        stage, nbytes = self._stages[report.stage], self._bytes(self._stages[report.stage], report.micro_batch)
        if report.back:
            stage.back += nbytes
            stage.note_peak()
            return
        del stage.leaving[report.micro_batch]
        stage.offloads += 1
        stage.offloaded += nbytes
        stage.away[report.micro_batch] = nbytes
        stage.activations -= nbytes
        if report.stage in self._starved:
            self._starved.discard(report.stage)
            self._send(report.stage, m.TryAgain())

    def _release(self, at: int, micro_batch: int) -> None:
        stage = self._stages[at]
        nbytes = self._bytes(stage, micro_batch)
        stage.movable.pop(micro_batch, None)
        stage.leaving.pop(micro_batch, None)
        if micro_batch in stage.away:
            del stage.away[micro_batch]
            stage.back -= nbytes
        else:
            stage.activations -= nbytes
        # Stages tell of their passes each by itself, so that the first one may be heard of before those behind it.
        self._held_by[micro_batch] -= 1
        if not self._held_by[micro_batch]:
            del self._held_by[micro_batch], self._tokens[micro_batch]

    def _bytes(self, stage: _Stage, micro_batch: int) -> int:
        return self._tokens[micro_batch] * stage.room.activation_bytes

    def _claim(self, claim: _Claim, needs: Sequence[int], request: NodeRequest | None) -> bool:
        """Look after a claim on all stages; `request`: the one that claims and is no victim, None for training."""
        now = self._now()
        granted, claim.looked = True, now
        for at, need in enumerate(needs):
            todo = self._make_room(at, need, request, claim)
            granted &= todo == RUN
            self._stages[at].lacks |= claim.bit * (todo != RUN)
        if not granted:
            claim.since = min(claim.since, now)
        elif claim.since < math.inf:
            self._end(claim, now - claim.since)
        return granted

    def _make_room(self, at: int, need: int, request: NodeRequest | None, claim: _Claim) -> int:
        """Let others make room on a stage, as far as they have to. RUN or WAIT."""
        stage, limits, since = self._stages[at], self._limits, min(claim.since, claim.looked)
        patience, moves = limits.max_wait, limits.offloads
        if claim is self._training:
            patience = self._patience
            moves &= moves_for_training(len(self._held_by), limits.useful_in_flight, limits.gpipe)
        own = 0 if request is None else request.held * stage.room.cache_bytes
        while True:
            victim = self._victim(request) if need > stage.free else None
            leaving = list(stage.leaving.values())
            movable = list(stage.movable.values()) if moves else []
            todo = decide(
                stage.free,
                need,
                stage.cache + stage.activations + stage.kept - own,
                stage.won_by(leaving),
                stage.won_by(leaving + movable),
                0 if victim is None else victim.held * stage.room.cache_bytes,
                claim.looked,
                since + limits.max_wait,
                since + patience,
            )
            if todo == OFFLOAD:
                self._offload(at)
            elif todo == PREEMPT and victim is not None:
                stage.preemptions += 1
                self._preemptions += 1
                self.release_cache(victim)
                self._recomputed += self._preempt(victim)
            else:
                return todo

    def _offload(self, at: int) -> None:
        """The activations whose backward comes last are to go to the host."""
        stage = self._stages[at]
        micro_batch, nbytes = stage.movable.popitem()
        stage.leaving[micro_batch] = nbytes
        self._send(at, m.Offload(micro_batch))

    def _end(self, claim: _Claim, waited: float) -> None:
        """What has waited runs."""
        if waited > 0.0:
            claim.waits += 1
            claim.waited += waited
            claim.longest = max(claim.longest, waited)
        for stage in self._stages:
            stage.waits += bool(stage.lacks & claim.bit) and waited > 0.0
            stage.lacks &= ~claim.bit
        claim.since = math.inf
