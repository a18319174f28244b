"""The messages between scheduler, leaders and stages: small, typed, and all in one place.

Tasks are numbered by the scheduler; ids stay there. Times are seconds since the start of the run.
"""

from __future__ import annotations

import msgspec

from lemix_hpc.checkpoints.manifest import SavedFile
from lemix_hpc.engines.protocol import MicroBatch, SequenceResult, ServeBatch, StageTakes
from lemix_hpc.records.schema import NodeMemory
from lemix_hpc.runtime.transport.reports import AnswerDone, BatchRan, NodeReport, Passed, SpanReport, WorkSpan

__all__ = ["AnswerDone", "BatchRan", "NodeReport", "Passed", "SpanReport", "WorkSpan"]
"""What is reported of work is a part of this module, too."""


class PlaceRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leader: serve this request. `output` 0 scores the prompt; `key` orders new requests, the lowest first.

    `arrival`: when it came [s]; `patient`: it is of class batch; `expected`: when it is predicted to end [s].
    """

    task: int
    prompt: int
    output: int
    tokens: list[int]
    key: float
    arrival: float = 0.0
    patient: bool = False
    expected: float = 0.0


class Train(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leader to first stage: train on this micro-batch."""

    micro_batch: MicroBatch


class AskMemory(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First stage to leader: a micro-batch of so many `tokens` would run now, and needs memory on all stages."""

    micro_batch: int
    tokens: int


class GrantMemory(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to first stage: there is memory for a micro-batch, on all stages."""

    micro_batch: int


class Offload(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to stage: move what a micro-batch keeps for its backward to the host, unless that has begun."""

    micro_batch: int


class Moved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to leader: what a micro-batch keeps is on the host now, or (`back`) has begun to come back."""

    stage: int
    micro_batch: int
    back: bool


class OutOfMemory(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to leader: a pass did not fit into the device's memory, whatever the accounts say, and is to run again. `begun`:
    the micro-batch whose backward has begun there, -1 for none: it stays."""

    stage: int
    begun: int = -1


class TryAgain(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to stage: what could make room for that pass has done so."""


class MemoryUsed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to scheduler, at the end: what the node has made of its memory."""

    node: int
    memory: NodeMemory


class Go(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to everyone: the run starts at this time of the scheduler rank's monotonic clock."""

    start_time: float


class KeepPace(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leader, before the run starts: form batches when they are due, by the limits of
    `lemix_hpc.policy.pacing.Pace` [s]. `coefficients`: JSON of the coefficient file that the node's stage times go by;
    `batch_share`: of the time that interactive requests leave, for batch requests."""

    ttft: float
    tpot: float
    coefficients: str
    batch_share: float = 0.0


class FirstStageIdle(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First stage to leader: nothing runs there, and no training waits, `since` then [s]; inf: that is over."""

    since: float


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leaders to stages: all work is done, leave the loop."""


class ShareTime(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to stage: the share of its busy time that training gets at least, from now on."""

    minimum_training_share: float


class HoldTraining(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leader: requests may keep training from memory for so long [s], from now on."""

    longest: float


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Any rank to scheduler: its loop turns. `asked`: when, by its own monotonic clock [s], which the answer repeats."""

    rank: int
    asked: float


class TimeIs(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to any rank: what its monotonic clock shows [s], in answer to `Alive`."""

    asked: float
    time: float


class Stopped(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to leader to scheduler: the loop has ended, everything it sent before has left."""

    node: int
    stage: int


class EngineReady(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to leader to scheduler, or of vLLM's own engine from the leader (stage -1): the engine is built. `takes`: what of
    memory, where that has an end."""

    node: int
    stage: int
    takes: StageTakes | None = None


class Serve(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to first stage, stage to next stage (with activations): run this batch. `version`: weights of the stage before.

    Of the batches that wait on a stage the one with the smallest `key` [s] runs first.
    """

    batch: ServeBatch
    version: int
    key: float


class Expect(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First stage to all behind, before it runs a batch of the engine's own scheduler: its activations will come."""

    batch: ServeBatch


class Forward(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to next stage, with activations: training forward."""

    micro_batch: MicroBatch


class Backward(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to previous stage, with the gradient of its output: training backward."""

    micro_batch: int


class Sealed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to previous stage: a group is done here and behind. `tied`: the first stage gets a TiedGradient of it."""

    group: int
    square_norm: float
    tied: bool = False


class TiedGradient(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Last stage to the first one, with its gradient of the weights that both have, past the stages between."""

    group: int


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First stage to all behind, to the last one with the gradient of tied weights if any: work out the step of `group`, to be
    `version`."""

    version: int
    group: int
    grad_norm: float


class Prepared(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to previous stage: the update that makes `version` can be put in force here and on all stages behind."""

    version: int


class Commit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to next stage, in order with the activations: what comes after sees this weight version."""

    version: int


class StepTogether(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to all stages that train: the next step of all nodes, and the shares that this node's groups have in it.

    `group` is the number that the sum of all nodes' gradients goes by.
    """

    group: int
    shares: list[tuple[int, float]]


class SaveNext(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to the first stage of a node: save into `directory` behind the next update, or at once where none is open, but
    not before average `round` of all nodes (-1: whether there are any or not)."""

    number: int
    directory: str
    round: int


class Save(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First stage to all behind, before it tells them to prepare the update after `version`: save that one."""

    number: int
    version: int
    directory: str


class Saved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to leader to scheduler: its state is on disk, or could not be written (`error`).

    The other fields are those of `lemix_hpc.checkpoints.manifest.SavedNode`, and the type of the served weights.
    """

    number: int
    node: int
    version: int
    steps: int
    round: int
    updates: int
    schedule: int
    dtype: str
    file: SavedFile
    error: str


class RingPart(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to the same stage of the next node, with values: see `lemix_hpc.runtime.stage.ring_allreduce.RingChunk`."""

    round: int
    index: int
    hops: int


class RingLast(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to the same stage of the next node: no more parts come, the run ends."""


class Summed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to previous stage: the weights of all nodes are summed here and on all stages behind."""

    round: int


class PrepareAverage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First stage to all behind: work out the average of all nodes' weights, to be `version`."""

    version: int


class RingDone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to leader to scheduler: a sum over nodes is in force. `start` and `end` in s; `nbytes` sent by this stage."""

    node: int
    stage: int
    round: int
    start: float
    end: float
    nbytes: int


class WeightsPart(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to the same stage of another node, with one tensor: part `index` of `count` of a weight version."""

    version: int
    index: int
    count: int


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to first stage to next stage: these requests need no KV cache any more."""

    requests: list[int]


class Served(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Last stage to leader: results of a batch."""

    batch: int
    results: list[SequenceResult]
    version: int
    time: float


class Loss(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Last stage to leader to scheduler: mean loss of a micro-batch."""

    micro_batch: int
    loss: float


class Stepped(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First stage to leader to scheduler: an optimizer step was committed. `skipped`: its gradient was not finite, and changed
    no weight."""

    node: int
    group: int
    version: int
    skipped: bool = False


class RequestDone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to scheduler: a request has its outcome."""

    task: int
    node: int
    first_token: float
    finished: float
    nll: float
    scored: int
    output: list[int]
    versions: tuple[int, int]


class HttpCall(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leader: a client's call for the node's own server. `path` has the query, too; `key` and `patient` as in
    `PlaceRequest`. `answer`: tokens of each of its answers, 0 if it is no task of the policy's."""

    task: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    key: float
    patient: bool = False
    answer: int = 0


class HttpPart(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a call's answer. Status 0 and no headers in all but the first.

    `more`: another part follows. After the last one comes the `RequestDone` of the task.
    """

    task: int
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    more: bool


class HttpParts(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to scheduler: pieces of any calls' answers, in order."""

    parts: list[HttpPart]


class HttpAbort(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leader: nobody waits for the call's answer any more. Its `RequestDone` comes all the same."""

    task: int


class Withdraw(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Scheduler to leader: the run ends early, so do not begin these tasks. Those that have begun go on to their end."""

    tasks: list[int]


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leader to scheduler: these tasks had not begun, and nothing more will be heard of them."""

    node: int
    tasks: list[int]


class MeasurePass(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Profiler to stage: measure one point of the grid; see `lemix_hpc.profiling.grid.GridPoint`."""

    kind: str
    batch: int
    length: int
    context: int


class MeasureCopy(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Profiler to stage: measure copies between the host's and the device's memory."""

    nbytes: int


class MeasureLink(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Profiler to stage: measure how long so many bytes take to the next stage."""

    nbytes: int


class Echo(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to next stage and back, with bytes, while their link is measured."""


class Measured(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stage to profiler: seconds of each repeat by what was measured, the peak memory in bytes, and if it fitted at all; at
    rest also the bytes of a token in the KV cache, where memory does not show it."""

    seconds: dict[str, list[float]]
    peak: int = 0
    fits: bool = True
    cache_bytes: float | None = None


AnyMessage = (
    PlaceRequest
    | Train
    | AskMemory
    | GrantMemory
    | Offload
    | Moved
    | OutOfMemory
    | TryAgain
    | MemoryUsed
    | Go
    | KeepPace
    | FirstStageIdle
    | Stop
    | ShareTime
    | HoldTraining
    | Stopped
    | Alive
    | TimeIs
    | EngineReady
    | Serve
    | Expect
    | Forward
    | Backward
    | Sealed
    | TiedGradient
    | Prepare
    | Prepared
    | Commit
    | StepTogether
    | SaveNext
    | Save
    | Saved
    | RingPart
    | RingLast
    | Summed
    | PrepareAverage
    | RingDone
    | WeightsPart
    | Forget
    | Served
    | SpanReport
    | NodeReport
    | Loss
    | Stepped
    | RequestDone
    | HttpCall
    | HttpParts
    | HttpAbort
    | Withdraw
    | Withdrawn
    | MeasurePass
    | MeasureCopy
    | MeasureLink
    | Echo
    | Measured
)
