"""Row changes: which rows of a band are new, updated or gone since it was last copied for a checkpoint.

Invariant: whoever calls holds the share's lock. A row number is noted while it holds another row, or other values, than
the copy has; an id is noted as gone though it may have come again, since a reader takes away first and then puts in.
Noted are a byte a row and the ids that went; where these would be more than the rows, the changes are `lost`, and the
next copy is whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto import memory
from windlass_proto.ids import NONE, Ids

Numbers = npt.NDArray[np.uint32]

_GONE_MIN = 1 << 16  # so many ids may go whatever is left


class RowChanges:
    """Since the copy of the save `since`, of a band with room for `rows_max` rows."""

    def __init__(self, since: str, rows_max: int) -> None:
        self.since = since
        self.lost = False
        self._changed: npt.NDArray[np.uint8] = memory.reserve(rows_max)[1]
        self._gone: list[npt.NDArray[Any]] = []
        self._gone_count = 0

    def update(self, numbers: Numbers) -> None:
        """These rows, NONE aside, are new or have other values."""
        self._changed[numbers[numbers != NONE]] = 1

    def erase(self, numbers: Numbers, ids: Ids, rows_left: int) -> None:
        """These rows, which held `ids`, are gone."""
        self._changed[numbers] = 0
        self._gone.append(ids)
        self._gone_count += ids.size
        if self._gone_count > max(_GONE_MIN, rows_left):
            self.lost, self._gone, self._gone_count = True, [], 0

    def numbers(self, used: int) -> Numbers:
        """The rows to copy, of the first `used`, ascending."""
        return np.flatnonzero(self._changed[:used]).astype(np.uint32)

    def erased(self) -> Ids:
        """Every id that went, in no order that means anything."""
        return np.unique(np.concatenate(self._gone)) if self._gone else np.empty(0, np.uint64)
