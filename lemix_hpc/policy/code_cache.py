"""Where machine code is kept between processes: by the content of the sources, wherever they are.

So another checkout of them, or an installation that cannot be written to, finds the same code. Numba's index tells processors
apart: hosts of different kinds may share a home.
"""

from __future__ import annotations

import hashlib
import linecache
import logging
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, _CacheLocator
from numba.misc.appdirs import user_cache_dir

LOG = logging.getLogger(__name__)


def code_cache(function: Any) -> FunctionCache | NullCache:
    """A cache of numba's for a function. Where nothing can be written a warning is logged, and nothing is kept."""
    try:
        return _Cache(function)
    except OSError as error:
        _warn(error)
        return NullCache()


class _Cache(FunctionCache):
    """Without room on the disk code serves the process that compiled it, and is not kept."""

    def __init__(self, function: Any) -> None:
        self._impl_class = _Files
        super().__init__(function)

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except OSError as error:
            _warn(error)


class _Locator(_CacheLocator):
    """Names a function's files, and says from which sources they are."""

    def __init__(self, function: Any, source: str) -> None:
        self._py_file = source  # as numba names it, in a warning
        self._module = function.__module__
        self._source = source

    @classmethod
    def from_function(cls, function: Any, source: str) -> _Locator:
        """Raises OSError if nothing can be written there."""
        made = cls(function, source)
        made.ensure_cache_path()
        return made

    def get_cache_path(self) -> str:
        return _DIRECTORY

    def get_source_stamp(self) -> str:
        """Of the function's own file, which may be outside of the package."""
        return hashlib.sha256("".join(linecache.getlines(self._source)).encode()).hexdigest()

    def get_disambiguator(self) -> str:
        return str(self._module)


class _Files(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


def _warn(error: OSError) -> None:
    LOG.warning(
        "machine code cannot be kept in %s (%s), and each command compiles again: set XDG_CACHE_HOME to a directory that you "
        "can write to",
        _DIRECTORY,
        error.strerror,
    )


def _digest() -> str:
    """One name for the sources of all compiled functions: numba would not notice a change of one that another one calls."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for package in ("policy", "simulator"):
        sources = [file for file in (files("lemix_hpc") / package).iterdir() if file.name.endswith(".py")]
        for source in sorted(sources, key=_name):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _name(file: Traversable) -> str:
    return file.name


_DIRECTORY = f"{user_cache_dir('lemix-hpc')}/compiled-{_digest()}"
