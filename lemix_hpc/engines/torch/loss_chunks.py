"""How long the chunks are in which a loss is taken."""

MOST_LOGITS = 1 << 25
"""Logits of a chunk: 128 MiB of float32. A chunk should not take longer than other pieces of training."""


def chunk_tokens(vocabulary: int) -> int:
    """Tokens of a chunk."""
    return max(1, MOST_LOGITS // vocabulary)
