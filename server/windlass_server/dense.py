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

from windlass_proto import memory, rule_specs
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.frames import Status
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import Block
from windlass_proto.memory import Buffer, BufferPool
from windlass_proto.rule_records import RuleRecord
from windlass_proto.rule_specs import RuleSpec
from windlass_rules import RuleKernels, reduce
from windlass_server.share_core import ShareCore
from windlass_server.share_events import Answer, Apply, Effect, Release, Source, Write

Vector = npt.NDArray[np.floating]

# A sum over workers is made in runs that stay in the core's cache: 16 Ki float32 are 64 KiB.
SUM_RUN_ELEMENTS = 16 * 1024
# Versions of hyper-parameters whose settings are at hand: those of workers a few steps apart.
VERSIONS_KEPT = 8


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


class _Setting:
    """What the segments of a block that share it are updated with, and the numbers of their latest update."""

    __slots__ = ("clock", "decay_mult", "lr_mult", "rule", "scalars", "scheduled", "update")

    def __init__(self, rule: RuleSpec, lr_mult: float, decay_mult: float) -> None:
        self.rule = rule
        self.lr_mult = lr_mult
        self.decay_mult = decay_mult
        self.scheduled = rule_specs.is_scheduled(rule)
        self.update = self.clock = -1
        self.scalars: Vector | None = None

    def at(self, kernels: RuleKernels, update: int, clock: int) -> Vector:
        """The kernel's numbers; segments of a block ask for the same ones one after the other."""
        if self.scalars is None or self.update != update or (self.scheduled and self.clock != clock):
            self.scalars = kernels.scalars(
                self.rule, update, lr_mult=self.lr_mult, decay_mult=self.decay_mult, clock=clock
            )
            self.update, self.clock = update, clock
        return self.scalars


class BlockArrays:
    """The memory of one block."""

    __slots__ = ("block", "settings", "slots", "weights")

    def __init__(self, block: Block, spec: GroupSpec, kernels: RuleKernels) -> None:
        dtype = spec.layout.dtype
        self.block = block
        self.weights: Vector = memory.aligned_zeros(block.elements, dtype)
        self.slots: tuple[Vector, ...] = tuple(memory.aligned_zeros(block.elements, dtype) for _ in kernels.slots)
        self.settings: dict[int, list[_Setting]] = {}  # version of the hyper-parameters -> one a segment


def _equal_settings(settings: list[_Setting], at: int, end: int) -> int:
    """Where the run of segments from `at` that share a setting ends."""
    first = settings[at]
    if settings[at:end].count(first) == end - at:
        return end
    stop = at + 1
    while stop < end and settings[stop] is first:
        stop += 1
    return stop


class Share:
    """The unit of order and locking: a core, the lock, and what its effects change.

    `arrays`: of a dense group, one vshard's blocks. A band of a sparse table (whose first vshard is `vshard`) keeps its
    rows in the table.
    """

    def __init__(self, vshard: int, core: ShareCore, arrays: dict[int, BlockArrays]) -> None:
        self.vshard = vshard
        self.lock = threading.Lock()
        self.core = core
        self.arrays = arrays

    def adopt(self, block: int, weights: Vector, slots: tuple[Vector, ...], updates: list[int]) -> None:
        """Serve these arrays, which have had `updates` by segment, from now on. The caller holds `lock`."""
        arrays = self.arrays[block]
        arrays.weights, arrays.slots = weights, slots
        arrays.settings.clear()
        self.core.blocks[block].updates[:] = updates


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
                {block.index: BlockArrays(block, spec, kernels) for block in blocks},
            )
            for vshard, blocks in sorted(held.items())
        }
        self.share_of_block = {block.index: self.shares[vshard] for vshard, blocks in held.items() for block in blocks}
        for share in self.shares.values():
            for arrays in share.arrays.values():
                self._reset_slots(arrays, 0, arrays.block.elements)
        self._scratch = threading.local()
        self._rules: dict[int, list[RuleSpec]] = {}
        self.steps_before = 0  # what clocks lack of the steps that a restored checkpoint had; schedules count them

    def check(self, record: RuleRecord) -> None:
        """Do the changes in `record` fit this group's rule?

        Raises:
            ProtocolError: a worker let through what no kernel here can do.
        """
        try:
            self._rules_at(record)
        except UsageError as cause:
            raise ProtocolError("a rule record does not fit its tensors", reason=str(cause)) from cause

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
        settings = arrays.settings.get(effect.stamp.version) or self._settings(arrays, effect.stamp)
        at = effect.seg_begin
        while at < effect.seg_end:
            stop = _equal_settings(settings, at, effect.seg_end)
            run_begin, run_end = block.span(at, stop)
            out_run = out[run_begin - begin : run_end - begin] if out is not None else None
            scalars = settings[at].at(self.kernels, effect.update, max(0, effect.clock + self.steps_before))
            self._update(arrays, effect, run_begin, run_end, run_begin - begin, scalars, out_run)
            at = stop
        if answer is not None and answer.origin is not None:
            self._deliver(answer, snapshot, deliver)

    def _settings(self, arrays: BlockArrays, record: RuleRecord) -> list[_Setting]:
        """One setting a segment under `record`; equal ones are one object."""
        rules, tensors = self._rules_at(record), self.spec.layout.tensors
        found: dict[tuple[RuleSpec, float, float], _Setting] = {}
        settings = []
        for segment in arrays.block.segments:
            tensor = tensors[segment.tensor]
            key = (rules[segment.tensor], tensor.lr_mult, tensor.decay_mult)
            settings.append(found.setdefault(key, _Setting(*key)))
        if len(arrays.settings) >= VERSIONS_KEPT:
            arrays.settings.clear()
        arrays.settings[record.version] = settings
        return settings

    def _rules_at(self, record: RuleRecord) -> list[RuleSpec]:
        """The rule of each tensor under `record`."""
        rules = self._rules.get(record.version)
        if rules is None:
            layout, declared = self.spec.layout, self.spec.rule
            rules = [record.rule_of(layout.table_id, tensor.name, declared) for tensor in layout.tensors]
            kept = {} if len(self._rules) >= VERSIONS_KEPT else dict(self._rules)
            self._rules = {**kept, record.version: rules}  # shares of other locks read the old one meanwhile
        return rules

    def _update(
        self,
        arrays: BlockArrays,
        effect: Apply,
        begin: int,
        end: int,
        moved: int,
        scalars: Vector,
        out: Vector | None,
    ) -> None:
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

    def _reset_slots(self, arrays: BlockArrays, begin: int, end: int) -> None:
        for slot, values in zip(self.kernels.slots, arrays.slots, strict=True):
            values[begin:end] = slot.fill
