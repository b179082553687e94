"""Declaring: how workers agree on tensors, first values and one-off actions through the scheduler.

`init`, `assign` and their like are SPMD: every worker makes the same call at the same step, and it is one action. The
scheduler compares, grants the action to one worker, and lets the others wait until it is done.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass.arrays import Array
from windlass.data_link import InFrame
from windlass.dense_table import DenseTable
from windlass.ticket import Ticket
from windlass.window_core import Request
from windlass_proto import group_specs, rule_specs
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.frames import Op
from windlass_proto.layout import dtype_named
from windlass_proto.rule_specs import RuleSpec

if TYPE_CHECKING:
    from windlass.store import Store
    from windlass_proto.gen import control_pb2


def declare(
    store: Store,
    arrays: Mapping[str, Array],
    optimizer: RuleSpec,
    groups: Mapping[str, Mapping[str, float]],
    reduce: str,
) -> bool:
    """Declare `arrays` in `store` and see that they have values; True if their tables are new to this worker."""
    from windlass_proto.gen import control_pb2 as pb

    if reduce not in ("mean", "sum"):
        raise UsageError("a reduction is not known", got=reduce, known="mean, sum")
    if not arrays:
        raise UsageError("init was given no tensors", store=store.name, next_move="Pass a dict of name -> array.")
    member = store.member
    request = pb.DeclareRequest(
        session=member.session,
        store_id=store.store_id,
        step=store.clock,
        tensors=[_tensor(name, array, groups) for name, array in arrays.items()],
        rule=rule_specs.to_bytes(optimizer),
        reduce=reduce,
    )
    reply = member.control.declare(request)
    fresh = _take_groups(store, reply.groups)
    if reply.granted:
        _write_first_values(store, arrays, reply.declaration_id)
    elif not reply.sealed:
        _await_seal(store, arrays, reply.declaration_id)
    if not store.entered:
        entered = member.control.enter_roster(
            pb.EnterRosterRequest(session=member.session, store_id=store.store_id), timeout_s=member.wait_s
        )
        store.entered = True
        store.clock = entered.join_clock
        return False
    return fresh


def agree(store: Store, action: str, key: str, digest: str) -> int | None:
    """Ask to carry out `action` at this step: its id if this worker is to do it, None once another has done it."""
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    reply = member.control.agree(
        pb.AgreeRequest(
            session=member.session,
            store_id=store.store_id,
            step=store.clock,
            action=action,
            key=key,
            digest=digest,
            text=f"{action} of {key or store.name}, digest {digest}",
        ),
        timeout_s=member.wait_s,
    )
    return reply.action_id if reply.granted else None


def agreed(store: Store, action_id: int) -> None:
    """The granted action is done."""
    from windlass_proto.gen import control_pb2 as pb

    request = pb.AgreeDoneRequest(session=store.member.session, store_id=store.store_id, action_id=action_id)
    store.member.control.agree_done(request)


def digest_of(arrays: Mapping[str, Array]) -> str:
    """A digest of names and values."""
    import xxhash

    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _tensor(name: str, array: Array, groups: Mapping[str, Mapping[str, float]]) -> control_pb2.Tensor:
    from windlass_proto.gen import control_pb2 as pb

    dtype_named(array.dtype.name)
    chosen: Mapping[str, float] = {}
    for pattern, options in groups.items():
        if fnmatch.fnmatchcase(name, pattern):
            chosen = options
            break
    unknown = set(chosen) - {"lr_mult", "decay_mult"}
    if unknown:
        raise UsageError(
            "a group has an unknown option", option=sorted(unknown)[0], known="lr_mult, decay_mult", tensor=name
        )
    return pb.Tensor(
        name=name,
        dtype=array.dtype.name,
        shape=array.shape,
        lr_mult=float(chosen.get("lr_mult", 1.0)),
        decay_mult=float(chosen.get("decay_mult", 1.0)),
    )


def _take_groups(store: Store, groups: Any) -> bool:
    """Make this worker's side of new groups, and declare them to the servers that hold them."""
    member = store.member
    tickets = []
    fresh = False
    for group in groups:
        if group.table_id in store.tables:
            continue
        fresh = True
        group.consistency = group.consistency or store.consistency
        group.vshards = group.vshards or member.vshards
        group.store_id = store.store_id
        spec = group_specs.from_message(group)
        table = DenseTable(spec.layout, store.store_id, member.heap)
        store.tables[group.table_id] = table
        store.rules[group.table_id] = spec.rule
        for number, tensor in enumerate(spec.layout.tensors):
            store.where[tensor.name] = (group.table_id, number)
        tickets.append(_declare_to_servers(store, table, group.SerializeToString()))
    for ticket in tickets:
        ticket.result()
    return fresh


def _declare_to_servers(store: Store, table: DenseTable, raw: bytes) -> Ticket:
    """One entry to each server that owns a block of `table`."""
    owner = store.member.server_of
    shares = {owner(block.vshard): (table.table_id, block.vshard) for block in reversed(table.layout.blocks)}
    ticket = Ticket(store.member.pump, f"declaration of {store.table_names(table.table_id)}", len(shares), store=store)
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

    ticket, requests = store._pushes(Op.INIT, arrays, None, borrow=False, priority=0, last=False)
    store.member.pump.submit(requests)
    ticket.result()
    store.member.control.seal(
        pb.SealRequest(session=store.member.session, store_id=store.store_id, declaration_id=declaration_id)
    )


def _await_seal(store: Store, arrays: Mapping[str, Array], declaration_id: int) -> None:
    from windlass_proto.gen import control_pb2 as pb

    reply = store.member.control.await_seal(
        pb.AwaitSealRequest(session=store.member.session, store_id=store.store_id, declaration_id=declaration_id),
        timeout_s=store.member.wait_s,
    )
    if reply.granted:
        _write_first_values(store, arrays, declaration_id)
    elif not reply.sealed:
        raise UnavailableError("first values did not come", store=store.name, waited_s=store.member.wait_s)


