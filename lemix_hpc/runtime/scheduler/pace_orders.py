"""What leaders need to know to keep pace: limits, and how long passes take on their nodes."""

from __future__ import annotations

from collections.abc import Sequence

from lemix_hpc.policy.pacing import Pace
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout


def send_pace(
    mailbox: Mailbox,
    layout: Layout,
    hardware: Hardware,
    pace: Pace | None,
    training_nodes: Sequence[int],
    batch_share: float,
) -> None:
    """Tell the leaders of nodes that train, before the run starts, unless there is no pace to keep."""
    if pace is None:
        return
    files = [file.model_dump_json(by_alias=True, exclude_none=True) for file in hardware.believed]
    for node in training_nodes:
        order = m.KeepPace(pace.ttft, pace.tpot, files[hardware.kinds[node]], batch_share)
        mailbox.send(layout.leader(node), Inbox.LEADER, order)
