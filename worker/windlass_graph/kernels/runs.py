"""Intrinsics for loops over short runs of elements: copied, or added, by whole vectors of 32 bytes.

    copy_run(target, to, source, at, n)    target[to : to + n] = source[at : at + n]
    add_run(target, to, source, at, n)     target[to : to + n] += source[at : at + n]

Rows of images are 5 to 30 elements long. A loop whose length the compiler does not know is unrolled for hundreds, and
spends its time at its ends: the columns of LeNet's second convolution took 2.7 ms as slices and 0.46 ms with these.

Arrays are 1-D and contiguous; n >= 0; source and target are two arrays. This module imports Numba: it is imported
where loops are compiled, not before.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

VECTOR_BYTES: Final = 32


def _run(adds: bool) -> Any:
    def typed(typingctx: Any, target: Any, to: Any, source: Any, at: Any, n: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            element = context.get_data_type(signature.args[0].dtype)
            itemsize = context.get_abi_sizeof(element)

            def begin(k: int) -> Any:
                base = context.make_array(signature.args[k])(context, builder, arguments[k]).data
                return builder.gep(base, [arguments[k + 1]])

            write, read, done = begin(0), begin(2), ir.Constant(arguments[4].type, 0)
            for held in (VECTOR_BYTES // itemsize, 1):
                kind = ir.VectorType(element, held) if held > 1 else element
                count = builder.udiv(builder.sub(arguments[4], done), ir.Constant(done.type, held))
                with cgutils.for_range(builder, count) as loop:
                    step = builder.add(done, builder.mul(loop.index, ir.Constant(done.type, held)))
                    source_here = builder.bitcast(builder.gep(read, [step]), kind.as_pointer())
                    target_here = builder.bitcast(builder.gep(write, [step]), kind.as_pointer())
                    value = builder.load(source_here, align=itemsize)
                    if adds:
                        value = builder.fadd(builder.load(target_here, align=itemsize), value)
                    builder.store(value, target_here, align=itemsize)
                done = builder.add(done, builder.mul(count, ir.Constant(done.type, held)))
            return context.get_dummy_value()

        return types.void(target, to, source, at, n), generate

    return typed


copy_run: Any = intrinsic(_run(adds=False))
add_run: Any = intrinsic(_run(adds=True))
