"""How much of a GPU's memory a stage keeps to hand tensors to others of its host."""

from __future__ import annotations

from lemix_hpc.config.recipe import Recipe

GRAIN = 1 << 16
"""Bytes: what is handed on begins at multiples of it."""


def region_bytes(recipe: Recipe, hidden: int, dtype_bytes: int) -> int:
    """Room for what may wait to be read: two of the largest serving batches, all micro-batches of a node that are in flight,
    and a gradient. `hidden`: of the model. Where more waits, that goes another way."""
    engine, training, nbytes = recipe.engine, recipe.training, 0
    if recipe.serving is not None:
        # vLLM's stages hand on hidden states and residuals.
        parts = 2 if engine.kind == "vllm" else 1
        nbytes += 2 * _grains(parts * engine.max_batch_tokens * hidden * dtype_bytes)
    if training is not None:
        whole_group = training.release == "sync" and training.schedule == "gpipe"
        in_flight = training.micro_batches_per_step if whole_group else recipe.in_flight
        tokens = training.micro_batch_size * training.sequence_length
        nbytes += (in_flight + 1) * _grains(tokens * hidden * dtype_bytes)
    return nbytes


def _grains(nbytes: int) -> int:
    return -(-nbytes // GRAIN) * GRAIN
