"""Declaring: how workers agree on tensors, first values and one-off actions through the scheduler.

`init`, `assign` and their like are SPMD: every worker makes the same call at the same step, and it is one action. The
scheduler compares, grants the action to one worker, and lets the others wait until it is done.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass.arrays import Array
from windlass.data_link import InFrame
from windlass.dense_table import DenseTable
from windlass.ticket import Ticket
from windlass.window_core import Request
from windlass_proto import group_specs, init_specs, limits, rule_specs, table_specs
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.frames import Op
from windlass_proto.init_specs import InitSpec
from windlass_proto.layout import dtype_named
from windlass_proto.rule_specs import RuleSpec

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
) -> bool:
    """Declare `arrays` in `store` and see that they have values; True if one of their tables is new to this worker."""
    from windlass_proto.gen import control_pb2 as pb

    _check_rule(optimizer, reduce)
    if not arrays:
        raise UsageError("init was given no tensors", store=store.name, next_move="Pass a dict of name -> array.")
    _check_groups(groups, {*arrays, *store.exchange.where})
    member = store.member
    request = pb.DeclareRequest(
        session=member.session,
        store_id=store.store_id,
        step=store.clock,
        tensors=[_tensor(name, array, groups) for name, array in arrays.items()],
        rule=rule_specs.to_bytes(optimizer),
        reduce=reduce,
    )
    return _carry_out(store, request, arrays)


def declare_table(
    store: Store,
    name: str,
    dim: int,
    optimizer: RuleSpec,
    init: InitSpec,
    dtype: np.dtype[Any],
    reduce: str,
    bytes_max: int,
) -> Table:
    """Declare a sparse table in `store`, or find it as it was declared."""
    from windlass_proto.gen import control_pb2 as pb

    dtype_named(dtype.name)
    _check_rule(optimizer, reduce)
    if not isinstance(init, InitSpec):
        raise UsageError("the initialiser of a table is not one of windlass.init", type=type(init).__name__, table=name)
    tensor = pb.Tensor(
        name=name,
        dtype=dtype.name,
        shape=[_counted("dim", dim, limits.ROW_ELEMENTS_MAX)],
        lr_mult=1.0,
        decay_mult=1.0,
        table=pb.Table(
            init=init_specs.to_message(init), bytes_max=_counted("bytes_max", bytes_max, limits.TABLE_BYTES_MAX)
        ),
    )
    request = pb.DeclareRequest(
        session=store.member.session,
        store_id=store.store_id,
        step=store.clock,
        tensors=[tensor],
        rule=rule_specs.to_bytes(optimizer),
        reduce=reduce,
    )
    if store.member.observes:
        observe(store)
    else:
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


def _carry_out(store: Store, request: control_pb2.DeclareRequest, arrays: Mapping[str, Array]) -> bool:
    """Declare, see that every new tensor has values, enter the roster; True if a group is new to this worker."""
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    names = [tensor.name for tensor in request.tensors]
    fresh = False
    while True:
        reply = member.control.declare(request)
        fresh = _take_groups(store, reply.groups, names) or fresh
        if reply.sealed:
            break
        new = {name: array for name, array in arrays.items() if store.exchange.where[name][0] in reply.tables}
        if reply.granted:
            _write_first_values(store, new, reply.declaration_id)
        else:
            _await_seal(store, new, reply.declaration_id)
    if not store.entered:
        entering = pb.EnterRosterRequest(session=member.session, store_id=store.store_id)
        entered = member.ask_peers(member.control.enter_roster, entering, f"init of store {store.name}")
        store.entered = True
        store.clock = entered.join_clock
        return False
    return fresh


def agree(store: Store, action: str, names: list[str], digest: str, text: str) -> int | None:
    """Ask to carry out `action` at this step: its id if this worker is to do it, None once another has done it."""
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    asking = pb.AgreeRequest(
        session=member.session,
        store_id=store.store_id,
        step=store.clock,
        action=action,
        key=f"call {store.next_call(action)}",
        digest=digest,
        text=text,
        names=names if action == "delete" else (),
    )
    reply = member.ask_peers(member.control.agree, asking, f"{action} in store {store.name}")
    return reply.action_id if reply.granted else None


def agreed(store: Store, action_id: int) -> None:
    """The granted action is done."""
    from windlass_proto.gen import control_pb2 as pb

    request = pb.AgreeDoneRequest(session=store.member.session, store_id=store.store_id, action_id=action_id)
    store.member.control.agree_done(request)


def delete(store: Store, names: list[str]) -> None:
    """Carry out or wait for the deletion of `names`."""
    if not names:
        raise UsageError("delete was given no tensors", store=store.name, next_move="Pass names.")
    for name in names:
        store.exchange.place(name)
    text = ", ".join(names)
    action = agree(store, "delete", names, _digest_of_names(names), text[:500])
    if action is not None:
        with contextlib.suppress(UsageError):
            store.drops(names).result()
        agreed(store, action)
    store.exchange.forget(names)


def observe(store: Store) -> None:
    """Make an observer's side of all groups that are declared by now."""
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    reply = member.control.declare(pb.DeclareRequest(session=member.session, store_id=store.store_id))
    _take_groups(store, reply.groups, None)


def in_words(arrays: Mapping[str, Array]) -> str:
    """Names and first values, for an error."""
    shown = [f"{name}={np.array2string(array.reshape(-1)[:3], precision=6)}" for name, array in arrays.items()]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _digest_of_names(names: list[str]) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest("\0".join(names).encode())


def digest_of(arrays: Mapping[str, Array]) -> str:
    """A digest of names and values."""
    import xxhash

    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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


def _tensor(name: str, array: Array, groups: Mapping[str, Mapping[str, float]]) -> control_pb2.Tensor:
    from windlass_proto.gen import control_pb2 as pb

    dtype_named(array.dtype.name)
    options = next((given for pattern, given in groups.items() if fnmatch.fnmatchcase(name, pattern)), {})
    return pb.Tensor(
        name=name,
        dtype=array.dtype.name,
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
        fresh = True
        group.consistency = group.consistency or store.consistency
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
        store.exchange.add(table, spec.rule, live)
        vshards = [block.vshard for block in table.layout.blocks]
        tickets.append(_declare_to_servers(store, group.table_id, vshards, group.SerializeToString()))
    for ticket in tickets:
        ticket.result()
    return fresh


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
        store.first_values(arrays).result()
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
