"""The check mode of lent buffers: were they left alone until their push was acknowledged?

On with WINDLASS_CHECK_BUFFERS=1 (windlass's own tests set it): a digest of every lent array is taken when it is sent
and compared when its ticket is waited for. It costs a pass over the values each time, so it is off by default.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError

_ON = os.environ.get("WINDLASS_CHECK_BUFFERS", "") not in ("", "0")


class Borrowed:
    """Digests of lent arrays."""

    def __init__(self, arrays: dict[int, npt.NDArray[Any]]) -> None:
        self._arrays = arrays
        self._digests = {number: _digest(array) for number, array in arrays.items()}

    @classmethod
    def check(cls, arrays: dict[int, npt.NDArray[Any]]) -> Borrowed | None:
        """Take digests where the mode is on."""
        return cls(arrays) if _ON else None

    def verify(self) -> None:
        """Compare.

        Raises:
            UsageError: an array was written to while it was lent.
        """
        for number, array in self._arrays.items():
            if _digest(array) != self._digests[number]:
                raise UsageError(
                    "an array was written to while it was lent",
                    shape=array.shape,
                    next_move="Wait for the push's ticket before writing to it.",
                )


def _digest(array: npt.NDArray[Any]) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)
