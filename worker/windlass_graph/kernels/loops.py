"""A loop over arrays as machine code, made when it is first called with a dtype.

Invariant: importing a module that holds loops imports no compiler. What a loop is called with has exactly the types
that its `parameters` name, so nothing is compiled a second time and a wrong dtype is an error, not a conversion.

    r R   an array of the loop's real dtype (float32 or float64), for reading or for writing; a digit tells the axes
    i I   an array of int32
    l L   an array of int64
    d D   an array of float64
    n     a whole number        x   a real number of the loop's dtype        y   a float64

Arrays are C-contiguous. The real dtype is that of the first `r` or `R`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ELEMENTS: Final = {"i": "int32", "l": "int64", "d": "float64"}


class Loop:
    """`function`, which Numba understands, behind a call that compiles it for the dtype of its real arrays."""

    __slots__ = ("_function", "_kernels", "_parameters", "_real")

    def __init__(self, function: Callable[..., Any], parameters: str) -> None:
        self._function = function
        self._parameters = parameters.split()
        self._real = next(at for at, code in enumerate(self._parameters) if code[0] in "rR")
        self._kernels: dict[str, Callable[..., Any]] = {}  # by dtype; two threads that compile at once get one code

    def __call__(self, *arguments: Any) -> Any:
        kernel = self._kernels.get(arguments[self._real].dtype.char)
        if kernel is None:
            kernel = self._compiled(arguments[self._real].dtype)
        return kernel(*arguments)

    def _compiled(self, dtype: np.dtype[Any]) -> Callable[..., Any]:
        from numba import types

        from windlass_proto import kernel_cache

        real = kernel_cache.scalar_type(dtype)

        def kind(code: str) -> Any:
            if code in "nxy":
                return {"n": types.intp, "x": real, "y": types.float64}[code]
            letter = code[0].lower()
            element = real if letter == "r" else getattr(types, _ELEMENTS[letter])
            return types.Array(element, int(code[1:]), "C", readonly=code[0].islower())

        signature = types.void(*(kind(code) for code in self._parameters))
        kernel = kernel_cache.compiled(self._function, [signature], dtype)
        self._kernels[dtype.char] = kernel
        return kernel


def loop(parameters: str) -> Callable[[Callable[..., Any]], Loop]:
    """Decorator: the function becomes a `Loop` with these parameters."""
    return lambda function: Loop(function, parameters)
