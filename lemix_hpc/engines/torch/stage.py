"""One pipeline stage that computes: the stage worker's engine on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from lemix_hpc.config.training_section import Recompute
from lemix_hpc.engines.protocol import LedByLeader, Payload, SequenceResult, ServeBatch, StageTakes, Work
from lemix_hpc.engines.torch import serving
from lemix_hpc.engines.torch.captured_blocks import CapturedBlocks
from lemix_hpc.engines.torch.kv_cache import KeyValueCache
from lemix_hpc.engines.torch.memory_errors import may_be_repeated
from lemix_hpc.engines.torch.module import StageModule
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.training import StageTraining


class TorchStage(LedByLeader, StageTraining):
    """Implements `lemix_hpc.engines.protocol.StageEngine`: training, and serving by the very layers that are trained."""

    def __init__(
        self,
        module: StageModule,
        cache: KeyValueCache,
        wire: Wire,
        optimizer: StageOptimizer | None,
        *,
        seed: int,
        keep_graphs: bool,
        max_positions: int | None,
        recompute: Recompute = "none",
        takes: StageTakes | None = None,
        offloads: bool = False,
        captured: CapturedBlocks | None = None,
    ) -> None:
        super().__init__(
            module,
            wire,
            optimizer,
            keep_graphs=keep_graphs,
            max_positions=max_positions,
            recompute=recompute,
            takes=takes,
            offloads=offloads,
            captured=captured,
        )
        self._cache = cache
        self._seed = seed

    def serve(self, batch: ServeBatch, hidden: Payload | None) -> Work[Payload | list[SequenceResult] | None]:
        return may_be_repeated(self._serve(batch, hidden))

    def _serve(self, batch: ServeBatch, hidden: Payload | None) -> Work[Payload | list[SequenceResult] | None]:
        self._check_length(max(sequence.cached + sequence.length for sequence in batch.sequences))
        entry = None if hidden is None else self._wire.tensor(hidden)
        output = yield from serving.serve(self._module, self._cache, batch, entry, self._device)
        if self._module.last:
            return serving.results(self._module, batch, output, self._seed)
        return self._wire.payload(output)

    def forget(self, requests: Sequence[int]) -> None:
        self._cache.forget(requests)
