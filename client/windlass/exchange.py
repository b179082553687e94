"""The exchange: a store's declared tensors, and how a call's arrays become entries and come back.

A call with the same arrays as an earlier one, lent and written in place, finds its plan ready: training loops make one
call again and again, and for small models planning would cost more than sending.

Invariant: a plan holds the arrays it was made for, so their identity is their memory for as long as it is kept. Arrays
that are not lent are copied before the plan is returned. The store's lock owns it.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass.arrays import Array, as_numpy, as_target, bfloat16_family_of, check_like, family_of
from windlass.borrow import Borrowed
from windlass.data_link import bytes_of
from windlass.dense_table import DenseTable, Flat, Place, Span, not_finite, tensors_between
from windlass.device_arrays import OnDevice, on_device
from windlass.plan import Action, Plan
from windlass.replaced_values import ReplacedValues
from windlass.rooms import Rooms
from windlass.window_core import Request
from windlass_proto import rule_specs
from windlass_proto.consistency import Mode
from windlass_proto.errors import UsageError
from windlass_proto.frames import Op, Status
from windlass_proto.group_specs import GroupSpec
from windlass_proto.rule_records import DECLARED, RuleRecord
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.transfer_specs import PLAIN, Transfer

if TYPE_CHECKING:
    from windlass.clipping import Clipping
    from windlass.decoder import Decoder
    from windlass.encoder import Encoder
    from windlass.member import Member
    from windlass.shown_weights import ShownWeights
    from windlass.sparse_table import Table

_PLANS_MAX = 8

Expect = Callable[[list[Span], Flat | dict[int, Array], list[Action]], list[Span]]
"""Gives entries room for weights that arrive encoded, and adds what brings them to the arrays that asked."""


Given = dict[int, Array | OnDevice]
"""A caller's arrays by tensor number."""


class Exchange:
    """The declared tensors of one store in one worker.

    Args:
        member: whose memory and links are used.
        store: the store's name, for errors.
    """

    def __init__(self, member: Member, store: str) -> None:
        self.member = member
        self.store = store
        self.tables: dict[int, DenseTable] = {}
        self.sparse: dict[int, Table] = {}
        self.rules: dict[int, RuleSpec] = {}
        self.means: dict[int, bool] = {}
        self.transfers: dict[int, Transfer] = {}
        self.lazy: set[int] = set()  # tables of which only rows that are pushed are updated
        self.where: dict[str, tuple[int, int]] = {}  # tensor name -> (table id, tensor number)
        self.params: dict[int, Flat] = {}  # what init returned
        self.encoders: dict[int, Encoder] = {}
        self.clippings: dict[int, Clipping] = {}  # of groups that are clipped by this worker's norms
        self.replaced = ReplacedValues()
        self.steps_done: Callable[[], int] = lambda: 0
        self.present_record: Callable[[], RuleRecord] = lambda: DECLARED
        self.decoders: dict[int, Decoder] = {}
        self.shown: dict[int, ShownWeights] = {}
        self.family: Callable[[Array], Any] = lambda array: array
        self.rooms = Rooms(member.heap)
        self.bfloat16_family: Callable[[Array], Any] = lambda bits: bits
        self._plans: dict[Any, tuple[Plan, Any]] = {}
        self._servers: tuple[int, tuple[int, ...]] = (-1, ())

    # ---- what is declared --------------------------------------------------------------------------------------------

    def add(self, table: DenseTable, spec: GroupSpec, names: Iterable[tuple[str, int]]) -> None:
        """A group is declared; `names` are its tensors that are not deleted, with their numbers."""
        self.tables[table.table_id] = table
        self.rules[table.table_id] = spec.rule
        self.means[table.table_id] = spec.mean
        self.transfers[table.table_id] = spec.transfer
        self.lazy |= {table.table_id} if spec.lazy else set()
        if spec.transfer.down is not None and spec.transfer.deltas:
            from windlass.shown_weights import ShownWeights

            self.shown[table.table_id] = ShownWeights(table, spec.transfer.down, self.member.heap)
        elif spec.transfer.down is not None:
            from windlass.decoder import Decoder

            self.decoders[table.table_id] = Decoder(table, spec.transfer.down, self.member.heap)
        if spec.consistency.mode is not Mode.BSP and rule_specs.clips_norms(spec.rule):
            from windlass.clipping import Clipping  # brings Numba, which other tensors do without

            self.clippings[table.table_id] = Clipping(spec, lambda: self.present_record())  # noqa: PLW0108 - its store says later
        if spec.transfer.up is not None:
            from windlass.encoder import Encoder  # brings Numba, which plain tensors do without

            self.encoders[table.table_id] = Encoder(
                table,
                spec.transfer,
                self.member.heap,
                rank=self.member.joined.rank,
                steps_done=lambda: self.steps_done(),  # noqa: PLW0108 - its store says later what that is
                replaced=self.replaced,
            )
        self.where.update({name: (table.table_id, number) for name, number in names})
        self._changed()

    def add_sparse(self, table: Table) -> None:
        """A sparse table is declared."""
        self.sparse[table.spec.table_id] = table
        self._changed()

    def sparse_named(self, name: str) -> Table | None:
        """The declared sparse table of that name."""
        return next((table for table in self.sparse.values() if table.name == name), None)

    def declared(self) -> dict[str, tuple[int, RuleSpec]]:
        """Table id and rule, as declared, of every tensor and sparse table by name."""
        dense = {name: (table_id, self.rules[table_id]) for name, (table_id, _) in self.where.items()}
        return dense | {table.name: (table_id, table.spec.rule) for table_id, table in self.sparse.items()}

    def table(self, name: str) -> Table:
        """The declared sparse table of that name.

        Raises:
            UsageError: there is none; the nearest name is said.
        """
        found = self.sparse_named(name)
        if found is None:
            raise _not_declared(self, name, [table.name for table in self.sparse.values()], "a table", "store.table")
        return found

    def forget(self, names: Iterable[str]) -> None:
        """Deleted tensors and tables are not this worker's any more."""
        gone = set(names)
        for name in gone:
            self.where.pop(name, None)
        for table_id in [table_id for table_id, table in self.sparse.items() if table.name in gone]:
            del self.sparse[table_id]
        held = {table_id for table_id, _ in self.where.values()}
        for table_id in self.tables.keys() - held:
            del self.tables[table_id], self.rules[table_id], self.means[table_id], self.transfers[table_id]
            self.encoders.pop(table_id, None)
            self.decoders.pop(table_id, None)
            self.shown.pop(table_id, None)
            self.clippings.pop(table_id, None)
            self.params.pop(table_id, None)
        self._changed()

    def servers(self) -> tuple[int, ...]:
        """The servers that hold a share of the store."""
        generation = self.member.generation
        if self._servers[0] != generation:
            owner = self.member.server_of
            found = {owner(block.vshard) for table in self.tables.values() for block in table.layout.blocks}
            found |= {owner(band.start) for sparse in self.sparse.values() for band in sparse.bands()}
            self._servers = (generation, tuple(sorted(found)))
        return self._servers[1]

    def place(self, name: str) -> tuple[int, int]:
        """Table id and number of a declared tensor.

        Raises:
            UsageError: it is not declared; the nearest name is said.
        """
        found = self.where.get(name)
        if found is None and self.sparse_named(name) is not None:
            raise UsageError(
                "a sparse table was named like a whole tensor",
                store=self.store,
                name=name,
                next_move="Push windlass.Rows(ids, gradients) to it, and pull it by its ids: pull({name: ids}).",
            )
        if found is None:
            raise _not_declared(self, name, list(self.where), "a tensor", "store.init")
        return found

    def speak_as(self, value: Any) -> None:
        """What comes out is of the family of `value`."""
        self.family, self.bfloat16_family = family_of(value), bfloat16_family_of(value)

    def dtype_of(self, name: str) -> str:
        """The declared dtype of a tensor."""
        return self.tables[self.place(name)[0]].layout.dtype_name

    def specs(self, record: RuleRecord) -> dict[str, dict[str, Any]]:
        """name -> shape, dtype and rule under `record`; a table's shape has None for its rows."""
        found: dict[str, dict[str, Any]] = {}
        for name, (table_id, number) in self.where.items():
            layout = self.tables[table_id].layout
            found[name] = {
                "shape": layout.tensors[number].shape,
                "dtype": layout.dtype_name,
                "rule": record.rule_of(table_id, name, self.rules[table_id]),
            }
            if table_id in self.lazy:
                found[name]["lazy"] = True
            if layout.whole:
                found[name]["layout"] = "whole"
            if self.transfers[table_id] != PLAIN:
                found[name] |= self.transfers[table_id].arguments()
        for table_id, table in self.sparse.items():
            found[table.name] = {
                "shape": (None, table.dim),
                "dtype": table.spec.dtype_name,
                "rule": record.rule_of(table_id, table.name, table.spec.rule),
                "init": table.spec.init,
                "bytes_max": table.spec.bytes_max,
                "admit": table.spec.admit,
                "evict": table.spec.evict,
            }
            if table.spec.transfer != PLAIN:
                found[table.name] |= table.spec.transfer.arguments()
        return found

    def table_names(self, table_id: int) -> str:
        """A table in words: its first tensors."""
        if table_id in self.sparse:
            return f"table {self.sparse[table_id].name}"
        table = self.tables.get(table_id)
        return _shown([tensor.name for tensor in table.layout.tensors]) if table is not None else f"table {table_id}"

    def request_names(self, request: Request, status: Status) -> str:
        """The tensors of a request in words; of a rejected one those that are not finite."""
        table = self.tables.get(request.share[0])
        if table is None:
            said = self.table_names(request.share[0])
            if status is Status.REJECTED and request.share[0] in self.sparse:
                raw = bytes_of(request.payload, self.member.heap)
                said += f" (rows {self.sparse[request.share[0]].not_finite(raw, request.seg_end)})"
            return said
        place = (table.layout, request.block, request.seg_begin, request.seg_end)
        names: list[str] = []
        if status is Status.REJECTED and request.rows is None and table.table_id in self.encoders:
            names = self.encoders[table.table_id].not_finite(*place[1:], bytes_of(request.payload, self.member.heap))
        elif status is Status.REJECTED and request.rows is None:
            names = list(not_finite(*place, bytes_of(request.payload, self.member.heap)))
        return _shown(names or tensors_between(*place))

    def hear_replaced(self, request: Request, values: int) -> None:
        """A server has replaced so many values of what `request` pushed; the pump's holder calls this."""
        table_id = request.share[0]
        if table_id in self.sparse:
            name, policy = self.sparse[table_id].name, self.sparse[table_id].spec.transfer.nonfinite
            counts = {name: values}
        elif table_id in self.tables:
            place = (self.tables[table_id].layout, request.block, request.seg_begin, request.seg_end)
            policy = self.transfers[table_id].nonfinite
            counts = {tensors_between(*place)[0]: values}
            if request.rows is None and table_id not in self.encoders:
                counts = not_finite(*place, bytes_of(request.payload, self.member.heap)) or counts
        else:
            return
        for name, count in counts.items():
            self.replaced.count(name, count, policy, self.member.joined.rank)

    def _changed(self) -> None:
        self._plans.clear()
        self._servers = (-1, ())

    # ---- plans -------------------------------------------------------------------------------------------------------

    def push_plan(
        self, op: Op, arrays: Mapping[str, Any], out: Mapping[str, Any] | None, *, borrow: bool = False
    ) -> Plan:
        """Send `arrays`; with PUSH_PULL their values come back into `out`, or into fresh arrays.

        Raises:
            UsageError: an unknown name, another shape or dtype than declared, or `out` has other names.
        """
        key = (op, tuple(arrays), tuple(map(id, arrays.values())), _identity(out), borrow)
        known = self._plans.get(key)
        if known is not None:
            return known[0]
        sources = self.by_table(arrays, what="a gradient" if op in (Op.PUSH, Op.PUSH_PULL) else "a value")
        self._check_names(arrays, out)
        targets = self.by_table(out, what="an out array", target=True) if out is not None else {}
        settle: list[Action] = []
        after: list[Action] = []
        flats: dict[int, Flat] = {}
        squares: dict[tuple[int, int, int], float] = {}
        spans = []
        for table_id, tensors in sources.items():
            table = self.tables[table_id]
            expect = self._encoded(table_id) if op is Op.PUSH_PULL else None
            pulls = op is Op.PUSH_PULL and expect is None
            target = self._target(table, targets.get(table_id), flats, after) if pulls else None
            clipping = self.clippings.get(table_id) if op in (Op.PUSH, Op.PUSH_PULL) else None
            if table_id in self.encoders and op in (Op.PUSH, Op.PUSH_PULL):
                found = self.encoders[table_id].spans(_on_host(tensors), target, settle, clipping, squares)
            else:
                source = self._source(table, tensors, settle, borrow=borrow)
                found = self._spans(table, tuple(tensors), source, target, clipping, squares)
            if expect is not None:
                found = self._expect(expect, table, found, targets.get(table_id), flats, after)
            spans.append(found)
        finish = self._finisher(list(arrays), out, flats, after) if op is Op.PUSH_PULL else None
        lasts = len(spans) if op is Op.PUSH_PULL else 0
        plan = Plan(spans, tuple(settle), finish, sum(map(len, spans)), lasts, squares)
        if not (settle or after or flats or squares):
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            self._plans[key] = (plan, (dict(arrays), out))
        return plan

    def _spans(
        self,
        table: DenseTable,
        numbers: tuple[int, ...],
        source: Place,
        target: Place,
        clipping: Clipping | None,
        squares: dict[tuple[int, int, int], float],
    ) -> list[Span]:
        """The entries of a push; where this worker's norms clip it, measured and cut where factors differ."""
        if clipping is None or source is None:
            return table.spans(numbers, source, target)
        vectors = source if isinstance(source, dict) else {number: source.tensors[number] for number in numbers}
        found = clipping.squares_of({number: vectors[number] for number in numbers})
        squares |= found
        borders = clipping.borders(clipping.factors(found))
        return table.spans(numbers, source, target, borders)

    def pull_plan(self, names: list[str], out: Mapping[str, Any] | None, *, exact: bool = False) -> Plan:
        """Ask for tensors, into `out` or fresh arrays; `exact`: as the servers hold them, not as they are shown."""
        asked = {name: out[name] for name in names} if out else {}
        targets = self.by_table(asked, what="an out array", target=True) if asked else {}
        flats: dict[int, Flat] = {}
        after: list[Action] = []
        spans = []
        for table_id, numbers in self._numbers(names).items():
            table, expect = self.tables[table_id], self._encoded(table_id, exact=exact)
            if expect is not None:
                found = table.spans(numbers, None, None)
                spans.append(self._expect(expect, table, found, targets.get(table_id), flats, after))
                continue
            spans.append(table.spans(numbers, None, self._target(table, targets.get(table_id), flats, after)))
        return Plan(spans, (), self._finisher(names, out, flats, after), sum(map(len, spans)))

    def params_plan(self, names: list[str]) -> Plan:
        """Ask for tensors into fresh flat arrays, which become this worker's parameters."""
        numbers = self._numbers(names)
        flats = {table_id: Flat(self.tables[table_id].layout, self.member.heap) for table_id in numbers}
        spans, after = [], list[Action]()
        for table_id, chosen in numbers.items():
            table, expect = self.tables[table_id], self._encoded(table_id)
            found = table.spans(chosen, None, flats[table_id] if expect is None else None)
            spans.append(found if expect is None else expect(found, flats[table_id], after))
        self.params.update(flats)
        return Plan(spans, (), self._finisher(names, None, flats, after), sum(map(len, spans)))

    def drop_plan(self, names: list[str]) -> Plan:
        """Delete tensors on the servers."""
        spans = [self.tables[table_id].spans(chosen, None, None) for table_id, chosen in self._numbers(names).items()]
        return Plan(spans, (), None, sum(map(len, spans)))

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _numbers(self, names: Iterable[str]) -> dict[int, tuple[int, ...]]:
        chosen: dict[int, list[int]] = {}
        for name in names:
            table_id, number = self.place(name)
            chosen.setdefault(table_id, []).append(number)
        return {table_id: tuple(sorted(numbers)) for table_id, numbers in chosen.items()}

    def by_table(self, arrays: Mapping[str, Any], *, what: str, target: bool = False) -> dict[int, Given]:
        """Arrays by table and tensor number, checked against what is declared."""
        if not arrays:
            raise UsageError("no arrays were given", store=self.store, next_move="Pass a dict of name -> array.")
        found: dict[int, Given] = {}
        for name, value in arrays.items():
            table_id, number = self.place(name)
            array = on_device(name, value) or (as_target(name, value) if target else as_numpy(name, value))
            layout = self.tables[table_id].layout
            shape, dtype = layout.tensors[number].shape, layout.dtype
            if array.shape != shape or array.dtype != dtype:
                check_like(name, array, shape, dtype, what=what)
            found.setdefault(table_id, {})[number] = array
        return {table_id: dict(sorted(tensors.items())) for table_id, tensors in found.items()}

    def _check_names(self, arrays: Mapping[str, Any], out: Mapping[str, Any] | None) -> None:
        if out is not None and out.keys() != arrays.keys():
            raise UsageError(
                "out= has other names than the gradients",
                store=self.store,
                out=sorted(out),
                grads=sorted(arrays),
                next_move="Pass the same names, or pull the others.",
            )

    def _source(self, table: DenseTable, tensors: Given, settle: list[Action], *, borrow: bool) -> Place:
        """Where gradients are read: in place if they are lent, else from one copy."""
        here = _here(tensors)
        lent = here is not None and (borrow or all(self.member.lends(table, n, array) for n, array in here.items()))
        if here is not None and lent and all(array.flags.c_contiguous for array in here.values()):
            borrowed = Borrowed.check(here)
            if borrowed is not None:
                settle.append(borrowed.verify)
            return here
        if self.member.heap is None and 2 * len(tensors) < len(table.layout.tensors):
            return self._copies(table, tensors, settle)
        flat = table.take_flat()
        for number, array in tensors.items():
            _copy(array, flat.tensors[number])
        settle.append(lambda: table.give_flat(flat))
        return flat

    def _copies(self, table: DenseTable, tensors: Given, settle: list[Action]) -> dict[int, Array]:
        """Copies of a few tensors of many, which need no room for all: layers pushed one by one."""
        layout = table.layout
        sizes = [layout.tensors[number].elements * layout.dtype.itemsize for number in tensors]
        room, begins = self.rooms.lay_out(sizes)
        settle.append(lambda: self.rooms.give(room))
        copies: dict[int, Array] = {}
        for (number, array), at, nbytes in zip(tensors.items(), begins, sizes, strict=True):
            values = room.array[at : at + nbytes].view(layout.dtype)
            copies[number] = values.reshape(layout.tensors[number].shape)
            _copy(array, copies[number])
        return copies

    def _target(self, table: DenseTable, tensors: Given | None, flats: dict[int, Flat], after: list[Action]) -> Place:
        """Where values are written: in place if possible, else into a flat array that `finish` copies from."""
        if tensors is None:
            flat = flats[table.table_id] = Flat(table.layout, self.member.heap)
            return flat
        known = self.params.get(table.table_id)
        if known is not None and all(known.tensors[number] is array for number, array in tensors.items()):
            return known
        here = _here(tensors)
        if here is not None and self._in_place(table, here):
            return here
        flat = table.take_flat()

        def copy_out() -> None:
            for number, array in tensors.items():
                if isinstance(array, OnDevice):
                    array.copy_from(flat.tensors[number])
                else:
                    np.copyto(array, flat.tensors[number])
            table.give_flat(flat)

        after.append(copy_out)
        return flat

    def _in_place(self, table: DenseTable, tensors: dict[int, Array]) -> bool:
        """May values be written where they are to be?"""
        if self.member.heap is None:
            return all(array.flags.c_contiguous and array.flags.writeable for array in tensors.values())
        return all(table.lies_in_arena(number, array) for number, array in tensors.items())

    def _encoded(self, table_id: int, *, exact: bool = False) -> Expect | None:
        """What plans for weights of this table that arrive encoded; None where they come as they are."""
        if table_id in self.shown:
            return functools.partial(self.shown[table_id].expect, exact=exact)
        decoder = self.decoders.get(table_id)
        return decoder.expect if decoder is not None else None

    def _expect(
        self,
        expect: Expect,
        table: DenseTable,
        spans: list[Span],
        tensors: Given | None,
        flats: dict[int, Flat],
        after: list[Action],
    ) -> list[Span]:
        """`spans` with room for weights that arrive encoded, to be decoded to where they are asked for."""
        here = _here(tensors) if tensors is not None else None
        if here is not None:
            return expect(spans, here, after)
        late: list[Action] = []
        flat = self._target(table, tensors, flats, late)
        assert isinstance(flat, Flat)
        found = expect(spans, flat, after)
        after += late
        return found

    def _finisher(
        self, names: list[str], out: Mapping[str, Any] | None, flats: dict[int, Flat], after: list[Action]
    ) -> Callable[[], Any]:
        if out is not None and not after:
            return lambda: dict(out)

        def finish() -> Any:
            for action in after:
                action()
            return dict(out) if out is not None else self._named(names, flats)

        return finish

    def _named(self, names: Iterable[str], flats: Mapping[int, Flat]) -> dict[str, Any]:
        found = {}
        for name, (table_id, number) in self._places(names):
            brief = self.tables[table_id].layout.dtype_name == "bfloat16"
            found[name] = (self.bfloat16_family if brief else self.family)(flats[table_id].tensors[number])
        return found

    def _places(self, names: Iterable[str]) -> list[tuple[str, tuple[int, int]]]:
        return [(name, self.place(name)) for name in names]


def _copy(array: Array | OnDevice, to: Array) -> None:
    if isinstance(array, OnDevice):
        array.copy_to(to)
    else:
        np.copyto(to, array)


def _not_declared(exchange: Exchange, name: str, known: list[str], what: str, call: str) -> UsageError:
    close = difflib.get_close_matches(name, known, 1)
    return UsageError(
        f"{what} is not declared in this store",
        store=exchange.store,
        name=name,
        nearest=close[0] if close else "none",
        next_move=f"Use {close[0]!r}." if close else f"Call {call} with it first, on every worker.",
    )


def _here(tensors: Given) -> dict[int, Array] | None:
    """The same, if all of them are in host memory."""
    here = {number: array for number, array in tensors.items() if not isinstance(array, OnDevice)}
    return here if len(here) == len(tensors) else None


def _on_host(tensors: Given) -> dict[int, Array]:
    """The same in host memory; copies of what is not."""
    return {number: array.to_host() if isinstance(array, OnDevice) else array for number, array in tensors.items()}


def _identity(arrays: Mapping[str, Any] | None) -> Any:
    return None if arrays is None else (tuple(arrays), tuple(map(id, arrays.values())))


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
