"""Operators and methods that symbols and arrays share: `x + 1`, `x @ w`, `x.reshape(-1, 4)`, `x.mean(axis=0)`.

Invariant: no method computes; each names an op, and the front of the operand applies it.
"""

from __future__ import annotations

from typing import Any, Self

from windlass_graph.functions import apply
from windlass_graph.op import lookup


class Operand:
    """What stands for a tensor in an expression."""

    __slots__ = ()
    __array_priority__ = 1000.0  # NumPy leaves mixed expressions to us
    __array_ufunc__ = None

    def _unary(self, name: str, **attrs: Any) -> Self:
        result: Self = apply(lookup(name), (self,), attrs)
        return result

    def _binary(self, name: str, other: Any) -> Self:
        result: Self = apply(lookup(name), (self, other), {})
        return result

    def _reflected(self, name: str, other: Any) -> Self:
        result: Self = apply(lookup(name), (other, self), {})
        return result

    def __add__(self, other: Any) -> Self:
        return self._binary("add", other)

    def __radd__(self, other: Any) -> Self:
        return self._reflected("add", other)

    def __sub__(self, other: Any) -> Self:
        return self._binary("subtract", other)

    def __rsub__(self, other: Any) -> Self:
        return self._reflected("subtract", other)

    def __mul__(self, other: Any) -> Self:
        return self._binary("multiply", other)

    def __rmul__(self, other: Any) -> Self:
        return self._reflected("multiply", other)

    def __truediv__(self, other: Any) -> Self:
        return self._binary("divide", other)

    def __rtruediv__(self, other: Any) -> Self:
        return self._reflected("divide", other)

    def __floordiv__(self, other: Any) -> Self:
        return self._binary("floor_divide", other)

    def __mod__(self, other: Any) -> Self:
        return self._binary("mod", other)

    def __pow__(self, other: Any) -> Self:
        return self._binary("power", other)

    def __rpow__(self, other: Any) -> Self:
        return self._reflected("power", other)

    def __matmul__(self, other: Any) -> Self:
        return self._binary("matmul", other)

    def __rmatmul__(self, other: Any) -> Self:
        return self._reflected("matmul", other)

    def __neg__(self) -> Self:
        return self._unary("negative")

    def __abs__(self) -> Self:
        return self._unary("absolute")

    def __eq__(self, other: object) -> Any:
        return self._binary("equal", other)

    def __ne__(self, other: object) -> Any:
        return self._binary("not_equal", other)

    def __lt__(self, other: Any) -> Self:
        return self._binary("less", other)

    def __le__(self, other: Any) -> Self:
        return self._binary("less_equal", other)

    def __gt__(self, other: Any) -> Self:
        return self._binary("greater", other)

    def __ge__(self, other: Any) -> Self:
        return self._binary("greater_equal", other)

    __hash__ = object.__hash__

    def reshape(self, *shape: Any) -> Self:
        """In another shape; one axis may be -1, and 0 keeps the axis of that place."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return self._unary("reshape", shape=wanted)

    def transpose(self, *axes: int) -> Self:
        return self._unary("transpose", axes=axes or None)

    def astype(self, dtype: Any) -> Self:
        return self._unary("cast", dtype=dtype)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Self:
        return self._unary("sum", axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Self:
        return self._unary("mean", axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Self:
        return self._unary("max", axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Self:
        return self._unary("min", axis=axis, keepdims=keepdims)

    def argmax(self, axis: int = -1) -> Self:
        return self._unary("argmax", axis=axis)

    def exp(self) -> Self:
        return self._unary("exp")

    def log(self) -> Self:
        return self._unary("log")

    def sqrt(self) -> Self:
        return self._unary("sqrt")

    def relu(self) -> Self:
        return self._unary("relu")

    def sigmoid(self) -> Self:
        return self._unary("sigmoid")

    def tanh(self) -> Self:
        return self._unary("tanh")

    def softmax(self, axis: int = -1) -> Self:
        return self._unary("softmax", axis=axis)

    def expand_dims(self, axis: int) -> Self:
        return self._unary("expand_dims", axis=axis)

    def squeeze(self, axis: Any = None) -> Self:
        return self._unary("squeeze", axis=axis)

    def flatten(self) -> Self:
        """The first axis stays, the others become one."""
        return self._unary("flatten")
