"""Compilation of the policy's inner functions, and of the simulator around them, to machine code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

import numba
from numba import types

from lemix_hpc.policy.code_cache import code_cache
from lemix_hpc.policy.linking import PartCompiler, WholeCompiler

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with numba at the first call, or take what an earlier process compiled from the same sources.

    Arguments are numbers, arrays and named tuples of those. A compiled function allocates nothing and returns no array: without
    references to count, calls with many arrays are three times as fast.
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
        self._inner = _jit(function, PartCompiler, no_cpython_wrapper=True, forceinline=forceinline)
        self._numba_type_ = types.Dispatcher(self._inner)  # what numba takes this for

    def __call__(self, *arguments: Any) -> Any:
        return self._outer(*arguments)

    @cached_property
    def _outer(self) -> Callable[..., Any]:
        outer = _jit(self._function, WholeCompiler)
        outer._cache = code_cache(self._function)
        return cast(Callable[..., Any], outer)


def _jit(function: Callable[..., Any], compiler: type, **options: bool) -> Any:
    return numba.njit(
        nogil=True, error_model="numpy", _nrt=False, no_cfunc_wrapper=True, pipeline_class=compiler, **options
    )(function)
