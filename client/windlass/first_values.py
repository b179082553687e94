"""Values as they are given to `init` and `assign`, and steps to which a worker gives nothing.

Invariant: what `in_halves` returns is NumPy, of the dtype that is declared; bfloat16, which NumPy lacks, as its bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass import actions
from windlass.arrays import Array, as_numpy, is_bfloat16
from windlass_proto.errors import UsageError
from windlass_proto.frames import Op
from windlass_proto.layout import DTYPES, HALVES

if TYPE_CHECKING:
    from windlass.store import Store


def arrays_of(call: str, arrays: object) -> dict[str, Array]:
    """The NumPy arrays of a dict of arrays.

    Raises:
        UsageError: it is no dict, or a value is no array.
    """
    if not isinstance(arrays, Mapping):
        raise UsageError(f"{call} was not given a dict", type=type(arrays).__name__, next_move="Pass name -> array.")
    return {name: as_numpy(name, value) for name, value in arrays.items()}


def in_halves(arrays: Mapping[str, Any], dtype: str | None) -> tuple[dict[str, Array], dict[str, str]]:
    """First values as they are declared, and the dtypes that NumPy's own do not say.

    `dtype`: "float16" or "bfloat16" of all of them: float32 is rounded to it, uint16 is taken for its bits.

    Raises:
        UsageError: `dtype` is another, or an array can be neither.
    """
    given = arrays_of("init", arrays)
    named = {name: "bfloat16" for name, value in arrays.items() if is_bfloat16(value)}
    if dtype is None:
        return given, named
    if dtype not in HALVES:
        raise UsageError("dtype= of init is for half types", dtype=dtype, known=", ".join(HALVES))
    from windlass_proto.codecs import halves

    for name, array in given.items():
        if array.dtype == np.float32:
            rounded = np.empty(array.size, np.uint16)
            halves.build(dtype).to_half(np.ascontiguousarray(array).reshape(-1), rounded)
            given[name] = rounded.reshape(array.shape).view(DTYPES[dtype])
        elif array.dtype != DTYPES[dtype]:
            raise UsageError(
                "an array is neither float32 nor of the half type that it is to be declared as",
                name=name,
                got=array.dtype,
                dtype=dtype,
                next_move="Convert it, for example with array.astype('float32').",
            )
        named[name] = dtype
    return given, named


def assign(store: Store, arrays: Mapping[str, Any]) -> None:
    """Have one worker overwrite tensors of `store`, the others wait; see `Store.assign`."""
    given = {name: as_numpy(name, value) for name, value in arrays.items()}
    store.exchange.by_table(given, what="an assigned array")
    action = actions.agree(store, "assign", sorted(given), actions.digest_of(given), actions.in_words(given))
    if action is not None:
        ticket, requests = store.ticket_of(Op.ASSIGN, store.exchange.push_plan(Op.ASSIGN, given, None))
        store.member.pump.submit(requests)
        ticket.result()
        actions.agreed(store, action)


def skip(store: Store, out: Mapping[str, Any] | None) -> dict[str, Any]:
    """Close the step of `store` with nothing; see `Store.skip`."""
    with store._lock:
        store.check_between_steps("skip")
        store.open.pushed = True  # nothing was, but the pull closes the step
        ticket = store.pull(None if out is None else list(out), out)
    result: dict[str, Any] = ticket.result()
    return result
