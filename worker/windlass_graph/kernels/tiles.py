"""Small arrays on the stack, for kernels: memory that provably is no one else's.

Invariant: a tile is as long as it was asked for, uninitialised, and lives as long as the kernel's call.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# ruff: noqa: ARG001 - Numba's protocol hands over what not every function here reads


def _tile(typingctx: Any, like: Any, size: Any) -> Any:
    if not isinstance(size, types.IntegerLiteral):
        return None
    elements = size.literal_value
    pointer: Any = types.CPointer

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        allocate: Any = cgutils.alloca_once
        return allocate(builder, context.get_data_type(like.dtype), size=elements)

    return pointer(like.dtype)(like, size), generate


tile: Any = intrinsic(prefer_literal=True)(_tile)
"""tile(like, size): a tile of that many elements of an array's type; `size` is written out."""


def _keep(typingctx: Any, kept_in: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(arguments[0], [arguments[1]], inbounds=True)
        context.pack_value(builder, signature.args[0].dtype, arguments[2], place)
        return context.get_dummy_value()

    return types.void(kept_in, types.intp, kept_in.dtype), generate


keep: Any = intrinsic(_keep)
"""keep(tile, index, value)."""


def _kept(typingctx: Any, kept_in: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(arguments[0], [arguments[1]], inbounds=True)
        return context.unpack_value(builder, signature.args[0].dtype, place)

    return kept_in.dtype(kept_in, types.intp), generate


kept: Any = intrinsic(_kept)
"""kept(tile, index): what was kept there."""
