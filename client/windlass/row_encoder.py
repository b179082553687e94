"""A row encoder: what a worker's gradients of one table become on their way up, and what arrives down.

Rows are summed by id, then each is encoded by itself (`row_codecs`): what travels depends neither on the link nor on
how many servers a call is cut over. What a row lost is kept by id (`row_residuals`) and goes into its next gradient,
where the codec asks for that.

Invariant: encoding happens once a call, after all its arguments were found good. What was lost changes then, not when
an entry is answered or sent again. The bytes lie in the ticket's room until it is settled.

Owner: the store's lock; `decode` is called by whoever waits for a ticket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass.row_residuals import RowResiduals
from windlass_proto import finite, keys, row_codecs
from windlass_proto.codecs import registry
from windlass_proto.ids import Ids
from windlass_proto.table_specs import TableSpec
from windlass_proto.transfer_specs import Nonfinite

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Runs = list[tuple[range, int, int]]
"""Of a plan's rows, those of each entry: its band, begin and end."""

_HUGE = np.float32(finite.LARGE / 2)


class RowEncoder:
    """See the module.

    Args:
        spec: the declared table; rows travel up or down as something else than they are held in.
        rank: this worker's; part of what chances are drawn from, so that workers draw different ones.
        steps_done: which step of the run this is, over all its resumptions; also part of it.
    """

    def __init__(self, spec: TableSpec, *, rank: int, steps_done: Callable[[], int]) -> None:
        self.dim = spec.dim
        self.up = registry.build_rows(spec.up, spec.dim) if spec.up is not None else None
        self.down = registry.build_rows(spec.down, spec.dim) if spec.down is not None else None
        keeps = spec.up is not None and row_codecs.keeps(spec.up)
        self.residuals = RowResiduals(spec.dim) if keeps else None
        self._clips = spec.transfer.nonfinite is Nonfinite.CLIP
        self._held_row_bytes = spec.dim * spec.held.itemsize
        self._rank = rank
        self._steps_done = steps_done
        self._step, self._calls = -1, 0
        self._seed = keys.mix64(spec.seed ^ getattr(spec.up, "seed", 0))

    def bytes_up(self, rows: int) -> int:
        """How long so many rows are in a push."""
        return rows * self._held_row_bytes if self.up is None else self.up.wire_bytes(rows * self.dim)

    def bytes_down(self, rows: int) -> int:
        """How long so many rows are in an answer."""
        return rows * self._held_row_bytes if self.down is None else self.down.wire_bytes(rows * self.dim)

    def encode(self, ids: Ids, sums: Floats, runs: Runs, room: Bytes, begins: list[int]) -> None:
        """Encode the rows of each run into `room` from its byte on.

        Args:
            ids: each once. sums: their gradients, one after the other.
        """
        assert self.up is not None
        places, kept = self.residuals.take(ids) if self.residuals is not None else (None, None)
        huge = self._huge(sums) if self._clips else None
        if kept is not None and huge is not None:
            kept.reshape(-1, self.dim)[huge] = 0
        seed = self._chance()
        for (_, begin, end), at in zip(runs, begins, strict=True):
            low, high = begin * self.dim, end * self.dim
            wire = room[at : at + self.bytes_up(end - begin)]
            error = kept[low:high] if kept is not None else None
            self.up.encode(sums[low:high], wire, error, row_codecs.seed_at(seed, low))
        if self.residuals is not None and places is not None and kept is not None:
            if huge is not None:
                kept.reshape(-1, self.dim)[huge] = 0
            self.residuals.keep(places, kept)

    def decode(self, rows: int, wire: Bytes, out: Any) -> None:
        """Rows as they arrived into `out`, float32."""
        assert self.down is not None
        self.down.decode_untrusted(wire[: self.bytes_down(rows)], out)

    def rows_of(self, raw: bytes, rows: int) -> Floats:
        """What the server decodes of so many rows of a push."""
        assert self.up is not None
        found = np.empty(rows * self.dim, np.float32)
        self.up.decode_untrusted(np.frombuffer(raw, np.uint8), found)
        return found.reshape(rows, self.dim)

    def _huge(self, sums: Floats) -> npt.NDArray[np.bool_] | None:
        """Rows that hold what "clip" makes of an infinity: their rounding errors are larger than any gradient."""
        if not sums.size or np.abs(sums).max() < _HUGE:
            return None
        found: npt.NDArray[np.bool_] = np.abs(sums.reshape(-1, self.dim)).max(axis=1) >= _HUGE
        return found

    def _chance(self) -> int:
        """The seed of this call: of the table, the step, which call of it this is, the rank."""
        step = self._steps_done()
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        return keys.mix64(keys.mix64(keys.mix64(step << 20 | self._calls) ^ self._rank) ^ self._seed)
