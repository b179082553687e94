"""Ids from whatever names a thing: strings, bytes, integers of either sign.

Invariant: equal values have equal ids on every machine and in every release. Integers are mixed (a bijection, so they
never collide), strings and bytes hashed with XXH3-64: among n of them two share an id with a probability of about
n**2 / 2**65, a thousandth for two hundred million.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError


def hash64(values: Any) -> npt.NDArray[np.uint64]:
    """Ids for `values`, in their shape: integers of any dtype and sign, str (as UTF-8) or bytes.

    >>> hash64([-1, 7]).tolist()
    [13029008266876403067, 1346066267577507604]

    Raises:
        UsageError: a value is none of these.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        x = array.astype(np.int64).view(np.uint64) if array.dtype.kind == "i" else array.astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
        return mixed
    import xxhash

    if array.dtype.kind == "S":  # NumPy drops a byte string's last zeros
        array = np.asarray(values, dtype=object)
    found = np.empty(array.shape, np.uint64)
    for at, value in np.ndenumerate(array):
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes):
            raise UsageError(
                "a value cannot be hashed to an id", type=type(value).__name__, next_move="Pass integers, str or bytes."
            )
        found[at] = xxhash.xxh3_64_intdigest(value)
    return found
