"""Declaring: how workers agree on tensors and tables, and on their first values, through the scheduler.

`init`, `table` and `delete` are SPMD: every worker makes the same call at the same step. The scheduler compares, lets
one worker write first values, and the others wait until it has.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass import actions, live_changes
from windlass.arrays import Array
from windlass.data_link import InFrame
from windlass.dense_table import DenseTable
from windlass.ticket import Ticket
from windlass.window_core import Request
from windlass_proto import (
    group_specs,
    init_specs,
    life_specs,
    limits,
    rule_specs,
    table_specs,
    transfer_specs,
)
from windlass_proto.errors import UnavailableError, UsageError, WindlassError
from windlass_proto.frames import Op
from windlass_proto.init_specs import InitSpec
from windlass_proto.layout import GroupLayout, check_whole, dtype_named, layout_named
from windlass_proto.life_specs import AdmitSpec, Evictions
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.transfer_specs import Transfer

if TYPE_CHECKING:
    from windlass.sparse_table import Table
    from windlass.store import Store
    from windlass_proto.gen import control_pb2


def declare(
    store: Store,
    arrays: Mapping[str, Array],
    optimizer: RuleSpec,
    groups: Mapping[str, Mapping[str, float]],
    reduce: str,
    travels: tuple[object, object, object],
    dtypes: Mapping[str, str],
    *,
    lazy: bool,
    layout: str,
) -> bool:
    """Declare `arrays` in `store` and see that they have values; True if one of their tables is new to this worker.

    `travels`: codec, codec_down and nonfinite as given. `dtypes`: what arrays are whose own dtype does not say it.
    """
    from windlass_proto.gen import control_pb2 as pb

    _check_rule(optimizer, reduce)
    for mode in (store.modes.declared, store.modes.newest()):
        rule_specs.check_dense(optimizer, mode)
    _check_staleness(store, optimizer)
    rule_specs.check_change(optimizer, store.modes.declared, store.modes.newest())
    if not arrays:
        raise UsageError("init was given no tensors", store=store.name, next_move="Pass a dict of name -> array.")
    transfer = transfer_specs.of(*travels)
    for mode in (store.modes.declared, store.modes.newest()):
        transfer_specs.check_mode(transfer, mode)
    named = {name: array.dtype.name for name, array in arrays.items()} | dict(dtypes)
    for dtype in sorted(set(named.values())):
        transfer_specs.check(transfer, dtype=dtype, rule=optimizer)
        if lazy:
            rule_specs.check_lazy(optimizer, dtype)
    if layout_named(layout) == "whole":
        for name, array in arrays.items():
            dtype_named(named[name])
            check_whole(name, array.size, named[name])
    _check_groups(groups, {*arrays, *store.exchange.where})
    if not store.exchange.where.keys() >= arrays.keys():
        live_changes.check_mixture(store, optimizer)
    member = store.member
    request = pb.DeclareRequest(
        session=member.session,
        store_id=store.store_id,
        step=store.clock,
        tensors=[_tensor(name, array, named[name], groups) for name, array in arrays.items()],
        rule=rule_specs.to_bytes(optimizer),
        reduce=reduce,
        transfer=transfer_specs.to_bytes(transfer),
        lazy=lazy,
        layout=layout,
    )
    return _carry_out(store, request, arrays)


def declare_table(
    store: Store,
    name: str,
    dim: int,
    optimizer: RuleSpec,
    init: InitSpec,
    travels: tuple[str, Transfer],
    reduce: str,
    bytes_max: int,
    life: tuple[AdmitSpec | None, Evictions],
) -> Table:
    """Declare a sparse table in `store`, or find it as it was declared. `travels`: as what dtype, and how."""
    from windlass_proto.gen import control_pb2 as pb

    dtype, transfer = travels
    dtype_named(dtype)
    _check_rule(optimizer, reduce)
    rule_specs.check_rows(optimizer)
    _check_staleness(store, optimizer)
    width = _counted("dim", dim, limits.ROW_ELEMENTS_MAX)
    table_specs.check_transfer(transfer, dtype=dtype, dim=width, rule=optimizer)
    if not isinstance(init, InitSpec):
        raise UsageError(
            "the initialiser of a table is not one of windlass.init that servers know",
            next_move="Rows begin with Zeros, Constant, Uniform or Normal.",
            type=type(init).__name__,
            table=name,
        )
    tensor = pb.Tensor(  # what a row is, how it begins, and how long it stays
        name=name,
        dtype=dtype,
        shape=[width],
        lr_mult=1.0,
        decay_mult=1.0,
        table=pb.Table(
            init=init_specs.to_message(init), bytes_max=_counted("bytes_max", bytes_max, limits.TABLE_BYTES_MAX)
        ),
    )
    life_specs.add_to(tensor.table, *life)
    request = pb.DeclareRequest(
        session=store.member.session,
        store_id=store.store_id,
        step=store.clock,
        tensors=[tensor],
        rule=rule_specs.to_bytes(optimizer),
        reduce=reduce,
        transfer=transfer_specs.to_bytes(transfer),
    )
    if store.member.observes:
        observe(store)
    else:
        if name not in store.exchange.declared():
            live_changes.check_mixture(store, optimizer)
        _carry_out(store, request, {})
    found = store.exchange.sparse_named(name)
    if found is None:
        raise UnavailableError("no worker has declared this table yet", store=store.name, table=name)
    return found


def _counted(what: str, number: object, most: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 1 <= number <= most:
        raise UsageError(f"a table's {what} is not an integer in its range", got=number, allowed=f"1..{most}")
    return int(number)


def _check_rule(optimizer: object, reduce: str) -> None:
    if reduce not in ("mean", "sum"):
        raise UsageError("a reduction is not known", got=reduce, known="mean, sum")
    if not isinstance(optimizer, RuleSpec):
        raise UsageError(
            "the optimizer is not an update rule",
            type=type(optimizer).__name__,
            next_move="Pass one of windlass.optim, for example windlass.optim.Adam(lr=1e-3).",
        )


def _check_staleness(store: Store, optimizer: RuleSpec) -> None:
    """An lr that heeds staleness is for the modes that have any."""
    rule_specs.check_staleness(getattr(optimizer, "lr", None), store.modes.newest())


def _carry_out(store: Store, request: control_pb2.DeclareRequest, arrays: Mapping[str, Array]) -> bool:
    """Declare, see that every new tensor has values, enter the roster; True if a group is new to this worker."""
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    names = [tensor.name for tensor in request.tensors]
    fresh = False
    while True:
        reply = member.control.declare(request)
        member.live(store.store_id).learn(reply.record)
        try:
            fresh = _take_groups(store, reply.groups, names) or fresh
        except UsageError as refused:
            _withdraw(store, reply, refused)
            raise
        if reply.sealed:
            break
        new = {name: array for name, array in arrays.items() if store.exchange.where[name][0] in reply.tables}
        if reply.granted:
            _write_first_values(store, new, reply.declaration_id)
        else:
            _await_seal(store, new, reply.declaration_id)
    if not store.entered:
        from windlass import checkpoints  # it declares what it restores

        entering = pb.EnterRosterRequest(session=member.session, store_id=store.store_id)
        entered = member.ask_peers(member.control.enter_roster, entering, f"init of store {store.name}")
        store.entered = True
        store.open.clock = entered.join_clock
        for result in entered.restored:
            checkpoints.take_offset(store, result)
        _say_live_values(store)
        return False
    return fresh


def _withdraw(store: Store, reply: control_pb2.DeclareReply, refused: UsageError) -> None:
    """A server does not take new tensors (an own rule refuses a value, say): leave nothing of them declared."""
    from windlass_proto.gen import control_pb2 as pb

    names = [tensor.name for group in reply.groups if group.table_id in reply.tables for tensor in group.tensors]
    if not reply.sealed:
        for ticket in _dropped(store, [name for name in names if name in store.exchange.declared()]):
            with contextlib.suppress(UsageError, UnavailableError):  # the server that refused has none of it
                ticket.result()
        request = pb.SealRequest(
            session=store.member.session,
            store_id=store.store_id,
            declaration_id=reply.declaration_id,
            refused=str(refused),
        )
        store.member.control.seal(request)
    store.exchange.forget(names)


def _say_live_values(store: Store) -> None:
    """Who joins a store whose hyper-parameters were changed live is told so: what it declares is not what it gets."""
    record = store.member.live(store.store_id).newest()
    if record.version:
        sys.stderr.write(f"windlass: store {store.name}: set live, from step {record.since} on: {record.in_words()}\n")


def delete(store: Store, names: list[str]) -> None:
    """Carry out or wait for the deletion of `names`."""
    if not names:
        raise UsageError("delete was given no tensors", store=store.name, next_move="Pass names.")
    for name in names:
        if store.exchange.sparse_named(name) is None:
            store.exchange.place(name)
    text = ", ".join(names)
    action = actions.agree(store, "delete", names, actions.digest_of_text("\0".join(names)), text[:500])
    if action is not None:
        for ticket in _drops(store, names):
            with contextlib.suppress(UsageError):
                ticket.result()
        actions.agreed(store, action)
    store.exchange.forget(names)


def observe(store: Store) -> None:
    """Make an observer's side of all groups that are declared by now."""
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    reply = member.control.declare(pb.DeclareRequest(session=member.session, store_id=store.store_id))
    member.live(store.store_id).learn(reply.record)
    _take_groups(store, reply.groups, None)


def _check_groups(groups: Mapping[str, Mapping[str, float]], names: set[str]) -> None:
    """Each pattern matches a name declared now or before, and its options are known and finite."""
    for pattern, options in groups.items():
        if not isinstance(options, Mapping):
            raise UsageError("a group's options are not a dict", group=pattern, got=repr(options)[:80])
        unknown = set(options) - {"lr_mult", "decay_mult"}
        if unknown:
            raise UsageError(
                "a group has an unknown option", option=sorted(unknown)[0], known="lr_mult, decay_mult", group=pattern
            )
        if not all(map(_is_finite, options.values())):
            raise UsageError("a group's multiplier is not a finite number", group=pattern, got=dict(options))
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, 1, cutoff=0.4)
            raise UsageError(
                "a group's pattern matches no tensor",
                group=pattern,
                nearest=close[0] if close else "none",
                next_move="Patterns are those of fnmatch: * stands for anything, and case counts.",
            )


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _tensor(name: str, array: Array, dtype: str, groups: Mapping[str, Mapping[str, float]]) -> control_pb2.Tensor:
    from windlass_proto.gen import control_pb2 as pb

    dtype_named(dtype)
    options = next((given for pattern, given in groups.items() if fnmatch.fnmatchcase(name, pattern)), {})
    return pb.Tensor(
        name=name,
        dtype=dtype,
        shape=array.shape,
        lr_mult=float(options.get("lr_mult", 1.0)),
        decay_mult=float(options.get("decay_mult", 1.0)),
    )


def _take_groups(store: Store, groups: Any, names: Iterable[str] | None) -> bool:
    """Make this worker's side of new groups (of `names`; None: all) and declare them to the servers that hold them."""
    member = store.member
    tickets = []
    fresh = False
    for group in groups:
        if group.table_id in store.exchange.tables or group.table_id in store.exchange.sparse:
            continue
        if table_specs.is_table(group) and group.tensors[0].deleted:
            continue
        fresh = True
        group.consistency = group.consistency or str(store.modes.declared)
        group.vshards = group.vshards or member.vshards
        group.store_id = store.store_id
        if table_specs.is_table(group):
            from windlass.sparse_table import Table  # brings Numba, which dense tensors do without

            rows = Table(store, table_specs.from_message(group))
            store.exchange.add_sparse(rows)
            vshards = [band.start for band in rows.bands()]
            tickets.append(_declare_to_servers(store, group.table_id, vshards, group.SerializeToString()))
            continue
        spec = group_specs.from_message(group)
        table = DenseTable(spec.layout, store.store_id, member.heap)
        live = [
            (tensor.name, number)
            for number, tensor in enumerate(group.tensors)
            if not tensor.deleted and (names is None or tensor.name in names)
        ]
        store.exchange.add(table, spec, live)
        vshards = _live_vshards(table.layout, {t.name for t in group.tensors if t.deleted})
        tickets.append(_declare_to_servers(store, group.table_id, vshards, group.SerializeToString()))
    refused: list[WindlassError] = []
    for ticket in tickets:  # all of them: an error that nobody has seen would be raised by the next call
        try:
            ticket.result()
        except WindlassError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return fresh


def _live_vshards(layout: GroupLayout, deleted: set[str]) -> list[int]:
    """Those of blocks that hold something. A server whose blocks hold nothing any more has forgotten the group."""
    held = [
        block.vshard
        for block in layout.blocks
        if any(layout.tensors[segment.tensor].name not in deleted for segment in block.segments)
    ]
    return held or [block.vshard for block in layout.blocks]


def _declare_to_servers(store: Store, table_id: int, vshards: list[int], raw: bytes) -> Ticket:
    """One entry to each server that owns one of `vshards`."""
    owner = store.member.server_of
    shares = {owner(vshard): (table_id, vshard) for vshard in reversed(vshards)}
    what = f"declaration of {store.exchange.table_names(table_id)}"
    ticket = Ticket(store.member.pump, what, len(shares), store=store)
    requests = [
        Request(
            Op.DECLARE,
            store.store_id,
            share,
            0,
            0,
            0,
            owner=ticket,
            payload=InFrame((memoryview(raw),), len(raw)),
            nbytes=len(raw),
        )
        for share in shares.values()
    ]
    store.member.pump.submit(requests)
    return ticket


def _write_first_values(store: Store, arrays: Mapping[str, Array], declaration_id: int) -> None:
    from windlass_proto.gen import control_pb2 as pb

    if arrays:  # a sparse table needs none: its rows begin as its initialiser says
        _first_values(store, arrays).result()
    store.member.control.seal(
        pb.SealRequest(session=store.member.session, store_id=store.store_id, declaration_id=declaration_id)
    )


def _await_seal(store: Store, arrays: Mapping[str, Array], declaration_id: int) -> None:
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    asking = pb.AwaitSealRequest(session=member.session, store_id=store.store_id, declaration_id=declaration_id)
    reply = member.ask_peers(member.control.await_seal, asking, f"init of store {store.name}")
    if reply.granted:
        _write_first_values(store, arrays, declaration_id)
    elif not reply.sealed:
        raise UnavailableError("first values did not come", store=store.name)


def _first_values(store: Store, arrays: Mapping[str, Array]) -> Ticket:
    """Send first values of declared tensors."""
    ticket, requests = store.ticket_of(Op.INIT, store.exchange.push_plan(Op.INIT, arrays, None))
    store.member.pump.submit(requests)
    return ticket


def _drops(store: Store, names: list[str]) -> list[Ticket]:
    """Delete tensors and tables on the servers, after the steps before this one have completed on them."""
    sparse = [table for name in names if (table := store.exchange.sparse_named(name)) is not None]
    dense = [name for name in names if name in store.exchange.where]
    awaited = [(Op.STATS, table.stats_plan()) for table in sparse]
    if dense:
        awaited.append((Op.PULL, store.exchange.pull_plan(dense, None)))
    for op, plan in awaited:
        before, requests = store.ticket_of(op, plan)
        store.member.pump.submit(requests)
        with contextlib.suppress(UsageError):  # another worker deleted them at an earlier step
            before.result()
    return _dropped(store, names)


def _dropped(store: Store, names: list[str]) -> list[Ticket]:
    """Delete tensors and tables on the servers."""
    dropped = [table.drop_plan() for name in names if (table := store.exchange.sparse_named(name)) is not None]
    dense = [name for name in names if name in store.exchange.where]
    if dense:
        dropped.append(store.exchange.drop_plan(dense))
    tickets = []
    for plan in dropped:
        ticket, requests = store.ticket_of(Op.DROP, plan)
        store.member.pump.submit(requests)
        tickets.append(ticket)
    return tickets
