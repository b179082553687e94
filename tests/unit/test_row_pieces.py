"""Rows of a tensor in its segments."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto.row_pieces import RowPieces


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_pieces_of_all_segments_put_together_are_the_rows(data: st.DataObject) -> None:
    width, count = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    size = width * count
    borders = sorted({0, size, *data.draw(st.lists(st.integers(1, size), max_size=6))})
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1)))), np.uint64)
    tensor = np.arange(1, size + 1, dtype=np.float32)
    scattered, gathered, at = np.zeros_like(tensor), [], 0
    values = tensor.reshape(count, width)[rows.astype(np.int64)].reshape(-1)
    for begin, end in itertools.pairwise(borders):
        pieces = RowPieces(begin, end, width)
        mine = rows[np.searchsorted(rows, pieces.rows.start) : np.searchsorted(rows, pieces.rows.stop)]
        found = np.zeros(pieces.elements(mine), np.float32)
        pieces.gather(tensor[begin:end], mine, found)
        gathered.append(found)
        pieces.scatter(values[at : at + found.size], mine, scattered[begin:end])
        at += found.size
    assert np.array_equal(np.concatenate(gathered), values)
    dense = np.zeros((count, width), np.float32)
    dense[rows.astype(np.int64)] = values.reshape(-1, width)
    assert np.array_equal(scattered, dense.reshape(-1))
