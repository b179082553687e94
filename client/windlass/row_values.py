"""What callers say of rows, checked: ids, gradients, and the arrays that rows are written to.

Invariant: what these functions return is contiguous and of the declared dtype; what they refuse was not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass.arrays import Array, as_numpy, as_target, bfloat16_family_of, check_like, family_of
from windlass.replaced_values import ReplacedValues
from windlass_proto.errors import UsageError
from windlass_proto.layout import DTYPES, HALVES
from windlass_proto.transfer_specs import Nonfinite

Ids = npt.NDArray[np.uint64]
_IDS_SAID: Final = 5


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


class Policy(NamedTuple):
    """What is done with gradients of rows that are not finite, and where it is counted."""

    nonfinite: Nonfinite
    replaced: ReplacedValues
    worker: int


def gradients_of(name: str, grads: Any, ids: Ids, shape: tuple[int, ...], dtype: str, policy: Policy) -> Array:
    """Gradients of rows of `name`, whose dtype is called so, in one line; of half types as float32.

    Raises:
        UsageError: they have another shape or dtype, or are not finite where that is an error.
    """
    array = as_numpy("grads", grads)
    check_like(name, array, shape, DTYPES[dtype], what="a gradient of rows")
    flat: Array = np.ascontiguousarray(array).reshape(-1)
    if dtype in HALVES:
        from windlass_proto.codecs import halves

        widened = np.empty(flat.size, np.float32)
        halves.build(dtype).to_single(flat.view(np.uint16), widened)
        flat = widened
    # The sum of finite values is finite unless it overflows, and costs half of looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(flat.sum()) or np.isfinite(flat).all())
    if finite or policy.nonfinite is Nonfinite.ALLOW:
        return flat
    return _cleaned(name, flat, ids, policy)


def _cleaned(name: str, flat: Array, ids: Ids, policy: Policy) -> Array:
    bad = ~np.isfinite(flat)
    rows = ids[bad.reshape(ids.size, -1).any(axis=1)]
    if policy.nonfinite is Nonfinite.REJECT:
        raise UsageError(
            "a gradient of rows holds values that are not finite",
            table=name,
            rows=in_words(rows),
            worker=policy.worker,
            next_move="Nothing was sent. Look for an overflow or a division by 0.",
        )
    from windlass_proto import finite

    cleaned = np.empty_like(flat)
    finite.build(flat.dtype).cleaned(flat, cleaned, policy.nonfinite)
    policy.replaced.count(name, int(bad.sum()), policy.nonfinite, policy.worker, f" (rows {in_words(rows)})")
    return cleaned


def in_words(ids: Ids) -> str:
    """A few ids, each once."""
    once = np.unique(ids)
    more = f" and {once.size - _IDS_SAID} more" if once.size > _IDS_SAID else ""
    return ", ".join(map(str, once[:_IDS_SAID].tolist())) + more


def target(
    name: str, shape: tuple[int, ...], dtype: str, out: Any, like: Any, brief: Callable[[Array], Any] | None = None
) -> Target:
    """Where rows go: into `out`, or into a fresh array of the family of `like`, `brief` of it if they are bfloat16.

    Raises:
        UsageError: `out` has another shape or dtype, or cannot be written to.
    """
    if out is None:
        fresh: Array = np.empty(shape, DTYPES[dtype])
        family = family_of(like) if dtype != "bfloat16" else brief or bfloat16_family_of(like)
        return Target(fresh.reshape(-1), lambda: family(fresh))
    array = as_target(name, out)
    check_like(name, array, shape, DTYPES[dtype], what="an out array of rows")
    if array.flags.c_contiguous:
        return Target(array.reshape(-1), lambda: out)
    flat: Array = np.empty(array.size, array.dtype)

    def copy() -> Any:
        np.copyto(array, flat.reshape(shape))
        return out

    return Target(flat, copy)
