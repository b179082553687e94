"""Mixtures: calls on a store that name tensors and rows of tables together.

    store.push({"w": gradient, "user": wl.Rows(ids, gradients)})     one ticket, one entry list, one step
    store.pull({"w": None, "user": ids})                             None: the whole tensor

"user" is a sparse table, or a dense tensor of which some rows are meant. Each part is planned by what it is part of; a
mixture is their plans in one: their entries travel in the same frames, so that a call makes one round trip to each
server, and its ticket ends with the last answer.

Invariant: every part is checked and planned before anything is sent, so a wrong argument leaves nothing half done.
Tensors come first, so that entries which say that they are the last of a step are the leading ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from windlass.exchange import Exchange
from windlass.plan import Plan
from windlass_proto.errors import UsageError
from windlass_proto.frames import Op

Asked = Mapping[str, Any] | Iterable[str] | str | None
"""What a pull may name: tensors, or name -> ids of rows, None of a whole tensor; None: all tensors."""


class Rows(NamedTuple):
    """Some rows of a table, or of a tensor along its first axis, as `push`, `push_pull` and `update` take them.

    ids: of any shape and integer dtype, not negative; those of one id are summed.
    values: a gradient for each, of the shape ids.shape + the shape of a row.
    """

    ids: Any
    values: Any


def push_plan(
    exchange: Exchange, op: Op, grads: Mapping[str, Any], out: Mapping[str, Any] | None, *, borrow: bool = False
) -> Plan:
    """Send gradients; with PUSH_PULL the values after the step come back, of rows those that were pushed to.

    Raises:
        UsageError: a name, shape, dtype or id is wrong, or `out` lacks a tensor or has a name that is not pushed.
    """
    rows = {name: value for name, value in grads.items() if type(value) is Rows}
    if not rows:
        return _clipped(exchange, exchange.push_plan(op, grads, out, borrow=borrow))
    dense = {name: value for name, value in grads.items() if name not in rows}
    own = None if out is None else _own(exchange, out, dense, rows)
    plans = {name: _rows_push(exchange, op, name, value, _target(out, name)) for name, value in rows.items()}
    first = exchange.push_plan(op, dense, own, borrow=borrow) if dense else None
    return _clipped(exchange, _joined(first, plans, list(grads), answered=op is Op.PUSH_PULL))


def pull_plan(exchange: Exchange, names: Asked, out: Mapping[str, Any] | None) -> Plan:
    """Ask for tensors, and for rows by `names`' ids.

    Raises:
        UsageError: a name or an id is wrong, or `out` lacks a tensor that is asked for.
    """
    if isinstance(names, Mapping):
        ids = {name: given for name, given in names.items() if given is not None}
        chosen = [name for name in names if name not in ids]
    else:
        ids = {}
        given = exchange.where if names is None and out is None else out if names is None else names
        chosen = list(dict.fromkeys([given] if isinstance(given, str) else given or ()))
    if out is not None and not out.keys() >= set(chosen):
        raise UsageError(
            "out= lacks tensors that were asked for",
            store=exchange.store,
            missing=", ".join(sorted(set(chosen) - out.keys())),
            next_move="Pass an array for each name.",
        )
    if not ids:
        return exchange.pull_plan(chosen, out)
    plans = {name: _rows_pull(exchange, name, given, _target(out, name)) for name, given in ids.items()}
    first = exchange.pull_plan(chosen, out) if chosen else None
    return _joined(first, plans, list(names or ()), answered=True)


def _rows_push(exchange: Exchange, op: Op, name: str, rows: Rows, target: Any) -> Plan:
    if name in exchange.where:
        from windlass import dense_rows  # brings Numba, as tables do

        return dense_rows.push_plan(exchange, op, name, *rows, target)
    return exchange.table(name).push_plan(op, *rows, target)


def _rows_pull(exchange: Exchange, name: str, ids: Any, target: Any) -> Plan:
    if name in exchange.where:
        from windlass import dense_rows

        return dense_rows.pull_plan(exchange, name, ids, target)
    return exchange.table(name).pull_plan(ids, target)


def _own(
    exchange: Exchange, out: Mapping[str, Any], dense: Mapping[str, Any], rows: Mapping[str, Any]
) -> dict[str, Any]:
    """The out arrays of tensors."""
    if not dense.keys() <= out.keys() <= dense.keys() | rows.keys():
        raise UsageError(
            "out= has other names than the gradients",
            store=exchange.store,
            out=sorted(out),
            grads=sorted({*dense, *rows}),
            next_move="Pass an array for each tensor; those of rows may be left out.",
        )
    return {name: out[name] for name in dense}


def _target(out: Mapping[str, Any] | None, name: str) -> Any:
    return None if out is None else out.get(name)


def _joined(first: Plan | None, plans: Mapping[str, Plan], names: list[str], *, answered: bool) -> Plan:
    """One plan of the tensors' and of each rows'; its result is by name, in the order of the call."""
    rows = sorted(plans.values(), key=lambda plan: -plan.lasts)
    parts = [*([first] if first is not None else []), *rows]

    def finish() -> dict[str, Any]:
        found: dict[str, Any] = dict(first.finish()) if first is not None and first.finish is not None else {}
        found |= {name: plan.finish() for name, plan in plans.items() if plan.finish is not None}
        return {name: found[name] for name in names}

    return Plan(
        [spans for part in parts for spans in part.spans],
        tuple(action for part in parts for action in part.settle),
        finish if answered else None,
        sum(part.entries for part in parts),
        sum(part.lasts for part in parts),
        {key: total for part in parts for key, total in part.squares.items()},
        tuple(action for part in parts for action in part.encode),
    )


def _clipped(exchange: Exchange, plan: Plan) -> Plan:
    """`plan` as this worker's norms clip it, where they do."""
    if not plan.squares:
        return plan
    from windlass import clipping

    return clipping.weighed(exchange, plan)
