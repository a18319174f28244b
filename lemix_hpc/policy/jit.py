"""Compilation of the policy's inner functions, and of the simulator around them, to machine code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import numba
from numba.misc.appdirs import user_cache_dir

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with numba at the first call, or take what an earlier process compiled from the same sources.

    Numba notices when a function's own file has changed, but not when one that it calls has; hence a cache for every
    state of the sources. Arguments are numbers, arrays and named tuples of those. A compiled function allocates nothing
    and returns no array: without references to count, calls with many arrays are three times as fast.
    """
    return _compiled(function, forceinline=False)


def inlined(function: F) -> F:
    """Like `compiled`, for what runs for every node: handing over the whole state would take longer than the work."""
    return _compiled(function, forceinline=True)


def _compiled(function: F, *, forceinline: bool) -> F:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _CACHE
    try:
        made: F = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=forceinline)(function)
    finally:
        numba.config.CACHE_DIR = before
    return made


def _digest() -> str:
    """One name for the sources of all compiled functions."""
    digest = hashlib.sha256(numba.__version__.encode())
    for package in ("policy", "simulate"):
        folder = files("lemix_hpc") / package
        for source in sorted(_sources(folder), key=lambda file: file.name):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folder: Traversable) -> list[Traversable]:
    return [file for file in folder.iterdir() if file.name.endswith(".py")] if folder.is_dir() else []


_CACHE = f"{user_cache_dir('lemix-hpc')}/compiled-{_digest()}"
