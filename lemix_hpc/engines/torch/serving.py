"""Serving batches: prefill, decode and scoring of many sequences in one pass over the stage's layers.

The batch's new tokens lie one after the other in a single row, so that all matrix products see them together; only
attention goes sequence by sequence. Nothing is padded and no keys or values are copied to be batched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch.nn.functional import cross_entropy

from lemix_hpc.engines.protocol import SequenceResult, ServeBatch, ServeSequence, Work
from lemix_hpc.engines.torch.attention import causal_attention
from lemix_hpc.engines.torch.kv_cache import KeyValueCache
from lemix_hpc.engines.torch.module import StageModule

_LOGITS_ROWS = 512
"""Logits are made for so many positions at a time: of a long prompt and a large vocabulary they would take gigabytes."""


@torch.no_grad()
def serve(
    module: StageModule, cache: KeyValueCache, batch: ServeBatch, hidden: torch.Tensor | None, device: torch.device
) -> Work[torch.Tensor]:
    """The hidden states (1, tokens, hidden) after this stage's layers. Generating sequences keep keys and values."""
    for sequence in batch.sequences:
        if sequence.generate:
            cache.reserve(sequence.request, sequence.cached, sequence.length)
        elif sequence.cached:
            raise ValueError(f"request {sequence.request} is scored, so it cannot have {sequence.cached} cached tokens")
    positions = torch.tensor(
        [[p for s in batch.sequences for p in range(s.cached, s.cached + s.length)]], device=device
    )
    if hidden is None:
        tokens = torch.tensor([[token for s in batch.sequences for token in s.tokens]], device=device)
        hidden = module.embed(tokens, positions)
    arguments = module.layer_arguments(positions, hidden.dtype)
    attend = _AttendBySequence(batch, cache)
    for block in module.blocks:
        hidden = module.run_block(block, hidden, arguments, attend)
        yield
    return hidden


class _AttendBySequence:
    def __init__(self, batch: ServeBatch, cache: KeyValueCache) -> None:
        self._spans = list(_spans(batch))
        self._cache = cache

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        parts = []
        for sequence, span in self._spans:
            keys, values = key[:, :, span], value[:, :, span]
            if sequence.generate:
                keys, values = self._cache.append(sequence.request, layer, keys, values)
            parts.append(causal_attention(query[:, :, span], keys, values, scale, window))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@torch.no_grad()
def results(module: StageModule, batch: ServeBatch, hidden: torch.Tensor, seed: int) -> list[SequenceResult]:
    """What the last stage makes of its hidden states: scores and next tokens, in the batch's order."""
    spans = list(_spans(batch))
    ends = [span.stop - 1 for sequence, span in spans if sequence.ends]
    logits = iter(module.logits(hidden[0, ends]).float().cpu()) if ends else iter(())
    found = []
    for sequence, span in spans:
        if sequence.ends:
            found.append(_generated(sequence, next(logits), batch.temperature, seed))
        elif sequence.partial:
            found.append(SequenceResult(sequence.request, 0.0, 0, None))
        else:
            found.append(_scored(module, sequence, hidden[0, span]))
    return found


def _scored(module: StageModule, sequence: ServeSequence, hidden: torch.Tensor) -> SequenceResult:
    targets = torch.tensor(sequence.tokens[1:], device=hidden.device)
    predicting = torch.split(hidden[:-1], _LOGITS_ROWS)
    nll = math.fsum(
        float(cross_entropy(module.logits(rows).float(), expected, reduction="sum"))
        for rows, expected in zip(predicting, torch.split(targets, _LOGITS_ROWS), strict=True)
        if len(rows)
    )
    return SequenceResult(sequence.request, nll, sequence.length - 1, None)


def _generated(sequence: ServeSequence, logits: torch.Tensor, temperature: float, seed: int) -> SequenceResult:
    if temperature == 0.0:
        token = int(logits.argmax())
    else:
        # Seeded by request and position: a sequence's tokens do not depend on what it is batched with.
        key = f"{seed}/{sequence.request}/{sequence.cached + sequence.length}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
        token = int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator))
    return SequenceResult(sequence.request, 0.0, 0, token)


def _spans(batch: ServeBatch) -> Iterator[tuple[ServeSequence, slice]]:
    stops = accumulate(sequence.length for sequence in batch.sequences)
    for sequence, stop in zip(batch.sequences, stops, strict=True):
        yield sequence, slice(stop - sequence.length, stop)
