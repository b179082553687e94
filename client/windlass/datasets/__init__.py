"""Small real data sets that travel with the package, read with NumPy alone.

They exist so that an example, a demo or a test learns something real without a download. Nothing is cached:
every call returns fresh arrays that the caller owns.
"""

from __future__ import annotations

import gzip
from importlib.resources import files

import numpy as np
import numpy.typing as npt

__all__ = ["load_digits"]

_DIGIT_PIXELS = 64
_DIGIT_LEVELS = 16  # a cell of the original bitmap has 4 x 4 binary pixels


def load_digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read the 1,797 handwritten digits of the UCI repository (8 x 8 grey values, test part, CC BY 4.0).

    Returns:
        `x`, float32, C-contiguous, shape (1797, 64), each row an image row by row, values 0 to 1, and
        `y`, int64, shape (1797,), the digit each image shows. Both belong to the caller.

    Example:
        >>> x, y = load_digits()
        >>> x.shape, y.shape, float(x.min()), float(x.max())
        ((1797, 64), (1797,), 0.0, 1.0)

    Reference: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998,
    DOI 10.24432/C50P49.
    """
    text = gzip.decompress(files(__name__).joinpath("digits.csv.gz").read_bytes()).decode("ascii")
    rows = np.array([line.split(",") for line in text.splitlines()], dtype=np.int64)
    x = rows[:, :_DIGIT_PIXELS].astype(np.float32) / np.float32(_DIGIT_LEVELS)
    return np.ascontiguousarray(x), rows[:, _DIGIT_PIXELS].copy()
