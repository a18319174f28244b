"""Named tuples that compiled functions take by reference.

Numba hands a tuple over as one argument for every number in it: some three hundred for the state of the simulator. Functions
that call each other with it are mostly the passing on of those, which is what compiling took its time for.
"""

from __future__ import annotations

from typing import Any, TypeVar

from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

T = TypeVar("T", bound=type)


def by_reference(made: T) -> T:
    """Let compiled functions take instances of a class of named tuples as one pointer, and read their fields from there."""

    @typeof_impl.register(made)
    def type_of(value: Any, context: Any) -> Reference:
        return Reference(made, tuple(typeof_impl(field, context) for field in value))

    return made


class Reference(types.Type):
    """Numba's type of a pointer to a named tuple. What is pointed to lasts as long as the call from Python, and stays as it is:
    its arrays may change, but not which ones they are."""

    def __init__(self, made: type, field_types: tuple[types.Type, ...]) -> None:
        self.tuple = types.NamedTuple(field_types, made)
        super().__init__(name=f"Reference[{self.tuple.name}]")

    @property
    def key(self) -> Any:
        return self.tuple.key


@register_model(Reference)
class _ReferenceModel(models.PrimitiveModel):
    def __init__(self, manager: Any, reference: Reference) -> None:
        super().__init__(manager, reference, cgutils.voidptr_t)


@infer_getattr
class _Fields(AttributeTemplate):
    key = Reference

    def generic_resolve(self, reference: Reference, name: str) -> types.Type | None:
        names = reference.tuple.fields
        return reference.tuple.types[names.index(name)] if name in names else None


@lower_getattr_generic(Reference)
def _read(context: Any, builder: Any, reference: Reference, pointer: Any, name: str) -> Any:
    place = reference.tuple.fields.index(name)
    fields = builder.bitcast(pointer, context.get_value_type(reference.tuple).as_pointer())
    return builder.load(cgutils.gep_inbounds(builder, fields, 0, place))


@unbox(Reference)
def _unbox(reference: Reference, value: Any, c: Any) -> NativeValue:
    """On the stack of the function that Python calls."""
    native = c.unbox(reference.tuple, value)
    pointer = cgutils.alloca_once_value(c.builder, native.value)
    pointer = c.builder.bitcast(pointer, cgutils.voidptr_t)
    return NativeValue(pointer, is_error=native.is_error, cleanup=native.cleanup)
