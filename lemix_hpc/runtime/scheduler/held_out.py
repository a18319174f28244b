"""The loss on held-out samples: they are scored as prompts on all serving nodes, while nobody else is served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.records.files import replace
from lemix_hpc.records.schema import HeldOutLoss
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.held_out import HeldOutSamples

FILE = "held_out.json"


def is_unnamed(task: int) -> bool:
    """Whether it is no request of anybody, so that no record names it."""
    return task < 0


class HeldOutLosses:
    """Those of a run, over all its attempts: `taken` before training, and when the run has finished.

    Each node scores its share of the documents, by its own weights. Their tasks have negative numbers.
    """

    def __init__(
        self, samples: HeldOutSamples, layout: Layout, nodes: Sequence[int], mailbox: Mailbox, run_dir: Path
    ) -> None:
        self._samples = samples
        self._layout = layout
        self._nodes = nodes
        self._mailbox = mailbox
        self._file = run_dir / FILE
        self._awaited: dict[int, int] = {}
        self._terms: list[float] = []
        self._steps = 0
        self.taken = _read(self._file)

    @property
    def awaited(self) -> bool:
        """Whether scores of what was asked for last are still to come."""
        return bool(self._awaited)

    def ask(self, now: float, steps: int) -> None:
        """Have all samples scored, `steps` optimizer steps after the run's beginning. `now`: of the run [s]."""
        self._steps, self._terms = steps, []
        self._awaited = {-number: each.sign for number, each in enumerate(self._samples.prefixes, start=1)}
        for task, each in zip(self._awaited, self._samples.prefixes, strict=True):
            node = self._nodes[each.document % len(self._nodes)]
            request = m.PlaceRequest(task, len(each.tokens), 0, list(each.tokens), key=0.0, arrival=now)
            self._mailbox.send(self._layout.leader(node), Inbox.LEADER, request)

    def heard(self, message: m.AnyMessage) -> None:
        """A score has come, or anything else. The last one completes the loss, which goes to the run's directory."""
        if not isinstance(message, m.RequestDone) or message.task not in self._awaited:
            return
        self._terms.append(self._awaited.pop(message.task) * message.nll)
        if self._awaited:
            return
        samples = self._samples
        loss = HeldOutLoss(self._steps, math.fsum(self._terms) / samples.tokens, samples.documents, samples.tokens)
        self.taken.append(loss)
        print(f"loss on {samples.documents} held-out documents after {self._steps} steps: {loss.loss:.4f}", flush=True)
        try:
            replace(self._file, msgspec.json.format(msgspec.json.encode(self.taken)) + b"\n")
        except OSError as error:
            print(f"it could not be written down: {self._file}: {error.strerror}", flush=True)


def _read(file: Path) -> list[HeldOutLoss]:
    """Of earlier attempts; none if nothing can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[HeldOutLoss])
    except (OSError, *BROKEN_JSON):
        return []
