"""Whether the file system of a run's directory has room for what the run will write, as far as that can be told before."""

from __future__ import annotations

from pathlib import Path

from lemix_hpc.config.check_amounts import requests_made
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.place import existing, left_to_user
from lemix_hpc.records.journal_writer import RESERVE
from lemix_hpc.records.parted_file import PART

PER_REQUEST, PER_REQUEST_COMPRESSED = 28_600, 5_300
"""Bytes of a request of 205 tokens in spans, events, tasks and the journal, as they come and in compressed parts; see
docs/runtime.md. A run with training beside it, of 2 nodes x 2 stages."""
PER_WEIGHT = 12
"""Bytes of a saved weight: itself and the optimizer's two moments."""
FILES = 100
"""Of a run, besides two for each rank and those of checkpoints; compressed parts come to it later."""


def shortage(recipe: Recipe, place: Path) -> str | None:
    """A warning if the file system there leaves this user less than a run of the recipe will most likely write; None if it has
    enough, does not tell, or is full, which is an error when the directory is made."""
    try:
        left = left_to_user(existing(place))
    except OSError:
        return None
    needs = {"records": _records(recipe), "checkpoints": _checkpoints(recipe)}
    wanted, files = sum(needs.values()), _files(recipe)
    if left.nbytes is not None and 0 < left.nbytes < wanted:
        parts = " and ".join(f"{_amount(nbytes)} of {what}" for what, nbytes in needs.items() if nbytes)
        short = f"{_amount(left.nbytes)} left for you, and the run will write some {parts}"
    elif left.files is not None and 0 < left.files < files:
        short = f"room for {left.files} more files, and the run will make {files}"
    else:
        return None
    return (
        f"warning: the file system of the run directory, {place}, has {short}. Make room, or choose another directory with "
        "--out or LEMIX_RUNS; a run on a full disk goes on, but makes no checkpoints and takes no more calls"
    )


def _amount(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def _records(recipe: Recipe) -> float:
    """Of three files with records as much as comes before a part is compressed stays as it came."""
    requests = requests_made(recipe) or 0.0
    return RESERVE + min(PER_REQUEST * requests, 3 * PART + PER_REQUEST_COMPRESSED * requests)


def _checkpoints(recipe: Recipe) -> float:
    """Those that stay, and one that is being written, each of one node."""
    if recipe.training is None or not recipe.engine.computes:
        return 0.0
    from lemix_hpc.engines.memory_plan import plan_memory

    try:
        weights = sum(plan.parameters or 0 for plan in plan_memory(recipe, cuda=False))
    except UserError:
        return 0.0
    return PER_WEIGHT * weights * (recipe.training.checkpoint.keep + 1.0)


def _files(recipe: Recipe) -> int:
    return FILES + 2 * recipe.nodes.count * (recipe.nodes.stages + 1)
