"""What engines have in common that only compute: the node's leader forms their batches."""

from __future__ import annotations

from collections.abc import Sequence

from lemix_hpc.engines.protocol import EngineOrder


class LedByLeader:
    """The part of `StageEngine` that concerns a scheduler of the engine's own, for engines without one."""

    def orders(self) -> Sequence[EngineOrder]:
        return ()

    def ask_to_commit(self) -> bool:
        return False

    @property
    def watched(self) -> Sequence[int]:
        return ()
