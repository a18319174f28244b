"""One pipeline stage that vLLM serves on and we train on, by default with one copy of the weights."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerWrapperBase

from lemix_hpc.checkpoints.stage_state import SavedState
from lemix_hpc.config.training_section import Recompute
from lemix_hpc.engines.protocol import EngineOrder, Payload, SequenceResult, ServeBatch, StageTakes, Work
from lemix_hpc.engines.torch.captured_blocks import CapturedBlocks
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.training import StageTraining
from lemix_hpc.engines.vllm.engine_ipc import Call
from lemix_hpc.engines.vllm.hugging_face import CopiedWeights
from lemix_hpc.engines.vllm.module import FusedLlamaStage
from lemix_hpc.engines.vllm.pass_thread import PassThread
from lemix_hpc.engines.vllm.stage_socket import StageSocket

BETWEEN_STAGES = ("hidden_states", "residual")
"""What vLLM's Llama-like models hand to the next stage, each (tokens, hidden)."""


@dataclass(frozen=True, slots=True)
class TrainingParts:
    """What a stage trains with: the module on vLLM's weights, or on a copy (`copied`, which then follows it)."""

    module: FusedLlamaStage
    wire: Wire
    optimizer: StageOptimizer | None
    copied: CopiedWeights | None
    keep_graphs: bool
    recompute: Recompute
    max_positions: int | None
    takes: StageTakes
    offloads: bool
    captured: CapturedBlocks | None


class SharedTraining(StageTraining):
    """Training of the weights that vLLM serves. Where vLLM has a copy of its own, that follows them."""

    def __init__(self, parts: TrainingParts) -> None:
        super().__init__(
            parts.module,
            parts.wire,
            parts.optimizer,
            keep_graphs=parts.keep_graphs,
            max_positions=parts.max_positions,
            recompute=parts.recompute,
            takes=parts.takes,
            offloads=parts.offloads,
            captured=parts.captured,
        )
        self._copied = parts.copied

    def publish(self, group: int) -> Work[None]:
        yield from super().publish(group)
        self._copy()

    def publish_average(self) -> Work[None]:
        yield from super().publish_average()
        self._copy()

    def write_weights(self, weights: list[Payload]) -> None:
        super().write_weights(weights)
        self._copy()

    def restore(self, saved: SavedState) -> None:
        super().restore(saved)
        self._copy()

    def forget(self, requests: Sequence[int]) -> None:
        """Nothing: each batch tells vLLM's worker what to free."""

    def _copy(self) -> None:
        if self._copied is not None:
            self._copied.publish()


class VllmStage(SharedTraining):
    """Implements `lemix_hpc.engines.protocol.StageEngine`. Batches come from vLLM's engine process, through its socket."""

    def __init__(
        self, socket: StageSocket, worker: WorkerWrapperBase, training: TrainingParts, ahead: PassThread
    ) -> None:
        """`ahead`: where passes begin before their activations have come."""
        super().__init__(training)
        self._socket = socket
        self._worker = worker
        self._ahead = ahead
        self._begun = -1

    def expect(self, batch: ServeBatch) -> Work[None]:
        plan = pickle.loads(batch.plan)
        self._ahead.start(lambda arrive: self._worker.execute_stage(plan, arrive))
        self._begun = batch.id
        return
        yield

    def serve(self, batch: ServeBatch, hidden: Payload | None) -> Work[Payload | list[SequenceResult] | None]:
        output = self._output(batch, hidden)
        if isinstance(output, dict):
            if batch.sequences and self._module.first:
                self._socket.passed()
            return self._wire.payload(torch.stack([output[name] for name in BETWEEN_STAGES]))
        if batch.sequences and self._module.last:
            # What bounds the choice of tokens is sent right behind the batch, but on its own way.
            while not self._socket.samples:
                yield
            grammar = self._socket.samples.popleft()
            sampled = self._worker.sample_tokens(grammar) if output is None else output
            self._socket.answer(sampled.get_output() if isinstance(sampled, AsyncModelRunnerOutput) else sampled)
        return None
        yield

    def _output(self, batch: ServeBatch, hidden: Payload | None) -> Any:
        """What the model runner gives for a batch, whether it has begun with that or not."""
        tensors = None
        if hidden is not None:
            tensors = dict(zip(BETWEEN_STAGES, self._wire.tensor(hidden), strict=True))
        if self._begun == batch.id:
            return self._ahead.finish(tensors)
        return self._worker.execute_stage(pickle.loads(batch.plan), None if tensors is None else lambda: tensors)

    def orders(self) -> Sequence[EngineOrder]:
        return self._socket.poll(self._perform)

    def ask_to_commit(self) -> bool:
        self._socket.ask()
        return True

    @property
    def watched(self) -> Sequence[int]:
        return self._socket.watched

    def close(self) -> None:
        super().close()
        self._ahead.close()
        self._socket.close()

    def _perform(self, call: Call) -> Any:
        """A call of the engine process to this stage's worker."""
        if isinstance(call.method, bytes):
            return cloudpickle.loads(call.method)(self._worker.worker, *call.args, **call.kwargs)
        return getattr(self._worker, call.method)(*call.args, **call.kwargs)
