"""A dense group on this server: weights, slots, and the effects of its share cores carried out on them.

Invariant: whoever touches a share's arrays or core holds its lock, and holds it over no system call on a socket.
Answers leave from copies (a pooled snapshot, or the worker's shared memory), never from live weights.

One share is one vshard's blocks of the group; its lock is the unit of concurrency.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass_proto import memory
from windlass_proto.frames import Status
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import Block
from windlass_proto.memory import Buffer, BufferPool
from windlass_rules import RuleKernels, reduce
from windlass_server.share_core import ShareCore
from windlass_server.share_events import Answer, Apply, Effect, Release, Source, Write

Vector = npt.NDArray[np.floating]

# A sum over workers is made in runs that stay in the core's cache: 16 Ki float32 are 64 KiB.
SUM_RUN_ELEMENTS = 16 * 1024


class Values(NamedTuple):
    """Values of one entry where they arrived: in a pooled buffer, or (buffer None) in a worker's shared memory."""

    array: Vector
    buffer: Buffer | None


class Origin(NamedTuple):
    """Who asked, and where values go (`out`: in the worker's shared memory; None: in the answer's frame).

    `asked`: of a sparse table, the ids or the row numbers whose rows go along.
    """

    connection: Any
    tag: int
    table: int
    op: int
    out: Vector | None
    asked: Any = None


class Reply(NamedTuple):
    """An answer on its way to its connection; `snapshot` holds the values that go along."""

    origin: Origin
    status: Status
    block: int
    seg_begin: int
    seg_end: int
    aux: int
    snapshot: Buffer | None
    error: Exception | None


Snapshots = dict[tuple[int, int, int], Buffer]
"""Copies of weights made in one batch of effects, by block and segments, shared by all answers that want them."""


def _forget(snapshots: Snapshots, block: int) -> None:
    """The block changes: its copies are old."""
    for key in [key for key in snapshots if key[0] == block]:
        snapshots.pop(key).release()


class _BlockArrays:
    __slots__ = ("block", "multipliers", "scalars", "slots", "weights")

    def __init__(self, block: Block, spec: GroupSpec, kernels: RuleKernels) -> None:
        dtype = spec.layout.dtype
        self.block = block
        self.weights: Vector = memory.aligned_zeros(block.elements, dtype)
        self.slots: tuple[Vector, ...] = tuple(memory.aligned_zeros(block.elements, dtype) for _ in kernels.slots)
        tensors = spec.layout.tensors
        self.multipliers = [
            (tensors[segment.tensor].lr_mult, tensors[segment.tensor].decay_mult) for segment in block.segments
        ]
        self.scalars: dict[tuple[float, float], tuple[int, Vector]] = {}


class Share:
    """The unit of order and locking: a core, the lock, and what its effects change.

    `arrays`: of a dense group, one vshard's blocks. A band of a sparse table (whose first vshard is `vshard`) keeps its
    rows in the table.
    """

    def __init__(self, vshard: int, core: ShareCore, arrays: dict[int, _BlockArrays]) -> None:
        self.vshard = vshard
        self.lock = threading.Lock()
        self.core = core
        self.arrays = arrays


class DenseGroup:
    """The shares of one group that this server owns.

    Args:
        spec: the declared group.
        kernels: its rule, compiled.
        vshards: those this server owns.
        pool: where snapshots of weights come from.
    """

    def __init__(self, spec: GroupSpec, kernels: RuleKernels, vshards: range, pool: BufferPool) -> None:
        self.spec = spec
        self.kernels = kernels
        self.reductions = reduce.build(spec.layout.dtype)
        self.pool = pool
        held: dict[int, list[Block]] = {}
        for block in spec.layout.blocks:
            if block.vshard in vshards:
                held.setdefault(block.vshard, []).append(block)
        self.shares = {
            vshard: Share(
                vshard,
                ShareCore(spec.consistency, blocks, mean=spec.mean),
                {block.index: _BlockArrays(block, spec, kernels) for block in blocks},
            )
            for vshard, blocks in sorted(held.items())
        }
        self.share_of_block = {block.index: self.shares[vshard] for vshard, blocks in held.items() for block in blocks}
        for share in self.shares.values():
            for arrays in share.arrays.values():
                self._reset_slots(arrays, 0, arrays.block.elements)
        self._scratch = threading.local()

    @property
    def nbytes(self) -> int:
        """Bytes of weights and slots."""
        return sum(
            arrays.weights.nbytes * (1 + len(arrays.slots))
            for share in self.shares.values()
            for arrays in share.arrays.values()
        )

    def finite(self, values: Vector) -> bool:
        """Are all values finite? One pass at memory speed; no lock is needed."""
        return self.reductions.all_finite(values)

    def execute(self, share: Share, effects: list[Effect], deliver: Callable[[Reply], None]) -> None:
        """Carry out `effects` in order. The caller holds `share.lock`."""
        snapshots: Snapshots = {}
        for effect in effects:
            if type(effect) is Apply:
                _forget(snapshots, effect.block)
                self._apply(share, effect, deliver, snapshots)
            elif type(effect) is Answer:
                self._answer(share, effect, deliver, snapshots)
            elif type(effect) is Release:
                if effect.buffer is not None and effect.buffer.buffer is not None:
                    effect.buffer.buffer.release()
            elif type(effect) is Write:
                _forget(snapshots, effect.block)
                self._write(share, effect)
        for snapshot in snapshots.values():
            snapshot.release()

    # ---- applying ----------------------------------------------------------------------------------------------------

    def _apply(
        self,
        share: Share,
        effect: Apply,
        deliver: Callable[[Reply], None],
        snapshots: Snapshots,
    ) -> None:
        arrays = share.arrays[effect.block]
        block = arrays.block
        begin, end = block.span(effect.seg_begin, effect.seg_end)
        out: Vector | None = None
        snapshot: Buffer | None = None
        answer = effect.answer
        if answer is not None and answer.origin is not None:
            out = answer.origin.out
            if out is None:
                snapshot = self.pool.take((end - begin) * arrays.weights.itemsize, beyond=True)
                out = snapshot.array.view(arrays.weights.dtype)
                snapshots[effect.block, effect.seg_begin, effect.seg_end] = snapshot
        at = effect.seg_begin
        while at < effect.seg_end:
            stop = self._equal_multipliers(arrays, at, effect.seg_end)
            run_begin, run_end = block.span(at, stop)
            out_run = out[run_begin - begin : run_end - begin] if out is not None else None
            self._update(arrays, effect, run_begin, run_end, run_begin - begin, at, out_run)
            at = stop
        if answer is not None and answer.origin is not None:
            self._deliver(answer, snapshot, deliver)

    def _equal_multipliers(self, arrays: _BlockArrays, at: int, end: int) -> int:
        multipliers = arrays.multipliers
        first = multipliers[at]
        if multipliers[at:end].count(first) == end - at:
            return end
        stop = at + 1
        while stop < end and multipliers[stop] == first:
            stop += 1
        return stop

    def _update(
        self, arrays: _BlockArrays, effect: Apply, begin: int, end: int, moved: int, seg: int, out: Vector | None
    ) -> None:
        scalars = self._scalars(arrays, seg, effect.update)
        sources, count = effect.sources, end - begin
        if len(sources) == 1:
            source = sources[0]
            at = source.begin + moved
            gradient = source.buffer.array[at : at + count]
            scale = source.weight / effect.divisor
            if out is None:
                self.kernels.update(arrays.weights, arrays.slots, begin, gradient, scale, scalars)
            else:
                self.kernels.update_out(arrays.weights, arrays.slots, begin, gradient, scale, scalars, out)
            return
        scale = 1.0 / effect.divisor
        scratch = self._scratch_run(arrays.weights.dtype)
        for done in range(0, count, SUM_RUN_ELEMENTS):
            size = min(SUM_RUN_ELEMENTS, count - done)
            total = self._sum(sources, moved + done, scratch[:size])
            if out is None:
                self.kernels.update(arrays.weights, arrays.slots, begin + done, total, scale, scalars)
            else:
                self.kernels.update_out(
                    arrays.weights, arrays.slots, begin + done, total, scale, scalars, out[done : done + size]
                )

    def _sum(self, sources: tuple[Source, ...], moved: int, total: Vector) -> Vector:
        """total = sum of weight * source, in the order given."""
        size = total.size
        for i, source in enumerate(sources):
            at = source.begin + moved
            run = source.buffer.array[at : at + size]
            if i == 0:
                self.reductions.scaled_copy(total, run, source.weight)
            else:
                self.reductions.scaled_add(total, run, source.weight)
        return total

    def _scalars(self, arrays: _BlockArrays, seg: int, update: int) -> Vector:
        multipliers = arrays.multipliers[seg]
        known = arrays.scalars.get(multipliers)
        if known is not None and known[0] == update:
            return known[1]
        lr_mult, decay_mult = multipliers
        scalars = self.kernels.scalars(self.spec.rule, update, lr_mult=lr_mult, decay_mult=decay_mult)
        arrays.scalars[multipliers] = (update, scalars)
        return scalars

    def _scratch_run(self, dtype: np.dtype[Any]) -> Vector:
        scratch: Vector | None = getattr(self._scratch, "run", None)
        if scratch is None:
            scratch = self._scratch.run = memory.aligned_zeros(SUM_RUN_ELEMENTS, dtype)
        return scratch

    # ---- answering ---------------------------------------------------------------------------------------------------

    def _answer(
        self,
        share: Share,
        answer: Answer,
        deliver: Callable[[Reply], None],
        snapshots: Snapshots,
    ) -> None:
        if answer.origin is None:
            return
        if not answer.values:
            self._deliver(answer, None, deliver)
            return
        arrays = share.arrays[answer.block]
        begin, end = arrays.block.span(answer.seg_begin, answer.seg_end)
        present = arrays.weights[begin:end]
        if answer.origin.out is not None:
            np.copyto(answer.origin.out, present)
            self._deliver(answer, None, deliver)
            return
        key = (answer.block, answer.seg_begin, answer.seg_end)
        snapshot = snapshots.get(key)
        if snapshot is None:
            snapshot = snapshots[key] = self.pool.take(present.nbytes, beyond=True)
            np.copyto(snapshot.array.view(present.dtype), present)
        self._deliver(answer, snapshot, deliver)

    def _deliver(self, answer: Answer, snapshot: Buffer | None, deliver: Callable[[Reply], None]) -> None:
        if snapshot is not None:
            snapshot.hold()  # this batch keeps its own hold until it ends: the receiver may be done sooner
        deliver(
            Reply(
                answer.origin,
                answer.status,
                answer.block,
                answer.seg_begin,
                answer.seg_end,
                answer.aux,
                snapshot,
                answer.error,
            )
        )

    # ---- storing -----------------------------------------------------------------------------------------------------

    def _write(self, share: Share, effect: Write) -> None:
        arrays = share.arrays[effect.block]
        begin, end = arrays.block.span(effect.seg_begin, effect.seg_end)
        np.copyto(arrays.weights[begin:end], effect.buffer.array[: end - begin])
        if effect.fresh:
            self._reset_slots(arrays, begin, end)

    def _reset_slots(self, arrays: _BlockArrays, begin: int, end: int) -> None:
        for slot, values in zip(self.kernels.slots, arrays.slots, strict=True):
            values[begin:end] = slot.fill
