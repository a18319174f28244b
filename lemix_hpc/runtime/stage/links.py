"""Where a stage stands, and the ranks that it talks to."""

from __future__ import annotations

from dataclasses import dataclass

from lemix_hpc.engines.protocol import Payload
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout


@dataclass(frozen=True, slots=True)
class StagePlace:
    """Where a stage stands, and which nodes get its weights every `copy_every` steps."""

    layout: Layout
    node: int
    stage: int
    copy_to: tuple[int, ...] = ()
    copy_every: int = 1

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.layout.stages - 1


class StageLinks:
    """Sends to the neighbours in the pipeline, the leader, and the same stage of other nodes.

    What the leader is told of work waits until `tell`, so that the next stage gets the results first.
    """

    def __init__(self, place: StagePlace, mailbox: Mailbox) -> None:
        self.place = place
        self._mailbox = mailbox
        self._worked: list[m.WorkSpan] = []

    def worked(self, span: m.WorkSpan) -> None:
        """Work that the leader is to hear of."""
        self._worked.append(span)

    def tell(self) -> None:
        """Let the leader know of the work so far."""
        if self._worked:
            spans, self._worked = self._worked, []
            self.to_leader(m.SpanReport(spans))

    def to_leader(self, message: m.AnyMessage) -> None:
        """Whoever hears of an outcome has heard of the work before; the leader passes reports on to the scheduler in the order
        in which its stages sent them."""
        self.tell()
        self._mailbox.send(self.place.layout.leader(self.place.node), Inbox.LEADER, message)

    def down(self, message: m.AnyMessage, payload: Payload | None = None) -> None:
        """To the next stage; nothing on the last one."""
        if not self.place.last:
            self._to_stage(self.place.node, self.place.stage + 1, message, payload)

    def behind(self, message: m.AnyMessage, to_last: Payload | None = None) -> None:
        """To all stages behind this one, each at once: none waits until those before it have had a look. `to_last` goes to the
        last one alone."""
        last = self.place.layout.stages - 1
        for stage in range(self.place.stage + 1, last + 1):
            self._to_stage(self.place.node, stage, message, to_last if stage == last else None)

    def up(self, message: m.AnyMessage, payload: Payload | None = None) -> None:
        """To the stage before."""
        self._to_stage(self.place.node, self.place.stage - 1, message, payload)

    def to_first(self, message: m.AnyMessage, payload: Payload) -> None:
        """To the node's first stage."""
        self._to_stage(self.place.node, 0, message, payload)

    def across(self, node: int, message: m.AnyMessage, payload: Payload | None = None) -> None:
        """To the same stage of another node."""
        self._to_stage(node, self.place.stage, message, payload)

    def _to_stage(self, node: int, stage: int, message: m.AnyMessage, payload: Payload | None) -> None:
        self._mailbox.send(self.place.layout.worker(node, stage), Inbox.STAGE, message, payload)
