"""Machine code of a whole tree of calls at once.

Numba optimises each function together with all that it calls, and all of those again in what calls them: of the 45 seconds that
the simulator's 240 functions took, that was 30. Here a function that only compiled ones call stays as it was translated.
One that Python calls takes in all that it needs, once, and is optimised once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, PassManager, register_pass
from numba.core.typed_passes import NativeLowering

LOG = logging.getLogger(__name__)


class PartCompiler(CompilerBase):
    """Translates what only compiled functions call."""

    def define_pipelines(self) -> list[PassManager]:
        self.state.library = _Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.flags.no_compile = True
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_OfferToOthers, NativeLowering)
        passes.finalize()
        return [passes]


class WholeCompiler(CompilerBase):
    """Compiles what Python calls, with all that it needs."""

    def define_pipelines(self) -> list[PassManager]:
        self.state.library = _Whole(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.library.enable_object_caching()
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]

    def compile_extra(self, function: Any) -> Any:
        LOG.info("compiling %s", function.__qualname__)
        with _no_collection():
            return super().compile_extra(function)


class _Part(JITCodeLibrary):
    """One function, as it was translated."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True

    def _get_module_for_linking(self) -> Any:
        self._ensure_finalized()
        return self._final_module


class _Whole(JITCodeLibrary):
    """A function, and each one that it needs, once."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._linking_libraries = _needed(self)
        self._entries = {function.name for function in _defined(self._final_module)}
        super().finalize()

    def _optimize_final_module(self) -> None:
        """Nobody else can call the parts: so what they do to memory is known to those that call them."""
        for function in _defined(self._final_module):
            if function.name not in self._entries:
                function.linkage = "internal"
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


def _defined(module: Any) -> list[Any]:
    return [function for function in module.functions if not function.is_declaration]


def _needed(library: JITCodeLibrary) -> list[JITCodeLibrary]:
    found: dict[JITCodeLibrary, None] = {}
    ahead = list(library._linking_libraries)
    while ahead:
        one = ahead.pop()
        if one not in found:
            found[one] = None
            # Numba's own functions already have in them what they call.
            ahead += one._linking_libraries if isinstance(one, _Part) else []
    return list(found)


@register_pass(mutates_CFG=False, analysis_only=False)
class _OfferToOthers(LoweringPass):
    """Let compiled functions call one that has no machine code yet."""

    _name = "offer_to_others"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        lowered = state["cr"]
        described = lowered.fndesc
        # Numba's name for it is a function of Python. Nothing ever runs this one: it has no code.
        name = _dynfunc.make_function(
            described.lookup_module(), described.qualname, "", 0, lowered.env, (state.library,)
        )
        state.targetctx.insert_user_function(name, described, [state.library])
        state["cr"] = lowered._replace(cfunc=name)
        return True


@contextmanager
def _no_collection() -> Iterator[None]:
    """Numba makes millions of objects that stay until it is through: looking for garbage among them is a tenth of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
