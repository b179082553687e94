"""Copies that a checkpoint writes from: a block of a dense group, a band of a sparse table.

Both are filled under their share's lock, when the steps before the checkpoint's are complete on it, and turned into
named arrays in the disk's thread. Until then nothing else reads them.

A copy knows what has changed since the save whose parts are read beside its own (`base`), and holds no more where that
is known: of a band only rows that changed, of a block nothing if it did not. A block is copied all the same, by the
pull that looks whether it may be; what is saved is the disk.

Invariant: memory comes from the checkpoints' own pool and goes back with `release`, once. A band is copied in stretches
of rows whose values take at most `STRETCH_BYTES`, so no buffer, and nothing that a reader has to hold, is larger. Rows
that were taken away are copied with their neighbours (a copy in one go is faster than one that looks) and left out of
the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto import checkpoint_format, limits
from windlass_proto.checkpoint_orders import Save
from windlass_proto.memory import Buffer, BufferPool
from windlass_server.block_arrays import BlockArrays
from windlass_server.dense import DenseGroup
from windlass_server.gate_runs import BlockState
from windlass_server.replies import Reply
from windlass_server.row_changes import RowChanges
from windlass_server.row_table import Numbers, RowTable
from windlass_server.sparse import SparseTable

STRETCH_BYTES: Final = 8 * limits.MIB

Arrays = dict[str, npt.NDArray[Any]]


class BlockCopy:
    """One block of the manifest's group `group`: weights, slots, and the counts of its segments.

    `weights` is where the pull that fills it writes.
    """

    def __init__(
        self, number: int, group: DenseGroup, arrays: BlockArrays, state: BlockState, pool: BufferPool, save: Save
    ) -> None:
        self.weights: npt.NDArray[Any]
        self.whole = True
        self._save = save
        self._version = -1
        self._number = number
        self._index = state.shape.index
        self._names = [slot.name for slot in group.kernels.kept]
        self._memory = group.memory
        self._arrays = arrays
        self._state = state
        self._updates = np.full(len(arrays.block.segments), -1, np.int64)
        self._buffers = [pool.take(source.nbytes, beyond=True) for source in (arrays.weights, *arrays.slots)]
        dtype = arrays.weights.dtype
        self.weights, *self._slots = [buffer.array.view(dtype) for buffer in self._buffers]
        self._shown = pool.take(arrays.shown.values.nbytes, beyond=True) if arrays.shown is not None else None
        self._buffers += [self._shown] if self._shown is not None else []
        if not all(state.present):  # a file does not show what the memory's last borrower left
            for buffer in self._buffers:
                buffer.array.fill(0)

    def fill(self, reply: Reply) -> None:
        """The weights of a run have come; its slots and counts follow."""
        segments = slice(reply.seg_begin, reply.seg_end)
        begin, end = self._arrays.block.span(reply.seg_begin, reply.seg_end)
        for copy, slot in zip(self._slots, self._arrays.slots, strict=True):
            self._memory.read(slot[begin:end], copy[begin:end])
        self._memory.finish()
        self._updates[segments] = self._state.updates[segments]
        if self._shown is not None and self._arrays.shown is not None:
            values = self._arrays.shown.values
            self._shown.array.view(values.dtype)[begin:end] = values[begin:end]
        version = self._arrays.changes
        if self._version < 0:  # of the first run; if others come later, what they have more will be copied again
            self._version = version
            self.whole = not self._save.base or self._arrays.saved != (self._save.base, version)
            self._arrays.saved = (self._save.attempt, version)
        self.whole = self.whole or version != self._version

    def arrays(self) -> Arrays:
        """What the part holds of it: nothing, if it has not changed."""
        if not self.whole:
            return {}
        keys = [checkpoint_format.slot_key(self._number, self._index, name) for name in self._names]
        shown = {}
        if self._shown is not None:
            shown[checkpoint_format.shown_key(self._number, self._index)] = self._shown.array.view(self.weights.dtype)
        return {
            **shown,
            checkpoint_format.weight_key(self._number, self._index): self.weights,
            **dict(zip(keys, self._slots, strict=True)),
            checkpoint_format.updates_key(self._number, self._index): self._updates,
        }

    def release(self) -> None:
        for buffer in self._buffers:
            buffer.release()


class BandCopy:
    """One band of the manifest's table `number`: ids, rows and slots of its rows, and its count of updates."""

    weights = None

    def __init__(self, number: int, table: SparseTable, state: BlockState, pool: BufferPool, save: Save) -> None:
        self.whole = True
        self._save = save
        self._number = number
        self._table = table
        self._state = state
        self._vshard = state.shape.index
        self._pool = pool
        self._updates = 0
        self._used = 0
        self._life: Arrays = {}
        self._free: Numbers = np.empty(0, np.uint32)
        self._stretches: list[dict[str, Buffer]] = []
        rows = table.tables[self._vshard]
        self._make_room(rows, self._changed(rows).size if self._builds_on(rows) else rows.used)

    def fill(self, _reply: Reply) -> None:
        """The band is as it is to be copied."""
        rows = self._table.tables[self._vshard]
        self._updates, self._used = self._state.updates[0], rows.used
        self._life = rows.life.copied() if rows.life is not None else {}
        self.whole = not self._builds_on(rows)
        if self.whole:
            self._free = rows.free[: rows.free_count].copy()
            self._copy_all(rows)
        else:
            self._copy_changed(rows)
        rows.changes = RowChanges(self._save.attempt, rows.rows_max) if self._save.tracks else None

    def _builds_on(self, rows: RowTable) -> bool:
        """Is it known what has changed since the save that is read beside this one?"""
        known = rows.changes
        return known is not None and not known.lost and known.since == self._save.base

    def _changed(self, rows: RowTable) -> Numbers:
        assert rows.changes is not None
        return rows.changes.numbers(rows.used)

    def _copy_changed(self, rows: RowTable) -> None:
        assert rows.changes is not None
        numbers, count = self._changed(rows), stretch_rows(rows)
        self._used, self._life["erased"] = numbers.size, rows.changes.erased()
        self._make_room(rows, numbers.size)
        for at, buffers in zip(range(0, numbers.size, count), self._stretches, strict=False):
            chosen = numbers[at : at + count]
            for name, (values, width) in rows.columns().items():
                copy = buffers[name].array[: chosen.size * width * values.itemsize].view(values.dtype)
                np.take(values.reshape(-1, width), chosen, axis=0, out=copy.reshape(-1, width), mode="clip")

    def _copy_all(self, rows: RowTable) -> None:
        count = stretch_rows(rows)
        self._make_room(rows, rows.used)
        for at, buffers in enumerate(self._stretches):
            begin, end = at * count, min((at + 1) * count, rows.used)
            for name, (values, width) in rows.columns().items():
                source = values[begin * width : end * width]
                np.copyto(buffers[name].array[: source.nbytes].view(source.dtype), source)

    def arrays(self) -> Arrays:
        """What the part holds of it; rows that were taken away are left out."""
        rows = self._table.tables[self._vshard]
        count = stretch_rows(rows)
        found: Arrays = {
            checkpoint_format.band_key(self._number, self._vshard, what): values
            for what, values in {"updates": np.array([self._updates], np.int64), **self._life}.items()
        }
        written = 0
        for begin, buffers in zip(range(0, self._used, count), self._stretches, strict=False):
            held = min(count, self._used - begin)
            gone = self._free[(self._free >= begin) & (self._free < begin + held)]
            live = np.ones(held, np.bool_)
            live[gone - np.uint32(begin)] = False
            left = held - gone.size
            for name, (values, width) in rows.columns().items() if left else ():
                copy = buffers[name].array[: held * width * values.itemsize].view(values.dtype).reshape(held, width)
                if gone.size:
                    copy[:left] = copy[live]
                whole = copy[:left].reshape(-1) if name == "ids" else copy[:left]
                found[checkpoint_format.stretch_key(self._number, self._vshard, written, name)] = whole
            written += left > 0
        return found

    def release(self) -> None:
        for buffers in self._stretches:
            for buffer in buffers.values():
                buffer.release()

    def _make_room(self, rows: RowTable, count: int) -> None:
        while len(self._stretches) * stretch_rows(rows) < count:
            self._stretches.append(self._room_for(rows))

    def _room_for(self, rows: RowTable) -> dict[str, Buffer]:
        """Touched memory for one stretch: its first touch is not to be had under the lock."""
        count = stretch_rows(rows)
        buffers = {
            name: self._pool.take(count * width * values.itemsize, beyond=True)
            for name, (values, width) in rows.columns().items()
        }
        for buffer in buffers.values():
            buffer.array[:: mmap.PAGESIZE] = 0
        return buffers


Copy = BlockCopy | BandCopy


def stretch_rows(rows: RowTable) -> int:
    """Rows of one stretch."""
    widest = max(values.itemsize * width for values, width in rows.columns().values())
    return max(1, STRETCH_BYTES // widest)


def copies_of(
    number: int, group: DenseGroup | SparseTable, pool: BufferPool, save: Save
) -> Iterator[tuple[int, int, Copy]]:
    """Room for all that `group` holds here: (vshard of the share, block, copy)."""
    for vshard, share in group.shares.items():
        for index, state in share.core.blocks.items():
            if isinstance(group, SparseTable):
                yield vshard, index, BandCopy(number, group, state, pool, save)
            else:
                yield vshard, index, BlockCopy(number, group, share.arrays[index], state, pool, save)
