"""What callers say of rows, checked: ids, gradients, and the arrays that rows are written to.

Invariant: what these functions return is contiguous and of the declared dtype; what they refuse was not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass.arrays import Array, as_numpy, as_target, check_like, family_of
from windlass_proto.errors import UsageError

Ids = npt.NDArray[np.uint64]


class Target(NamedTuple):
    """Where rows arrive in the order asked, and what makes the caller's array of them."""

    flat: Array
    finish: Callable[[], Any]


def ids_of(name: str, ids: Any) -> tuple[Ids, tuple[int, ...]]:
    """Ids of rows of `name` in one line, and their shape.

    Raises:
        UsageError: they are not integers, or one is negative.
    """
    array = as_numpy("ids", ids)
    if array.dtype.kind not in "ui" and array.size:
        raise UsageError(
            "ids are not integers",
            table=name,
            dtype=array.dtype,
            next_move="Pass integers; windlass.hash64 turns strings and others into ids.",
        )
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise UsageError(
            "an id is negative",
            table=name,
            id=int(array.min()),
            next_move="Ids are 0 to 2**64 - 1; windlass.hash64 turns any integers into such.",
        )
    if array.dtype == np.int64:
        array = array.view(np.uint64)  # no id is negative
    return np.ascontiguousarray(array, np.uint64).reshape(-1), array.shape


def gradients_of(name: str, grads: Any, shape: tuple[int, ...], dtype: np.dtype[Any], worker: int) -> Array:
    """Gradients of rows of `name` in one line.

    Raises:
        UsageError: they have another shape or dtype, or are not finite.
    """
    array = as_numpy("grads", grads)
    check_like(name, array, shape, dtype, what="a gradient of rows")
    # The sum of finite values is finite unless it overflows, and costs half of looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(array.sum()) or np.isfinite(array).all())
    if not finite:
        raise UsageError(
            "a gradient of rows holds values that are not finite",
            table=name,
            worker=worker,
            next_move="Nothing was sent. Look for an overflow or a division by 0.",
        )
    return np.ascontiguousarray(array).reshape(-1)


def target(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], out: Any, like: Any) -> Target:
    """Where rows go: into `out`, or into a fresh array of the family of `like`.

    Raises:
        UsageError: `out` has another shape or dtype, or cannot be written to.
    """
    if out is None:
        fresh: Array = np.empty(shape, dtype)
        family = family_of(like)
        return Target(fresh.reshape(-1), lambda: family(fresh))
    array = as_target(name, out)
    check_like(name, array, shape, dtype, what="an out array of rows")
    if array.flags.c_contiguous:
        return Target(array.reshape(-1), lambda: out)
    flat: Array = np.empty(array.size, dtype)

    def copy() -> Any:
        np.copyto(array, flat.reshape(shape))
        return out

    return Target(flat, copy)
