"""Which training data a run began with, and where: attempts go on in the same data, and so does a run that takes up another's
training state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lemix_hpc.checkpoints.resumption import Resumption
from lemix_hpc.checkpoints.store import Checkpoint
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.records.files import replace
from lemix_hpc.records.inheritance import inherit
from lemix_hpc.run_setup.training_feed import BEGINNING, TextStart, text_left
from lemix_hpc.workload.data_identity import DataIdentity
from lemix_hpc.workload.training import MicroBatchStream

DATA = "data.json"


class DataMemory(msgspec.Struct, frozen=True):
    """The first micro-batch of the text that the run takes, and its `position`, as in `TextStart`."""

    identity: DataIdentity
    micro_batch: int
    position: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RecalledData:
    """Where a run begins in its text, and what its user is told of that."""

    start: TextStart = BEGINNING
    notices: tuple[str, ...] = ()


def recall_data(run_dir: Path, identity: DataIdentity, elsewhere: Path | None) -> RecalledData:
    """Of an attempt, which notes the data for those after it. `elsewhere`: the checkpoint of another run that the weights are
    from."""
    before = read_memory(run_dir)
    if before is not None:
        start = TextStart(before.micro_batch, before.position)
        notices = tuple(changed(run_dir, identity))
    elif elsewhere is not None:
        start, notice = _start_behind(elsewhere, identity)
        notices = (notice,)
    else:
        start, notices = BEGINNING, ()
    if before is None or notices:
        _keep(run_dir, DataMemory(identity, *start))
    return RecalledData(start, notices)


def text_start(text: MicroBatchStream | None, run_dir: Path, elsewhere: Path | None) -> TextStart:
    """Where the run's training text begins; prints what its user should know of that. `elsewhere` as in `recall_data`."""
    identity = None if text is None else text.identity()
    if identity is None:
        return BEGINNING
    recalled = recall_data(run_dir, identity, elsewhere)
    for notice in recalled.notices:
        print(notice, flush=True)
    return recalled.start


def changed(run_dir: Path, identity: DataIdentity) -> Sequence[str]:
    """A warning if the data are not those that the run had before."""
    before = read_memory(run_dir)
    if before is None or identity.equals(before.identity):
        return ()
    return (
        f"warning: the training data have changed since the last attempt: {identity.differs_from(before.identity)}. Training "
        "goes on at the same place of what is there now, so parts may be learnt twice or never. To avoid that, stop the run, "
        "put the data back, and `lemix resume` it; or take the new data in a new run with training.resume.",
    )


def read_memory(run_dir: Path) -> DataMemory | None:
    """None if the run has noted nothing that can be read."""
    try:
        return msgspec.json.decode((run_dir / DATA).read_bytes(), type=DataMemory)
    except (OSError, *BROKEN_JSON):
        return None


def _start_behind(path: Path, identity: DataIdentity) -> tuple[TextStart, str]:
    """Behind what is in the weights of another run's checkpoint."""
    other = path.parent.parent
    memory = read_memory(other)
    if memory is None:
        return (
            BEGINNING,
            f"training data: from their beginning; {other} does not tell on which data {path.name} was trained",
        )
    if not identity.equals(memory.identity):
        return BEGINNING, f"training data: from their beginning; {path.name} of {other} was trained on others"
    try:
        checkpoint = Checkpoint.read(path)
        inherited = inherit(other, Resumption(checkpoint, continued=True).versions(checkpoint.manifest.nodes))
    except (UserError, OSError) as error:
        return BEGINNING, f"training data: from their beginning; {error}"
    left = text_left(inherited.cuts, inherited.done, inherited.behind)
    start = left.start if left is not None else TextStart(memory.micro_batch, memory.position)
    return start, f"training data: from micro-batch t{start.micro_batch} on, where {path.name} of {other} has stopped"


def _keep(run_dir: Path, memory: DataMemory) -> None:
    try:
        replace(run_dir / DATA, msgspec.json.format(msgspec.json.encode(memory)) + b"\n")
    except OSError as error:
        print(f"which training data these are could not be noted: {run_dir / DATA}: {error.strerror}", flush=True)
