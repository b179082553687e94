"""The rows of a table with the largest inner products with a query, found where the rows lie.

A hundred million rows stay on the servers; each of their bands answers with its k best, and the worker keeps the k best
of those.

    ids, scores = nearest(store, "item", query, k=10)
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_PAIR = np.dtype([("score", "<f8"), ("id", "<u8")])


def read(part: Any, request: bytes) -> bytes:
    """On a server: the k best rows of `part`, as pairs of score and id."""
    (k,) = struct.unpack_from("<I", request)
    query = np.frombuffer(request, np.float32, offset=4)
    if query.size != part.dim:
        raise ValueError(f"a query of {query.size} values for rows of {part.dim}")
    best = np.empty(0, _PAIR)
    for ids, rows in part.chunks():
        found = np.empty(ids.size, _PAIR)
        found["score"], found["id"] = rows @ query.astype(np.float64), ids
        best = _best(np.concatenate([best, found]), k)
    return best.tobytes()


def nearest(
    store: Any, table: str, query: npt.NDArray[np.float32], *, k: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    """On a worker: ids and scores of the k best rows of `table`, best first."""
    request = struct.pack("<I", k) + np.ascontiguousarray(query, np.float32).tobytes()
    answers = store.read("nearest", table, request, answer_bytes=k * _PAIR.itemsize)
    best = _best(np.concatenate([np.frombuffer(answer, _PAIR) for answer in answers]), k)
    return best["id"].copy(), best["score"].copy()


def _best(pairs: npt.NDArray[Any], k: int) -> npt.NDArray[Any]:
    """The k pairs with the highest scores; of equal ones those with the lower ids."""
    return pairs[np.lexsort((pairs["id"], -pairs["score"]))[:k]]
