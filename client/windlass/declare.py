"""Declaring: how workers agree on tensors, first values and one-off actions through the scheduler.

`init`, `assign` and their like are SPMD: every worker makes the same call at the same step, and it is one action. The
scheduler compares, grants the action to one worker, and lets the others wait until it is done.
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
    rule_records,
    rule_specs,
    table_specs,
    transfer_specs,
)
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.errors import UnavailableError, UsageError, WindlassError
from windlass_proto.frames import Op
from windlass_proto.init_specs import InitSpec
from windlass_proto.layout import dtype_named
from windlass_proto.life_specs import AdmitSpec, Evictions
from windlass_proto.rule_records import RuleChange
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.schedules import Plateau, Rate

if TYPE_CHECKING:
    from windlass.sparse_table import Table
    from windlass.store import Store
    from windlass_proto.gen import control_pb2

_FAILED = "failed"  # what an action leaves behind that could not be done
_TEXT_CHARACTERS = 500  # of an action in words; up to 4 bytes each


def declare(
    store: Store,
    arrays: Mapping[str, Array],
    optimizer: RuleSpec,
    groups: Mapping[str, Mapping[str, float]],
    reduce: str,
    travels: tuple[object, object, object],
    dtypes: Mapping[str, str],
) -> bool:
    """Declare `arrays` in `store` and see that they have values; True if one of their tables is new to this worker.

    `travels`: codec, codec_down and nonfinite as given. `dtypes`: what arrays are whose own dtype does not say it.
    """
    from windlass_proto.gen import control_pb2 as pb

    _check_rule(optimizer, reduce)
    for mode in (store.modes.declared, store.modes.newest()):
        rule_specs.check_dense(optimizer, mode)
    if not arrays:
        raise UsageError("init was given no tensors", store=store.name, next_move="Pass a dict of name -> array.")
    transfer = transfer_specs.of(*travels)
    named = {name: array.dtype.name for name, array in arrays.items()} | dict(dtypes)
    for dtype in sorted(set(named.values())):
        transfer_specs.check(transfer, dtype=dtype, rule=optimizer)
    _check_groups(groups, {*arrays, *store.exchange.where})
    if not store.exchange.where.keys() >= arrays.keys():
        _check_mixture(store, optimizer)
    member = store.member
    request = pb.DeclareRequest(
        session=member.session,
        store_id=store.store_id,
        step=store.clock,
        tensors=[_tensor(name, array, named[name], groups) for name, array in arrays.items()],
        rule=rule_specs.to_bytes(optimizer),
        reduce=reduce,
        transfer=transfer_specs.to_bytes(transfer),
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
    life: tuple[AdmitSpec | None, Evictions],
) -> Table:
    """Declare a sparse table in `store`, or find it as it was declared."""
    from windlass_proto.gen import control_pb2 as pb

    dtype_named(dtype.name)
    table_specs.check_dtype(dtype.name)
    _check_rule(optimizer, reduce)
    rule_specs.check_rows(optimizer)
    if not isinstance(init, InitSpec):
        raise UsageError("the initialiser of a table is not one of windlass.init", type=type(init).__name__, table=name)
    tensor = pb.Tensor(  # what a row is, how it begins, and how long it stays
        name=name,
        dtype=dtype.name,
        shape=[_counted("dim", dim, limits.ROW_ELEMENTS_MAX)],
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
    )
    if store.member.observes:
        observe(store)
    else:
        if name not in store.exchange.declared():
            _check_mixture(store, optimizer)
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
        member.live(store.store_id).learn(reply.record)
        fresh = _take_groups(store, reply.groups, names) or fresh
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


def agree(store: Store, action: str, names: list[str], digest: str, text: str) -> int | None:
    """Ask to carry out `action` at this step: its id if this worker is to do it, None once another has done it."""
    request = asking(store, action, f"call {next_call(store, action)}", digest, text)
    request.names.extend(names if action == "delete" else ())
    reply = ask(store, request, f"{action} in store {store.name}")
    return reply.action_id if reply.granted else None


def set_live(
    store: Store, names: str, hyper_parameters: Mapping[str, Any], consistency: str | None = None, key: str = ""
) -> int:
    """Change hyper-parameters of the tensors that `names` matches, the mode, or both; the first step it holds from.

    `key` tells a change that worker 0 makes of itself from the calls of all.
    """
    if not hyper_parameters and consistency is None:
        raise UsageError(
            "set was given nothing to change",
            store=store.name,
            next_move="Pass lr=... or consistency=..., for example.",
        )
    change = _change_of(store, names, hyper_parameters) if hyper_parameters else None
    text = change.in_words() if change is not None else ""
    mode = ""
    if consistency is not None:
        mode = _mode_of(store, consistency)
        text = f"consistency={mode}{', ' if text else ''}{text}"
    request = asking(store, "set", key or f"call {next_call(store, 'set')}", digest_of_text(f"{names}\0{text}"), text)
    request.change = rule_records.change_to_bytes(change) if change is not None else b""
    request.consistency = mode
    member = store.member
    reply = ask(store, request, f"set in store {store.name}")
    member.learn_roster(reply.roster)
    member.live(store.store_id).learn(reply.record)
    if reply.granted:
        return _change_mode(store, reply.action_id, mode, request.change)
    if reply.result == _FAILED:
        raise UnavailableError("a change of mode that another worker was to make failed", store=store.name, set=text)
    return int(reply.result)


def _mode_of(store: Store, consistency: str) -> str:
    """The mode asked for, which every rule of the store must be able to do."""
    before, mode = Consistency.parse(store.consistency), Consistency.parse(consistency)
    if not store.entered:
        raise UsageError("set was called before init", store=store.name, next_move="Declare tensors first.")
    for rule in store.exchange.rules.values():
        rule_specs.check_change(rule, before, mode)
    return str(mode)


def _change_mode(store: Store, action_id: int, mode: str, change: bytes) -> int:
    """Have the servers agree on a step, and say what the mode means where an update was for all and is for each."""
    from windlass_proto.gen import control_pb2 as pb

    member, before = store.member, store.modes.newest()
    request = pb.ChangeModeRequest(
        session=member.session, store_id=store.store_id, action_id=action_id, consistency=mode, change=change
    )
    try:
        changed = member.ask_peers(member.control.change_mode, request, f"set in store {store.name}")
    except WindlassError:
        with contextlib.suppress(WindlassError):
            agreed(store, action_id, _FAILED)
        raise
    member.learn_roster(changed.roster)
    member.live(store.store_id).learn(changed.record)
    agreed(store, action_id, str(changed.clock))
    if before.mode is Mode.BSP and store.modes.newest().mode is not Mode.BSP:
        count = len(changed.roster.members)
        sys.stderr.write(
            f"windlass: store {store.name} is {mode} from step {changed.clock} on: {count} workers make {count} "
            f"updates where {before} made one, so a learning rate chosen for {before} may be too large\n"
        )
    return int(changed.clock)


def _change_of(store: Store, names: str, hyper_parameters: Mapping[str, Any]) -> RuleChange:
    """The change as it is told to everybody; it fits the rule of every tensor that it names."""
    chosen = _matching(store, names)
    if names != "*" and any(isinstance(lr, Plateau) for lr in [*live_rates(store), hyper_parameters.get("lr")]):
        raise _mixed(store)
    declared = store.exchange.declared()
    change = rule_records.change_of(names, max(table_id for table_id, _ in declared.values()), hyper_parameters)
    present = store.member.live(store.store_id).newest()
    for name in chosen:
        table_id, rule = declared[name]
        rule_specs.changed(present.rule_of(table_id, name, rule), dict(change.values))
    return change


def watch_plateau(store: Store) -> None:
    """Worker 0 lowers the lr of tensors that follow a plateau: one a store, that of the first such tensor."""
    plateau = next((lr for lr in live_rates(store) if isinstance(lr, Plateau)), None)
    store.plateau = store.member.watch(store.store_id, plateau)


def lower_lr(store: Store) -> None:
    """Between two steps: what the metrics called for. While the scheduler is away it has to wait for the next."""
    watch_plateau(store)
    if store.plateau is None:
        return
    present = store.plateau.plateau
    with contextlib.suppress(UnavailableError):
        if present.lowered() != present:
            set_live(store, "*", {"lr": present.lowered()}, key="plateau")
    watch_plateau(store)


def live_rates(store: Store) -> list[Rate]:
    """The different lr of a store's tensors and tables, as they are live; None for a rule that has none."""
    present = store.member.live(store.store_id).newest()
    declared = store.exchange.declared()
    rules = [present.rule_of(table_id, name, rule) for name, (table_id, rule) in declared.items()]
    return list(dict.fromkeys(getattr(rule, "lr", None) for rule in rules))


def _check_mixture(store: Store, optimizer: RuleSpec) -> None:
    """Worker 0 lowers a plateau for all tensors of a store at once, so no other lr may be beside it."""
    rates = {isinstance(lr, Plateau) for lr in [*live_rates(store), getattr(optimizer, "lr", None)]}
    if len(rates) > 1:
        raise _mixed(store)


def _mixed(store: Store) -> UsageError:
    return UsageError(
        "a plateau is for all tensors and tables of a store, with no other lr beside it",
        store=store.name,
        next_move="Declare the others in a store of their own.",
    )


def _matching(store: Store, pattern: object) -> list[str]:
    """The declared tensors and tables that a pattern names."""
    known = list(store.exchange.declared())
    if not store.entered or not isinstance(pattern, str):
        raise UsageError(
            "set was called before init" if isinstance(pattern, str) else "a name pattern is not a string",
            store=store.name,
            names=repr(pattern)[:80],
            next_move="Declare tensors first; names is a pattern such as 'b*'.",
        )
    found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        close = difflib.get_close_matches(pattern, known, 1, cutoff=0.4)
        raise UsageError(
            "a name pattern matches no tensor",
            store=store.name,
            names=pattern,
            nearest=close[0] if close else "none",
            next_move="Patterns are those of fnmatch: * stands for anything, and case counts.",
        )
    return found


def _say_live_values(store: Store) -> None:
    """Who joins a store whose hyper-parameters were changed live is told so: what it declares is not what it gets."""
    record = store.member.live(store.store_id).newest()
    if record.version:
        sys.stderr.write(f"windlass: store {store.name}: set live, from step {record.since} on: {record.in_words()}\n")


def asking(
    store: Store, action: str, key: str, digest: str, text: str, *, step: int | None = None
) -> control_pb2.AgreeRequest:
    """The request for an action of this step, or of `step`."""
    from windlass_proto.gen import control_pb2 as pb

    return pb.AgreeRequest(
        session=store.member.session,
        store_id=store.store_id,
        step=store.clock if step is None else step,
        action=action,
        key=key,
        digest=digest,
        text=text[:_TEXT_CHARACTERS],
    )


def ask(store: Store, request: control_pb2.AgreeRequest, what: str) -> control_pb2.AgreeReply:
    """Wait until this worker is granted the action, or another has done it."""
    return store.member.ask_peers(store.member.control.agree, request, what)


def agreed(store: Store, action_id: int, result: str = "") -> None:
    """The granted action is done; the others are told `result`."""
    from windlass_proto.gen import control_pb2 as pb

    request = pb.AgreeDoneRequest(
        session=store.member.session, store_id=store.store_id, action_id=action_id, result=result
    )
    store.member.control.agree_done(request)


def delete(store: Store, names: list[str]) -> None:
    """Carry out or wait for the deletion of `names`."""
    if not names:
        raise UsageError("delete was given no tensors", store=store.name, next_move="Pass names.")
    for name in names:
        if store.exchange.sparse_named(name) is None:
            store.exchange.place(name)
    text = ", ".join(names)
    action = agree(store, "delete", names, digest_of_text("\0".join(names)), text[:500])
    if action is not None:
        for ticket in _drops(store, names):
            with contextlib.suppress(UsageError):
                ticket.result()
        agreed(store, action)
    store.exchange.forget(names)


def observe(store: Store) -> None:
    """Make an observer's side of all groups that are declared by now."""
    from windlass_proto.gen import control_pb2 as pb

    member = store.member
    reply = member.control.declare(pb.DeclareRequest(session=member.session, store_id=store.store_id))
    member.live(store.store_id).learn(reply.record)
    _take_groups(store, reply.groups, None)


def in_words(arrays: Mapping[str, Array]) -> str:
    """Names and first values, for an error."""
    shown = [f"{name}={np.array2string(array.reshape(-1)[:3], precision=6)}" for name, array in arrays.items()]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def digest_of_text(text: str) -> str:
    """A digest of a text."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(text.encode())


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
    dropped = [table.drop_plan() for table in sparse]
    if dense:
        awaited.append((Op.PULL, store.exchange.pull_plan(dense, None)))
        dropped.append(store.exchange.drop_plan(dense))
    for op, plan in awaited:
        before, requests = store.ticket_of(op, plan)
        store.member.pump.submit(requests)
        with contextlib.suppress(UsageError):  # another worker deleted them at an earlier step
            before.result()
    tickets = []
    for plan in dropped:
        ticket, requests = store.ticket_of(Op.DROP, plan)
        store.member.pump.submit(requests)
        tickets.append(ticket)
    return tickets


def next_call(store: Store, action: str) -> int:
    """Counts the calls of `action` at this step, from 1: every worker's n-th is the same action."""
    step, calls = store.actions.get(action, (-1, 0))
    store.actions[action] = (store.clock, calls + 1 if step == store.clock else 1)
    return store.actions[action][1]
