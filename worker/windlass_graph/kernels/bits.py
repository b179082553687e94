"""Operations of one machine instruction that Numba has no name for, as functions for kernels.

Invariant: each becomes a single LLVM instruction or intrinsic. But for `fmod` none is a call, so a loop that uses them
is still vectorised: `select` is no branch, `load` and `store` do not wrap negative indices around (the caller's index
lies inside the array), `floor` and its kin stay floats.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# ruff: noqa: ARG001 - Numba's protocol hands over what not every function here reads


def _bit_cast(source: Any, target: Any) -> Any:
    def typing(typingctx: Any, value: Any) -> Any:
        if value != source:
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return intrinsic(typing)


bits_of: Any = _bit_cast(types.float32, types.int32)
"""The bits of a float32 as an int32."""

float_of: Any = _bit_cast(types.int32, types.float32)
"""The float32 with these bits."""


def _select(typingctx: Any, condition: Any, one: Any, other: Any) -> Any:
    if condition != types.boolean or one != other:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return one(condition, one, other), generate


select: Any = intrinsic(_select)
"""select(condition, one, other): `one` where the condition holds; both are computed. Their types are one."""


def _rounding(name: str) -> Any:
    def typing(typingctx: Any, value: Any) -> Any:
        if not isinstance(value, types.Float):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.call(builder.module.declare_intrinsic(name, [arguments[0].type]), arguments)

        return value(value), generate

    return intrinsic(typing)


floor: Any = _rounding("llvm.floor")
ceil: Any = _rounding("llvm.ceil")
trunc: Any = _rounding("llvm.trunc")
rint: Any = _rounding("llvm.rint")
sqrt: Any = _rounding("llvm.sqrt")
magnitude: Any = _rounding("llvm.fabs")


def _copysign(typingctx: Any, value: Any, sign: Any) -> Any:
    if not isinstance(value, types.Float) or value != sign:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = ir.FunctionType(kind, [kind, kind])
        return builder.call(builder.module.declare_intrinsic("llvm.copysign", [kind], function), arguments)

    return value(value, value), generate


def _fmod(typingctx: Any, value: Any, divisor: Any) -> Any:
    if not isinstance(value, types.Float) or value != divisor:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.frem(*arguments)

    return value(value, value), generate


fmod: Any = intrinsic(_fmod)
"""fmod(value, divisor), of one float type: C's, with the sign of the value. libm is called."""

copysign: Any = intrinsic(_copysign)
"""copysign(value, sign), of one float type."""


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    base = context.make_array(array_type)(context, builder, array).data
    return builder.gep(base, [index], inbounds=True)


def _load(typingctx: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments)
        return context.unpack_value(builder, signature.args[0].dtype, place)

    return array.dtype(array, types.intp), generate


load: Any = intrinsic(_load)
"""load(array, index): one element of a contiguous array."""


def _store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        place = _place(context, builder, array_type, *arguments[:2])
        context.pack_value(builder, array_type.dtype, arguments[2], place)
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


store: Any = intrinsic(_store)
"""store(array, index, value): write one element of a contiguous array."""
