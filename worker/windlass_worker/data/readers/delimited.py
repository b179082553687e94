"""Tables of numbers in text, a row a line, cells separated by a comma or the like."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import CorruptionError, UsageError
from windlass_worker.data.dataset import ArrayDataset
from windlass_worker.data.readers.files import line_blocks
from windlass_worker.data.readers.numbers import is_number, refuse


def csv(
    path: str | Path,
    *,
    label: int | str | None = None,
    header: bool = False,
    delimiter: str = ",",
    dtype: npt.DTypeLike = np.float32,
) -> ArrayDataset:
    """Read a table of numbers, plain or gzipped.

    Args:
        label: the column, by number or by its name in the header, that is the label: samples are then
            (row of the others, label), else rows.
        header: the first line holds the columns' names.
        delimiter: one character that is in no number.
        dtype: of the values and labels; numbers are read as float64.

    Raises:
        CorruptionError: a cell is no number, or a line has more or fewer than the first: with file, line, expected
            and found.
    """
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter.isalnum() or delimiter in '+-._"\n\r':
        raise UsageError("a delimiter is one character that is in no number", given=repr(delimiter))
    names: list[str] = []
    parts: list[npt.NDArray[np.float64]] = []
    for first, block in line_blocks(path):
        if header and first == 1:
            line, _, block = block.partition(b"\n")
            names = [name.strip().strip('"') for name in line.decode("utf-8-sig").strip().split(delimiter)]
            first = 2
        width = parts[0].shape[1] if parts else len(names)
        parts += [found] if len(found := _block(path, first, block, delimiter, width)) else []
    if not parts:
        raise CorruptionError("a table has no rows", file=path)
    values = np.concatenate(parts).astype(dtype)
    if label is None:
        return ArrayDataset(values)
    column = _column(label, names, values.shape[1])
    return ArrayDataset(np.delete(values, column, 1), values[:, column].copy())


def _column(label: int | str, names: list[str], width: int) -> int:
    if isinstance(label, str):
        if label not in names:
            raise UsageError("a table has no such column", label=label, next_move=did_you_mean(label, names))
        return names.index(label)
    if not -width <= label < width:
        raise UsageError("a table has no such column", label=label, columns=width)
    return label


def _block(path: Any, first_line: int, block: bytes, delimiter: str, width: int) -> npt.NDArray[np.float64]:
    """The rows of some whole lines, each of `width` cells, or as many as the first has (0: not known yet)."""
    if not block.strip():
        return np.zeros((0, width))
    try:
        splitting = None if delimiter.isspace() else delimiter
        found = np.loadtxt(io.BytesIO(block), delimiter=splitting, comments=None, ndmin=2, encoding="utf-8")
    except ValueError:
        found = np.zeros((0, 0))
    if not found.size or found.shape[1] != (width or found.shape[1]):
        first = next(line for line in block.split(b"\n") if line.strip())
        refuse(path, first_line, block, lambda line: _wrong(line, delimiter, width or len(_cells(first, delimiter))))
    return found


def _cells(line: bytes, delimiter: str) -> list[bytes]:
    return line.split() if delimiter.isspace() else line.split(delimiter.encode())


def _wrong(line: bytes, delimiter: str, width: int) -> tuple[str, str] | None:
    if not line.strip():
        return None
    cells = _cells(line, delimiter)
    if len(cells) != width:
        return f"{width} cells", f"{len(cells)}"
    odd = next((cell for cell in cells if not is_number(cell)), None)
    return None if odd is None else ("a number", odd.strip().decode("utf-8", "replace"))
