"""Compilation of the policy's inner functions, and of the simulator around them, to machine code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeVar, cast

import numba
from numba import types
from numba.misc.appdirs import user_cache_dir

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with numba at the first call, or take what an earlier process compiled from the same sources.

    Numba notices when a function's own file has changed, but not when one that it calls has; hence a cache for every
    state of the sources. Arguments are numbers, arrays and named tuples of those. A compiled function allocates nothing
    and returns no array: without references to count, calls with many arrays are three times as fast.
    """
    return cast(F, _Compiled(function, forceinline=False))


def inlined(function: F) -> F:
    """Like `compiled`, for what runs for every node: handing over its arguments would take longer than the work."""
    return cast(F, _Compiled(function, forceinline=True))


class _Compiled:
    """A function that compiled ones call, and Python: then it is compiled a second time, with what translates its arguments.

    Whatever a function calls becomes a part of it. That translation is larger than most of them, and few need it.
    """

    def __init__(self, function: Callable[..., Any], *, forceinline: bool) -> None:
        self._function = function
        self._inner = _jit(function, "inner", no_cpython_wrapper=True, forceinline=forceinline)
        self._numba_type_ = types.Dispatcher(self._inner)  # what numba takes this for

    def __call__(self, *arguments: Any) -> Any:
        return self._outer(*arguments)

    @cached_property
    def _outer(self) -> Callable[..., Any]:
        return _jit(self._function, "outer")


def _jit(function: Callable[..., Any], part: str, **options: bool) -> Any:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = f"{_CACHE}/{part}"
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False, no_cfunc_wrapper=True, **options)(
            function
        )
    finally:
        numba.config.CACHE_DIR = before


def _digest() -> str:
    """One name for the sources of all compiled functions."""
    digest = hashlib.sha256(numba.__version__.encode())
    for package in ("policy", "simulator"):
        folder = files("lemix_hpc") / package
        for source in sorted(_sources(folder), key=lambda file: file.name):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folder: Traversable) -> list[Traversable]:
    return [file for file in folder.iterdir() if file.name.endswith(".py")]


_CACHE = f"{user_cache_dir('lemix-hpc')}/compiled-{_digest()}"
