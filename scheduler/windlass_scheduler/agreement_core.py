"""Actions that all workers of a store may ask for and that happen once: assign, set, delete and the like.

An action is known by (store, step, action, key). The first caller is granted it and carries it out; the
others wait until it is done, and are told the result that it left. A caller whose digest differs asked for
something else under the same name: it is refused with both ranks and texts. If the granted session ends
first, the next waiter is granted.

Invariant (`validate`): an action that is not done has one grantee unless nobody waits for it; a done one has
no waiters. Finished actions are kept, the oldest dropped first, so that a retry or a late worker finds that
its action is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

from windlass_proto import limits as wire_limits
from windlass_proto.errors import UnavailableError, UsageError
from windlass_scheduler import limits
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Refuse


@dataclass(frozen=True, slots=True)
class Agree:
    waiter: int
    session: bytes
    rank: int
    store_id: int
    step: int
    action: str
    key: str
    digest: str
    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    waiter: int
    session: bytes
    action_id: int
    result: str = ""


@dataclass(frozen=True, slots=True)
class Abandoned:
    waiter: int


@dataclass(frozen=True, slots=True)
class SessionGone:
    session: bytes


Event: TypeAlias = Agree | Done | Abandoned | SessionGone


@dataclass(frozen=True, slots=True)
class Agreed:
    granted: bool
    action_id: int
    result: str = ""


@dataclass(slots=True)
class _Action:
    action_id: int
    asked: Agree
    grantee: bytes
    done: bool = False
    result: str = ""
    waiting: dict[bytes, Agree] = field(default_factory=dict)

    def agreed(self, *, granted: bool) -> Agreed:
        return Agreed(granted, self.action_id, self.result)


_PREFIX: Final = "action/"
# What a worker that joins after a thousand others still asks for, or is told; dropped after everything else.
_LASTING: Final = frozenset({"resume", "restore"})
_RESTORED_SHOWN: Final = 8
_Key: TypeAlias = tuple[int, int, str, str]


class Agreements:
    """`step(event) -> effects`; a refused request raises and changes nothing."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._actions: dict[_Key, _Action] = {}
        self._keys: dict[int, _Key] = {}

    def open_actions(self, store_id: int) -> list[Agree]:
        """Actions that somebody waits for, as first asked for."""
        found = (action for action in self._actions.values() if action.waiting)
        return [action.asked for action in found if action.asked.store_id == store_id]

    def restored(self, store_id: int) -> list[str]:
        """What the last actions that brought back a checkpoint, or failed to, left behind, oldest first."""
        found = [a for a in self._actions.values() if a.done and a.asked.store_id == store_id]
        found = sorted((a for a in found if a.asked.action in _LASTING), key=lambda action: action.action_id)
        return [action.result for action in found[-_RESTORED_SHOWN:]]

    def granted(self, session: bytes, action_id: int) -> Agree | None:
        """What `session` was granted under this number and has not reported done."""
        key = self._keys.get(action_id)
        action = self._actions[key] if key is not None else None
        return action.asked if action is not None and action.grantee == session else None

    def forget(self, store_id: int) -> list[Effect]:
        """The store is gone, its job over."""
        gone = [self._actions.pop(key) for key in list(self._actions) if key[0] == store_id]
        for action in gone:
            del self._keys[action.action_id]
        return [Persist(f"{_PREFIX}{action.action_id}", None) for action in gone]

    def step(self, event: Event) -> list[Effect]:
        match event:
            case Agree():
                return self._agree(event)
            case Done():
                return self._done(event)
            case Abandoned():
                for action in self._actions.values():
                    kept = {s: asked for s, asked in action.waiting.items() if asked.waiter != event.waiter}
                    action.waiting = kept
                return []
            case SessionGone():
                return [e for action in self._actions.values() for e in self._gone(action, event.session)]

    def _agree(self, event: Agree) -> list[Effect]:
        _check(event)
        key = (event.store_id, event.step, event.action, event.key)
        action = self._actions.get(key)
        if action is None:
            action = _Action(self._counters.take("action"), event, event.session)
            self._actions[key], self._keys[action.action_id] = action, key
            granted = Answer(event.waiter, Agreed(granted=True, action_id=action.action_id))
            return [_record(action), *self._drop_oldest(event.store_id), granted]
        if action.asked.digest != event.digest:
            _refuse(action.asked, event)
        if action.done:
            return [Answer(event.waiter, action.agreed(granted=False))]
        if action.grantee in (b"", event.session):
            changed = action.grantee != event.session
            action.grantee = event.session
            granted = Answer(event.waiter, Agreed(granted=True, action_id=action.action_id))
            return [_record(action), granted] if changed else [granted]
        before = action.waiting.get(event.session)
        action.waiting[event.session] = event
        if before is None:
            return []
        return [Refuse(before.waiter, UnavailableError("the same session asked again", action=event.action))]

    def _done(self, event: Done) -> list[Effect]:
        key = self._keys.get(event.action_id)
        action = self._actions[key] if key is not None else None
        if action is None or action.done:
            return [Answer(event.waiter, None)]
        if action.grantee != event.session:
            raise UsageError(
                "an action was reported done by a worker that was not granted it",
                action=action.asked.action,
                key=action.asked.key,
            )
        if len(event.result.encode()) > limits.TEXT_BYTES_MAX:
            raise UsageError(
                "the result of an action is too long",
                bytes=len(event.result.encode()),
                bytes_max=limits.TEXT_BYTES_MAX,
            )
        action.done, action.grantee, action.result = True, b"", event.result
        waiting, action.waiting = action.waiting, {}
        answers = [Answer(asked.waiter, action.agreed(granted=False)) for asked in waiting.values()]
        return [_record(action), Answer(event.waiter, None), *answers]

    def _gone(self, action: _Action, session: bytes) -> list[Effect]:
        action.waiting.pop(session, None)
        if action.done or action.grantee != session:
            return []
        action.grantee = b""
        if not action.waiting:
            return [_record(action)]
        heir = min(action.waiting.values(), key=lambda asked: asked.rank)
        del action.waiting[heir.session]
        action.grantee = heir.session
        return [_record(action), Answer(heir.waiter, Agreed(granted=True, action_id=action.action_id))]

    def _drop_oldest(self, store_id: int) -> list[Effect]:
        mine = [key for key, action in self._actions.items() if key[0] == store_id and action.done]
        mine.sort(key=lambda key: key[2] in _LASTING)
        dropped: list[Effect] = []
        for key in mine[: max(0, len(mine) - limits.ACTIONS_KEPT_MAX)]:
            action = self._actions.pop(key)
            del self._keys[action.action_id]
            dropped.append(Persist(f"{_PREFIX}{action.action_id}", None))
        return dropped

    def restore(self, records: Mapping[str, Record]) -> None:
        actions = sorted((_action(record) for record in records.values()), key=lambda action: action.action_id)
        for action in actions:
            asked = action.asked
            key = (asked.store_id, asked.step, asked.action, asked.key)
            self._actions[key], self._keys[action.action_id] = action, key

    def validate(self) -> None:
        assert {action.action_id for action in self._actions.values()} == self._keys.keys()
        for action in self._actions.values():
            assert not (action.done and (action.grantee or action.waiting))
            assert action.grantee not in action.waiting
            assert action.done or action.grantee or not action.waiting


def _check(event: Agree) -> None:
    if len(event.names) > wire_limits.TENSORS_MAX:
        raise UsageError("an action names too many tensors", names=len(event.names), names_max=wire_limits.TENSORS_MAX)
    for what, text, bytes_max in (
        ("action", event.action, limits.NAME_BYTES_MAX),
        ("key", event.key, limits.TEXT_BYTES_MAX),
        ("digest", event.digest, limits.NAME_BYTES_MAX),
        ("text", event.text, limits.TEXT_BYTES_MAX),
    ):
        if len(text.encode()) > bytes_max:
            raise UsageError(f"the {what} of an action is too long", bytes=len(text.encode()), bytes_max=bytes_max)


def _refuse(first: Agree, second: Agree) -> None:
    raise UsageError(
        f"workers call {first.action} differently at step {first.step}",
        key=first.key,
        **{f"rank_{first.rank}_gave": first.text, f"rank_{second.rank}_gives": second.text},
        next_move="The same call at the same step needs the same values on every worker.",
    )


def _record(action: _Action) -> Persist:
    asked = action.asked
    return Persist(
        f"{_PREFIX}{action.action_id}",
        {
            "action_id": action.action_id,
            "session": asked.session.hex(),
            "rank": asked.rank,
            "store_id": asked.store_id,
            "step": asked.step,
            "action": asked.action,
            "key": asked.key,
            "digest": asked.digest,
            "text": asked.text,
            "names": list(asked.names),
            "grantee": action.grantee.hex(),
            "done": action.done,
            "result": action.result,
        },
    )


def _action(record: Record) -> _Action:
    asked = Agree(
        waiter=0,
        session=bytes.fromhex(cast("str", record["session"])),
        rank=cast("int", record["rank"]),
        store_id=cast("int", record["store_id"]),
        step=cast("int", record["step"]),
        action=cast("str", record["action"]),
        key=cast("str", record["key"]),
        digest=cast("str", record["digest"]),
        text=cast("str", record["text"]),
        names=tuple(cast("list[str]", record.get("names", []))),
    )
    grantee = bytes.fromhex(cast("str", record["grantee"]))
    return _Action(
        cast("int", record["action_id"]),
        asked,
        grantee,
        cast("bool", record["done"]),
        cast("str", record.get("result", "")),
    )
