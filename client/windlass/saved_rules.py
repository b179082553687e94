"""Hyper-parameters that were changed live, in a checkpoint and back from it.

A rule record names tensors by patterns, "in tables up to number n": what is declared later is as declared. Numbers of
tables differ from run to run, so a checkpoint says beside each change which tensors and tables it covered. A run that
takes the checkpoint up finds the number that says the same of its own tables; where no number does (it declares in
another order), the change is cut into one for each name.

Invariant: after a restore every tensor and table that is in the checkpoint has the hyper-parameters that it had then.
The record that was live before is replaced whole, by the worker that restores, as an action of its present step.
"""

from __future__ import annotations

import fnmatch
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from windlass import actions
from windlass_proto import rule_records
from windlass_proto.rule_records import RuleChange, RuleRecord

if TYPE_CHECKING:
    from windlass.store import Store
    from windlass_proto.checkpoint_format import LiveChange


def saved(store: Store) -> tuple[LiveChange, ...]:
    """What holds in the store's present step beside what was declared."""
    from windlass_proto.checkpoint_format import LiveChange

    declared = store.exchange.declared()
    return tuple(
        LiveChange(change, tuple(name for name, (table, _) in declared.items() if _covers(change, name, table)))
        for change in store.present_record().changes
    )


def bring_back(store: Store, live: tuple[LiveChange, ...]) -> None:
    """What held when the checkpoint was made holds from the store's present step on.

    Raises:
        UsageError: it takes more bytes than a record may have, since tensors are declared in another order now.
    """
    rules = store.member.live(store.store_id)
    if not live and not rules.newest().changes:
        return
    record = RuleRecord(1, 0, tuple(change for saved in live for change in _translated(store, saved)))
    text = record.in_words() or "what was declared"
    asking = actions.asking(store, "set", f"restored {secrets.token_hex(8)}", actions.digest_of_text(text), text)
    asking.record = rule_records.to_bytes(record)
    rules.learn(actions.ask(store, asking, f"restore in store {store.name}").record)


def _covers(change: RuleChange, name: str, table: int) -> bool:
    return table <= change.tables_to and fnmatch.fnmatchcase(name, change.names)


def _translated(store: Store, live: LiveChange) -> Iterator[RuleChange]:
    """The change as this run's tables have it."""
    matching = {
        name: table
        for name, (table, _) in store.exchange.declared().items()
        if fnmatch.fnmatchcase(name, live.change.names)
    }
    covered = matching.keys() & set(live.covers)
    if not covered:
        return
    last = max(matching[name] for name in covered)
    if all(name in covered for name, table in matching.items() if table <= last):
        yield RuleChange(live.change.names, last, live.change.values)
        return
    for name in sorted(covered):
        yield RuleChange(_literally(name), matching[name], live.change.values)


def _literally(name: str) -> str:
    """A pattern that matches `name` alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
