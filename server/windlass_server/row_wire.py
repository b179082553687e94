"""How rows of a sparse table travel: what an entry's bytes must be, and what they say.

    up     ids u64 | zeros to 64 | rows, one after the other, as they are or encoded (`row_codecs`)
    down   rows, as they are held or as halves

Rows are decoded here, before the band's lock is taken, into pooled buffers of what the table is held in, and encoded
when an answer is made: cores, rules and row tables know nothing of it.

Invariant: nothing a peer sent is used before its length and its scales are checked. Any thread may call it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.codecs import registry
from windlass_proto.errors import ProtocolError, UnavailableError
from windlass_proto.frames import aligned
from windlass_proto.ids import Ids
from windlass_proto.memory import Buffer, BufferPool
from windlass_proto.table_specs import TableSpec
from windlass_server.dense_memory import Values, Vector
from windlass_server.gradient_cleaning import GradientCleaning
from windlass_server.group_wire import Traffic

Bytes = npt.NDArray[np.uint8]


class RowWire:
    """The wire of one table.

    Args:
        spec: the declared table.
        pool: where decoded rows wait until they are applied.
    """

    def __init__(self, spec: TableSpec, pool: BufferPool) -> None:
        self.traffic = Traffic()
        self.cleaning = GradientCleaning(spec.transfer.nonfinite, spec.held, pool)
        self._name = spec.name
        self._dim = spec.dim
        self._held = spec.held
        self._pool = pool
        self._up = registry.build_rows(spec.up, spec.dim) if spec.up is not None else None
        self._down = registry.build_rows(spec.down, spec.dim) if spec.down is not None else None

    @property
    def held_row_bytes(self) -> int:
        """A row as it is held."""
        return self._dim * self._held.itemsize

    @property
    def decodes(self) -> bool:
        """Do rows of a push need room to be decoded into?"""
        return self._up is not None

    # ---- up ----------------------------------------------------------------------------------------------------------

    def bytes_up(self, count: int) -> int:
        """How long the rows of a push of so many are."""
        return count * self.held_row_bytes if self._up is None else self._up.wire_bytes(count * self._dim)

    def rows_untrusted(
        self, raw: Bytes, held: Buffer | None, ids: Ids, rank: int, *, band: int, extends: bool
    ) -> Values | None:
        """The rows of a push; None where the pool has no room to decode them.

        Args:
            raw: of `bytes_up`; in `held`, which the caller holds, or (None) in a worker's shared memory.
            extends: they belong to an open step, so there must be room for them.

        Raises:
            ProtocolError: they cannot be read.
        """
        self.traffic.bytes_in += aligned(ids.nbytes) + raw.nbytes
        self.traffic.raw_in += aligned(ids.nbytes) + ids.size * self.held_row_bytes
        if self._up is None:
            if held is not None:
                held.hold()
            values = Values(raw.view(self._held), held)
        else:
            try:
                buffer = self._pool.take(ids.size * self.held_row_bytes, beyond=extends)
            except UnavailableError:
                return None
            try:
                self._up.decode_untrusted(raw, buffer.array.view(self._held))
            except ProtocolError:
                buffer.release()
                raise
            values = Values(buffer.array.view(self._held), buffer)
        return self.cleaning.cleaned(values, rank, band, lambda array: self._rows_in_words(array, ids))

    def _rows_in_words(self, rows: Vector, ids: Ids) -> list[str]:
        bad = ~np.isfinite(rows.reshape(ids.size, self._dim)).all(axis=1)
        return [f"{self._name}[{item}]" for item in ids[bad].tolist()]

    # ---- down --------------------------------------------------------------------------------------------------------

    def bytes_down(self, count: int) -> int:
        """How long so many rows are on their way to a worker."""
        return count * self.held_row_bytes if self._down is None else self._down.wire_bytes(count * self._dim)

    @property
    def answers_in(self) -> np.dtype[Any]:
        """What an answer's memory is seen as: bytes where rows are encoded."""
        return self._held if self._down is None else np.dtype(np.uint8)

    def count_down(self, count: int) -> None:
        """So many rows go to a worker."""
        self.traffic.bytes_out += self.bytes_down(count)
        self.traffic.raw_out += count * self.held_row_bytes

    def take_rows(self, count: int) -> Buffer | None:
        """Room for rows that are to be encoded; None: they are read to where they are answered."""
        return None if self._down is None else self._pool.take(count * self.held_row_bytes, beyond=True)

    def encode(self, rows: Buffer, out: Bytes) -> None:
        """Write `rows` into `out`, of `bytes_down`; they go back."""
        assert self._down is not None
        self._down.encode(rows.array.view(self._held), out)
        rows.release()
