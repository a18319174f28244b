"""Prompt and output lengths drawn from published quantiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.config.workload_section import LengthTable
from lemix_hpc.workload.length_tables import TABLES


def sample_lengths(table: LengthTable, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Prompt and output lengths of `count` requests in tokens, shape (count, 2), each at least 1.

    The inverse of the cumulative distribution is interpolated linearly between its quantiles. Prompt and output are
    drawn independently of each other.
    """
    quantiles = TABLES[table]
    levels = np.linspace(0.0, 1.0, len(quantiles.prompt))
    uniform = rng.random((count, 2))
    lengths = np.column_stack(
        [np.interp(uniform[:, 0], levels, quantiles.prompt), np.interp(uniform[:, 1], levels, quantiles.output)]
    )
    return np.maximum(np.rint(lengths).astype(np.int64), 1)
