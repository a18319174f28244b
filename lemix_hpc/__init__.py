"""Serve a language model and keep training it on the same devices, inside ordinary Slurm allocations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lemix_hpc.api import Run, RunError, UserError, compare, load, rows, run, simulate, submit

__version__ = "0.1.0"
__all__ = ["Run", "RunError", "UserError", "compare", "load", "rows", "run", "simulate", "submit"]


def __getattr__(name: str) -> Any:
    """The Python interface, loaded when it is used: ranks and the command line load what they need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lemix_hpc import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
