"""Options of several commands, their parsers, and messages for values that make no sense."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.placements import PLACEMENTS

if TYPE_CHECKING:
    from lemix_hpc.studies.recipe_variants import Split

Policies = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Placements, such as least-completion,pack, or `all`.")
]
Seeds = Annotated[str | None, typer.Option(metavar="NUMBERS", help="Seeds, such as 0,1,2. By default the recipe's.")]
Rates = Annotated[str | None, typer.Option(metavar="NUMBERS", help="Requests per second. By default the recipe's.")]
TrainingShares = Annotated[
    str | None, typer.Option(metavar="NUMBERS", help="Training micro-batches / all tasks. By default the recipe's.")
]
Csv = Annotated[Path | None, typer.Option(metavar="FILE", help="Write one CSV row per run.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all runs, means and ratios.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Number of processes. By default one per core.")]


def policy_names(text: str, nodes: int) -> list[str]:
    """Raises UserError with the valid names. `all` leaves out what so many nodes cannot do."""
    if text.strip() == "all":
        return [name for name, placement in PLACEMENTS.items() if nodes > 1 or not placement.splits]
    names = _parts("--policies", text)
    unknown = [name for name in names if name not in PLACEMENTS]
    if unknown:
        raise UserError(f"--policies: there is no policy {unknown[0]}; give some of {', '.join(PLACEMENTS)}, or all")
    return [name for name in PLACEMENTS if name in names]


def rates(text: str) -> list[float]:
    """Requests per second, above 0."""
    return [
        _checked("--rates", part, 0.0, math.inf, "a rate above 0, in requests per second")
        for part in _parts("--rates", text)
    ]


def shares(text: str) -> list[float]:
    """Shares of training, between 0 and 1."""
    option = "--training-shares"
    return [_checked(option, part, 0.0, 1.0, "a share between 0 and 1, such as 0.5") for part in _parts(option, text)]


def seeds(text: str) -> list[int]:
    """Whole numbers from 0 on."""
    found = _parts("--seeds", text)
    for part in found:
        if not part.isdecimal():
            raise UserError(f"--seeds: expected whole numbers from 0 on, such as 0,1,2; found {part}")
    return [int(part) for part in found]


def split_of(text: str | None) -> Split:
    """How many nodes train: a number, `auto`, or as in the recipe."""
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"--split: expected a number of nodes above 0, or auto; found {text}")
    return int(text)


def processes(jobs: int | None) -> int:
    """As asked for, or one for each core that this process may use."""
    return jobs or len(os.sched_getaffinity(0))


def _parts(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"{option}: expected values with commas between them; found {text!r}")
    twice = [part for number, part in enumerate(parts) if part in parts[:number]]
    if twice:
        raise UserError(f"{option}: {twice[0]} is there twice")
    return parts


def _checked(option: str, text: str, low: float, high: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low < value < high:
        raise UserError(f"{option}: expected {expected}; found {text}")
    return value
