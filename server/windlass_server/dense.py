"""A dense group on this server: weights, slots, and the effects of its share cores carried out on them.

Invariant: whoever touches a share's arrays or core holds its lock, and holds it over no system call on a socket.
Answers leave from copies (a pooled snapshot, or the worker's shared memory), never from live weights.

One share is one vshard's blocks of the group; its lock is the unit of concurrency. Where the arrays lie is the
affair of the group's memory (`dense_memory`): what it has queued is finished before anybody is answered, and before a
buffer goes back. An answer is delivered before its segments change again: a checkpoint copies their slots then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from windlass_proto import rule_specs
from windlass_proto.consistency import Mode
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.frames import Op, Status
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import Block
from windlass_proto.memory import Buffer, BufferPool
from windlass_proto.rule_records import RuleRecord
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.weight_deltas import EXACT_BASE
from windlass_rules import RuleKernels, norms
from windlass_rules.norms import Norm
from windlass_server import lazy_rows, norm_scopes, read_counts
from windlass_server.block_arrays import BlockArrays
from windlass_server.dense_memory import DenseMemory, HostMemory, Measured, Vector
from windlass_server.dense_rows import NamedRows
from windlass_server.group_wire import GroupWire
from windlass_server.lazy_rows import LazyRows
from windlass_server.read_counts import Counts
from windlass_server.reductions import Reductions
from windlass_server.replies import Reply
from windlass_server.segment_settings import Setting, equal_settings
from windlass_server.share_core import ShareCore
from windlass_server.share_events import Answer, Apply, Effect, Measure, Release, Settled, Write
from windlass_server.shown_weights import ShownWeights

# Versions of hyper-parameters whose settings are at hand: those of workers a few steps apart.
VERSIONS_KEPT = 8


Snapshots = dict[tuple[int, int, int, int], Buffer]
"""Copies of weights made in one batch of effects, by block, segments and base, shared by all answers that want them."""


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

    def end_session(self, session: bytes) -> list[Effect]:
        """What is kept for `session` alone goes, and its core is told."""
        for arrays in self.arrays.values():
            if arrays.copies is not None:
                arrays.copies.forget(session)
        return self.core.end_session(session)


class DenseGroup:
    """The shares of one group that this server owns.

    Args:
        spec: the declared group.
        kernels: its rule, compiled.
        vshards: those this server owns.
        pool: where snapshots of weights come from.
        memory: where its arrays lie.
        reductions: where norms over several blocks are added.
        lazy: its rule on rows, if only rows that are pushed are to be stepped.
    """

    def __init__(
        self,
        spec: GroupSpec,
        kernels: RuleKernels,
        vshards: range,
        pool: BufferPool,
        memory: DenseMemory,
        reductions: Reductions,
        lazy: LazyRows | None = None,
    ) -> None:
        self.spec = spec
        self.lazy = lazy
        self.kernels = kernels
        self.norms = norm_scopes.norms_taken(spec)
        self.factors = norm_scopes.clips_at_workers(spec)
        self.pool = pool
        self.memory = memory
        self.wire = GroupWire(spec, pool)
        scopes = norm_scopes.scopes_of(spec.layout, self.norms) if spec.consistency.mode is Mode.BSP else {}
        phases = norm_scopes.phases_of(spec.layout, self.norms) if scopes else {}
        self._reductions = reductions.join(self, scopes, vshards) if scopes else None
        held: dict[int, list[Block]] = {}
        for block in spec.layout.blocks:
            if block.vshard in vshards:
                held.setdefault(block.vshard, []).append(block)
        self.shares = {
            vshard: Share(
                vshard,
                ShareCore(
                    spec.consistency,
                    blocks,
                    mean=spec.mean,
                    phases={block.index: phases[block.index] for block in blocks if block.index in phases},
                    factors=self.factors,
                ),
                {block.index: BlockArrays(block, kernels, memory, self.wire.shown(block)) for block in blocks},
            )
            for vshard, blocks in sorted(held.items())
        }
        self.share_of_block = {block.index: self.shares[vshard] for vshard, blocks in held.items() for block in blocks}
        for share in self.shares.values():
            for arrays in share.arrays.values():
                self._reset_slots(arrays, 0, arrays.block.elements)
        memory.finish()
        self._rules: dict[int, list[RuleSpec]] = {}
        self.heeds_staleness = rule_specs.heeds_staleness(spec.rule)
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
        """Bytes of weights and slots, of the workers' copies where the rule has any, and of what workers were shown."""
        return sum(
            arrays.weights.nbytes * (1 + len(arrays.slots))
            + (arrays.copies.nbytes if arrays.copies else 0)
            + (arrays.shown.nbytes if arrays.shown else 0)
            for share in self.shares.values()
            for arrays in share.arrays.values()
        )

    def execute(self, share: Share, effects: list[Effect], deliver: Callable[[Reply], None]) -> None:
        """Carry out `effects` in order. The caller holds `share.lock`."""
        snapshots: Snapshots = {}
        replies: list[Reply] = []
        done: list[Buffer] = []
        for effect in effects:
            if type(effect) is Apply:
                self._make_way(effect, replies, deliver)
                self._change(share, effect.block, snapshots)
                self._apply(share, effect, replies, snapshots)
            elif type(effect) is Answer:
                self._answer(share, effect, replies, snapshots)
            elif type(effect) is Release:
                if effect.buffer is not None and effect.buffer.buffer is not None:
                    done.append(effect.buffer.buffer)
            elif type(effect) is Write:
                self._make_way(effect, replies, deliver)
                self._change(share, effect.block, snapshots)
                self._write(share, effect)
            elif type(effect) is Measure:
                self._take_partial(share, effect)
            elif type(effect) is Settled and self._reductions is not None:
                self._reductions.settled(effect)
        self.memory.finish()
        for reply in replies:
            deliver(reply)
        for buffer in done:
            buffer.release()
        for snapshot in snapshots.values():
            snapshot.release()

    def _make_way(self, effect: Apply | Write, replies: list[Reply], deliver: Callable[[Reply], None]) -> None:
        """Deliver what waits to be, if `effect` changes segments that one of `replies` shows."""
        if any(
            reply.block == effect.block and reply.seg_begin < effect.seg_end and effect.seg_begin < reply.seg_end
            for reply in replies
        ):
            self.memory.finish()
            for reply in replies:
                deliver(reply)
            replies.clear()

    def _change(self, share: Share, block: int, snapshots: Snapshots) -> None:
        """The block changes: copies of it are old."""
        share.arrays[block].version += 1
        for key in [key for key in snapshots if key[0] == block]:
            snapshots.pop(key).release()

    def adopt(
        self,
        share: Share,
        block: int,
        weights: Vector,
        slots: tuple[Vector, ...],
        updates: list[int],
        shown: Vector | None = None,
    ) -> None:
        """Serve these values, which have had `updates` by segment, from now on. The caller holds the share's lock."""
        arrays = share.arrays[block]
        if arrays.shown is not None:
            arrays.shown.begin_anew(0, len(updates), weights if shown is None else shown)
        arrays.weights = self.memory.exchange(arrays.weights, weights)
        arrays.slots = tuple(map(self.memory.exchange, arrays.slots, slots))
        self.memory.finish()
        arrays.version += 1
        arrays.settings.clear()
        share.core.blocks[block].updates[:] = updates
        arrays.reads.begin_anew()
        if arrays.copies is not None:
            arrays.copies.begin_anew(0, len(updates))

    # ---- applying ----------------------------------------------------------------------------------------------------

    def _apply(
        self,
        share: Share,
        effect: Apply,
        replies: list[Reply],
        snapshots: Snapshots,
    ) -> None:
        arrays = share.arrays[effect.block]
        block = arrays.block
        begin, end = block.span(effect.seg_begin, effect.seg_end)
        out: Vector | None = None
        snapshot: Buffer | None = None
        answer = effect.answer
        origin = answer.origin if answer is not None else None
        by_rows = self.lazy is not None and any(source.buffer.named is not None for source in effect.sources)
        fuses = origin is not None and origin.asked is None and not self.wire.encodes and not by_rows
        if answer is not None and fuses:
            out = answer.origin.out
            if out is None:
                snapshot = self.pool.take((end - begin) * arrays.weights.itemsize, beyond=True)
                out = snapshot.array.view(arrays.weights.dtype)
                snapshots[effect.block, effect.seg_begin, effect.seg_end, 0] = snapshot
        slots = arrays.slots
        if arrays.copies is not None:
            pushed = (effect.sources[0].session, arrays.weights, effect.seg_begin, effect.seg_end)
            slots = (*slots, arrays.copies.for_push(*pushed))
        read = self._read_of(share, arrays, effect)
        if by_rows:
            self._step_rows(arrays, effect, read)
        for at, stop, divisor, scalars in self._pieces(arrays, effect, read) if not by_rows else ():
            run_begin, run_end = block.span(at, stop)
            out_run = out[run_begin - begin : run_end - begin] if out is not None else None
            self.memory.update(
                arrays.weights,
                slots,
                run_begin,
                run_end - run_begin,
                effect.sources,
                run_begin - begin,
                divisor,
                scalars,
                out_run,
            )
        if arrays.shown is not None:
            arrays.shown.step(effect.seg_begin, effect.seg_end)
        if answer is not None and fuses:
            replies.append(_reply(self._see(share, arrays, answer), snapshot))
        elif answer is not None:
            self._answer(share, answer, replies, snapshots)

    def _read_of(self, share: Share, arrays: BlockArrays, effect: Apply) -> Counts | None:
        """What the push that is applied had read; None where no rate depends on it."""
        if not self.heeds_staleness or share.core.modes.at(effect.clock).mode is Mode.BSP:
            return None
        return arrays.reads.counts(effect.sources[0].buffer.read)

    def _step_rows(self, arrays: BlockArrays, effect: Apply, read: Counts | None) -> None:
        """Step the rows of a segment that its sources name: all of them, where one source is the whole gradient."""
        assert self.lazy is not None
        begin, end = arrays.block.span(effect.seg_begin, effect.seg_end)
        ((_, _, divisor, scalars),) = self._pieces(arrays, effect, read)
        if all(source.buffer.named is not None for source in effect.sources):
            self.lazy.update(arrays.weights, arrays.slots, begin, effect.sources, divisor, scalars)
            return
        given, count = lazy_rows.spread(effect.sources, end - begin), end - begin
        self.memory.update(arrays.weights, arrays.slots, begin, count, given, 0, divisor, scalars, None)

    def _pieces(
        self, arrays: BlockArrays, effect: Apply, read: Counts | None
    ) -> Iterator[tuple[int, int, float, Vector]]:
        """Segments [begin, end) that one call of the kernel updates, with the divisor and the numbers it gets."""
        settings = arrays.settings.get(effect.stamp.version) or self._settings(arrays, effect.stamp)
        by_tensor = any(not norm.is_global for norm in self.norms)
        at = effect.seg_begin
        while at < effect.seg_end:
            if by_tensor:
                stop = min(at + self.memory.measured_max, effect.seg_end)
                for seg, terms in enumerate(self._terms(arrays, effect, at, stop, len(self.norms), read), at):
                    yield seg, seg + 1, *terms
            else:
                stop = equal_settings(settings, at, read_counts.alike(read, at, effect.seg_end))
                ((divisor, scalars),) = self._terms(arrays, effect, at, at + 1, len(self.norms), read)
                yield at, stop, divisor, scalars
            at = stop

    def _terms(
        self, arrays: BlockArrays, effect: Apply, begin: int, end: int, phases: int, read: Counts | None
    ) -> list[tuple[float, Vector]]:
        """The divisor and the numbers of each of segments [begin, end), after the first norms of the rule."""
        settings = (arrays.settings.get(effect.stamp.version) or self._settings(arrays, effect.stamp))[begin:end]
        clock = max(0, effect.clock + self.steps_before)
        stale = [read_counts.staleness(read, seg, effect.update) for seg in range(begin, end)]
        terms = [
            (effect.divisor, setting.at(self.kernels, effect.update, clock, late))
            for setting, late in zip(settings, stale, strict=True)
        ]
        for phase, norm in enumerate(self.norms[:phases]):
            total = effect.totals[phase] if phase < len(effect.totals) else None
            if total is not None:
                sums = [total] * len(terms)
            elif norm.is_global:
                continue
            else:
                sums = self._measure(arrays, effect, begin, terms, norm)
            for at, (setting, found) in enumerate(zip(settings, sums, strict=True)):
                divisor, scalars = terms[at]
                if norm is Norm.TRUST:
                    scalars = setting.trusting(self.kernels, effect.update, clock, stale[at], found)
                else:
                    divisor = norms.clipping_divisor(setting.rule, norm, found[0], divisor)
                terms[at] = divisor, scalars
        return terms

    def _take_partial(self, share: Share, effect: Measure) -> None:
        """The sums of a block's part of a scope, over its segments in order."""
        arrays, norm = share.arrays[effect.block], self.norms[effect.phase]
        sums = (0.0,) * norm.sums
        for part in effect.parts:
            terms = self._terms(arrays, part, part.seg_begin, part.seg_end, len(part.totals), None)
            for found in self._measure(arrays, part, part.seg_begin, terms, norm):
                sums = tuple(a + b for a, b in zip(sums, found, strict=True))
        assert self._reductions is not None
        self._reductions.measured(effect, sums)

    def _measure(
        self, arrays: BlockArrays, effect: Apply, begin: int, terms: list[tuple[float, Vector]], norm: Norm
    ) -> list[tuple[float, ...]]:
        """The sums of segments from `begin` on, which padding is no part of."""
        segments = arrays.block.segments
        first = segments[effect.seg_begin].begin
        return self.memory.measure(
            [
                Measured(
                    arrays.weights,
                    arrays.slots,
                    segment.begin,
                    segment.elements,
                    effect.sources,
                    segment.begin - first,
                    divisor,
                    scalars if norm is Norm.TRUST else None,
                )
                for segment, (divisor, scalars) in zip(segments[begin:], terms, strict=False)
            ]
        )

    def _settings(self, arrays: BlockArrays, record: RuleRecord) -> list[Setting]:
        """One setting a segment under `record`; equal ones are one object."""
        rules, tensors = self._rules_at(record), self.spec.layout.tensors
        found: dict[tuple[RuleSpec, float, float], Setting] = {}
        settings = []
        for segment in arrays.block.segments:
            tensor = tensors[segment.tensor]
            key = (rules[segment.tensor], tensor.lr_mult, tensor.decay_mult)
            settings.append(found.setdefault(key, Setting(*key)))
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
            self.heeds_staleness |= any(map(rule_specs.heeds_staleness, rules))
            kept = {} if len(self._rules) >= VERSIONS_KEPT else dict(self._rules)
            self._rules = {**kept, record.version: rules}  # shares of other locks read the old one meanwhile
        return rules

    # ---- answering ---------------------------------------------------------------------------------------------------

    def _answer(
        self,
        share: Share,
        answer: Answer,
        replies: list[Reply],
        snapshots: Snapshots,
    ) -> None:
        if answer.origin is None:
            return
        if not answer.values:
            replies.append(_reply(answer, None))
            return
        arrays = share.arrays[answer.block]
        answer = self._see(share, arrays, answer)
        begin, end = arrays.block.span(answer.seg_begin, answer.seg_end)
        present = arrays.weights[begin:end]
        if answer.origin.asked is not None:
            replies.append(self._rows_reply(answer, present))
            return
        if arrays.shown is not None and answer.origin.op in (Op.PULL, Op.PUSH_PULL):
            replies.append(self._shown_reply(share, arrays.shown, answer, snapshots))
            return
        if self.wire.encodes and answer.origin.op in (Op.PULL, Op.PUSH_PULL):
            replies.append(_reply(answer, self._encoded(arrays, answer, snapshots)))
            return
        if answer.origin.out is not None:
            self.memory.read(present, answer.origin.out)
            replies.append(_reply(answer, None))
            return
        key = (answer.block, answer.seg_begin, answer.seg_end, 0)
        snapshot = snapshots.get(key)
        if snapshot is None:
            snapshot = snapshots[key] = self.pool.take(present.nbytes, beyond=True)
            self.memory.read(present, snapshot.array.view(present.dtype))
        replies.append(_reply(answer, snapshot))

    def _rows_reply(self, answer: Answer, present: Vector) -> Reply:
        """The reply to who asked for some rows of one segment, `present`."""
        named: NamedRows = answer.origin.asked
        out, snapshot, dtype = answer.origin.out, None, self.spec.layout.dtype
        if out is None and named.elements:
            snapshot = self.pool.take(named.elements * dtype.itemsize, beyond=True)
            out = snapshot.array.view(dtype)
        if out is not None and named.elements and self.wire.halves_rows:
            room = self.pool.take(named.elements * present.itemsize, beyond=True)
            self.memory.read_rows(present, named, room.array.view(present.dtype))
            self.memory.finish()
            self.wire.halve(room.array.view(present.dtype), out)
            room.release()
        elif out is not None:
            self.memory.read_rows(present, named, out)
        reply = _reply(answer, snapshot)
        if snapshot is not None:
            snapshot.release()  # it is the reply's alone
        return reply

    def _encoded(self, arrays: BlockArrays, answer: Answer, snapshots: Snapshots) -> Buffer | None:
        """Weights as they travel: in the worker's shared memory, or in the snapshot returned."""
        key = (answer.block, answer.seg_begin, answer.seg_end, 0)
        snapshot = snapshots.get(key)
        out = answer.origin.out
        if out is None and snapshot is not None:
            return snapshot
        begin, end = arrays.block.span(answer.seg_begin, answer.seg_end)
        present = arrays.weights[begin:end]
        if out is None:
            snapshot = self.pool.take(self.wire.bytes_down(arrays.block, answer.seg_begin, answer.seg_end), beyond=True)
            snapshots[key] = snapshot
            out = snapshot.array
        else:
            snapshot = None
        if self.memory.read_encoded(present, out, arrays.block, answer.seg_begin, answer.seg_end):
            return snapshot
        present, room = self._on_host(present)
        self.wire.encode(present, out, arrays.block, answer.seg_begin, answer.seg_end)
        if room is not None:
            room.release()
        return snapshot

    def _shown_reply(self, share: Share, shown: ShownWeights, answer: Answer, snapshots: Snapshots) -> Reply:
        """The reply with what the workers are shown: what has changed since the state that this one has read."""
        origin, span = answer.origin, (answer.seg_begin, answer.seg_end)
        core, arrays = share.core, share.arrays[answer.block]
        begin, end = arrays.block.span(*span)
        present, room = self._on_host(arrays.weights[begin:end])
        if origin.base != EXACT_BASE:
            lossy = core.modes.at(core.clocks.begun).mode is Mode.BSP
            shown.show(present, *span, core.blocks[answer.block].updates, lossy=lossy)
        showing = shown.showing(origin.base, *span)
        self.wire.count_down(arrays.block, *span, showing.nbytes)
        key = (answer.block, *span, origin.base)
        snapshot = None
        if origin.out is not None:
            out = origin.out[: showing.nbytes]
            shown.write(showing, present, out)
            answer = answer._replace(origin=origin._replace(out=out))
        elif (snapshot := snapshots.get(key)) is None:
            snapshot = snapshots[key] = self.pool.take(showing.nbytes, beyond=True)
            shown.write(showing, present, snapshot.array)
        if room is not None:
            room.release()
        return _reply(answer, snapshot)

    def _on_host(self, present: Vector) -> tuple[Vector, Buffer | None]:
        """Weights in host memory, which the kernels of codecs read; the room to release if it is a copy."""
        if isinstance(self.memory, HostMemory):
            return present, None
        room = self.pool.take(present.nbytes, beyond=True)
        self.memory.read(present, room.array.view(present.dtype))
        self.memory.finish()
        return room.array.view(present.dtype), room

    def check_base_untrusted(self, share: Share, block: int, base: int) -> None:
        """A state that somebody says to have read was shown once.

        Raises:
            ProtocolError: it was not.
        """
        shown = share.arrays[block].shown
        if shown is not None and base > shown.number and base != EXACT_BASE:
            raise ProtocolError("an entry names a state of weights that nobody was shown", base=base)

    def _see(self, share: Share, arrays: BlockArrays, answer: Answer) -> Answer:
        """Weights go to a worker: where the rule compares, its copy of them is made, or the read is numbered."""
        if answer.origin.op not in (Op.PULL, Op.PUSH_PULL):
            return answer
        if arrays.shown is None or answer.origin.asked is not None:
            self.wire.count_down(arrays.block, answer.seg_begin, answer.seg_end)
        if self.heeds_staleness and answer.status is not Status.LATE:
            answer = answer._replace(aux=arrays.reads.number_of(share.core.blocks[answer.block].updates))
        if arrays.copies is not None:
            session = answer.origin.connection.session
            if not share.core.sessions.has_ended(session):
                arrays.copies.see(session, arrays.weights, answer.seg_begin, answer.seg_end)
        return answer

    # ---- storing -----------------------------------------------------------------------------------------------------

    def _write(self, share: Share, effect: Write) -> None:
        arrays = share.arrays[effect.block]
        begin, end = arrays.block.span(effect.seg_begin, effect.seg_end)
        self.memory.write(arrays.weights[begin:end], effect.buffer.array[: end - begin])
        if arrays.shown is not None:
            present, room = self._on_host(arrays.weights[begin:end])
            arrays.shown.begin_anew(effect.seg_begin, effect.seg_end, present)
            if room is not None:
                room.release()
        if arrays.copies is not None:
            arrays.copies.begin_anew(effect.seg_begin, effect.seg_end)
        if effect.fresh:
            self._reset_slots(arrays, begin, end)

    def _reset_slots(self, arrays: BlockArrays, begin: int, end: int) -> None:
        for slot, values in zip(self.kernels.kept, arrays.slots, strict=True):
            self.memory.fill(values[begin:end], slot.fill)


def _reply(answer: Answer, snapshot: Buffer | None) -> Reply:
    """The reply holds its snapshot beside the batch that made it, whose hold may end sooner or later."""
    if snapshot is not None:
        snapshot.hold()
    return Reply(
        answer.origin,
        answer.status,
        answer.block,
        answer.seg_begin,
        answer.seg_end,
        answer.aux,
        snapshot,
        answer.error,
    )
