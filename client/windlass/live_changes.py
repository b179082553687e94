"""Live changes: hyper-parameters and the mode of a store, changed while it trains, and a plateau that lowers an lr.

A change is an action of all workers (`actions`), and holds for every worker from one step on. Invariant: a change that
some rule of the store cannot do is refused before anybody is told of it.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from windlass import actions
from windlass_proto import rule_records, rule_specs
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.errors import UnavailableError, UsageError, WindlassError
from windlass_proto.rule_records import RuleChange
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.schedules import Plateau, Rate

if TYPE_CHECKING:
    from windlass.store import Store

_FAILED = "failed"  # what an action leaves behind that could not be done


def carry_out(
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
    in_mode = Consistency.parse(mode) if mode else store.modes.newest()
    rule_specs.check_staleness(hyper_parameters.get("lr"), in_mode)
    request = actions.asking(
        store, "set", key or f"call {actions.next_call(store, 'set')}", actions.digest_of_text(f"{names}\0{text}"), text
    )
    request.change = rule_records.change_to_bytes(change) if change is not None else b""
    request.consistency = mode
    member = store.member
    reply = actions.ask(store, request, f"set in store {store.name}")
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
            actions.agreed(store, action_id, _FAILED)
        raise
    member.learn_roster(changed.roster)
    member.live(store.store_id).learn(changed.record)
    actions.agreed(store, action_id, str(changed.clock))
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
            carry_out(store, "*", {"lr": present.lowered()}, key="plateau")
    watch_plateau(store)


def live_rates(store: Store) -> list[Rate]:
    """The different lr of a store's tensors and tables, as they are live; None for a rule that has none."""
    present = store.member.live(store.store_id).newest()
    declared = store.exchange.declared()
    rules = [present.rule_of(table_id, name, rule) for name, (table_id, rule) in declared.items()]
    return list(dict.fromkeys(getattr(rule, "lr", None) for rule in rules))


def check_mixture(store: Store, optimizer: RuleSpec) -> None:
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
