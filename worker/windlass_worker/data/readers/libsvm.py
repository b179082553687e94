"""Sparse rows of text, `label id:value id:value ...`: the format of LIBSVM, libFM and their like.

Reference: C.-C. Chang and C.-J. Lin, LIBSVM: A Library for Support Vector Machines, 2011; S. Rendle, Factorization
Machines with libFM, 2012.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError
from windlass_worker.data.dataset import Dataset, Rows, checked
from windlass_worker.data.readers.files import line_blocks
from windlass_worker.data.readers.numbers import is_number, refuse, tokens, worth

_COLON = ord(":")
_ID_MAX = 2**53  # what a float64 holds exactly


class SparseRows(Dataset):
    """Rows of (ids, values), one behind the other: row i has entries `offsets[i]` to `offsets[i + 1]`.

    A sample is (ids, values, label): views of int64, float32 and one float32.
    """

    def __init__(
        self, labels: npt.NDArray[np.float32], ids: Rows, values: npt.NDArray[np.float32], offsets: Rows
    ) -> None:
        self.labels = labels
        self.ids = ids
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        index = checked(index, len(self.labels))
        entries = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[entries], self.values[entries], self.labels[index]

    def padded(self, width: int | None = None, *, fill: int = 0) -> tuple[Rows, npt.NDArray[np.float32]]:
        """Ids and values as (rows, width) arrays; entries that a row lacks are id `fill` with value 0.

        `width` is the longest row's unless given; a longer row is a UsageError.
        """
        lengths = np.diff(self.offsets)
        longest = int(lengths.max(initial=0))
        width = longest if width is None else width
        if longest > width:
            raise UsageError(
                "a row has more entries than the width", row=int(lengths.argmax()), entries=longest, width=width
            )
        held = np.arange(width) < lengths[:, None]
        ids = np.full(held.shape, fill, np.int64)
        values = np.zeros(held.shape, np.float32)
        ids[held], values[held] = self.ids, self.values
        return ids, values


def libsvm(path: str | Path) -> SparseRows:
    """Read such a file, plain or gzipped; ids stay as they stand there, and `#` begins a comment.

    Raises:
        CorruptionError: a line is something else: with file, line, what was expected and what was found.
    """
    blocks = [_block(path, first, block) for first, block in line_blocks(path)]
    labels, ids, values, lengths = (
        (np.concatenate(parts) for parts in zip(*blocks, strict=True)) if blocks else _NOTHING
    )
    offsets = np.zeros(len(labels) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return SparseRows(labels, ids, values, offsets)


_NOTHING: Any = (np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))


def _block(path: str | Path, first_line: int, block: bytes) -> Any:
    """Labels, ids, values and entries a row of some whole lines."""
    if b"#" in block:
        block = re.sub(rb"#[^\n]*", b"", block)
    found = tokens(block, _COLON)
    if not len(found.begins):
        return _NOTHING
    leads = found.firsts
    ids_at = np.flatnonzero(found.after() == _COLON)
    values_at = np.flatnonzero(found.before() == _COLON)
    rest = np.flatnonzero(~leads)
    paired = len(rest) == 2 * len(ids_at) and block.count(b":") == len(ids_at)
    numbers = worth(found)
    if not (paired and (rest[0::2] == ids_at).all() and np.array_equal(ids_at + 1, values_at)) or numbers is None:
        refuse(path, first_line, block, _wrong)
    ids = numbers[ids_at]
    if not ((ids >= 0) & (ids < _ID_MAX) & (ids == np.floor(ids))).all():
        refuse(path, first_line, block, _wrong)
    lengths = np.diff(np.append(np.flatnonzero(leads), len(leads))) // 2
    return numbers[leads].astype(np.float32), ids.astype(np.int64), numbers[values_at].astype(np.float32), lengths


def _wrong(line: bytes) -> tuple[str, str] | None:
    label, *entries = line.split() or [b"0"]
    if not is_number(label):
        return "a label", label.decode("ascii", "replace")
    for entry in entries:
        parts = entry.split(b":")
        if len(parts) != 2 or not (parts[0].isdigit() and int(parts[0]) < _ID_MAX and is_number(parts[1])):
            return "id:value", entry.decode("ascii", "replace")
    return None
