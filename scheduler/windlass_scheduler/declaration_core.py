"""Stores and what is declared in them: tensors, rules, layouts, and who writes the first values.

A declaration is the new names of one `Declare` call. Its life:

    open --(rank 0, or the lowest rank there is)--> granted --(every share holds its first values)--> sealed
    granted --(the grantee's session ends)--> open, and at once granted to the lowest rank that waits

Rank 0's values win: while rank 0 of the job lives, or is still expected, nobody else is granted. Who declares
the same later is compared with what was declared, whatever was changed live since, and gets the tables that
exist.

Deleted names are free: they may be declared anew, with anything, and get tables of their own.

SPMD: every worker makes the same calls in the same order. So a call must repeat a recorded call, or name only
new tensors while the caller has made every call that a living worker made at this step; of a call whose names
it shares it must give all, unless it has made that call itself before (a notebook cell that grows).

Invariants (`validate`): a name belongs to one declaration of its store; a table id and a store id are given
once; a sealed declaration has no grantee and nobody waits for it.

Owner: the loop that drives it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, cast

from windlass_proto import job_quotas
from windlass_proto.consistency import Consistency
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.layout import (
    block_elements_for,
    dtype_named,
    padded,
    whole_begins,
)
from windlass_scheduler import limits
from windlass_scheduler.counters import Counters
from windlass_scheduler.declared import (
    DECLARATION_PREFIX,
    STORE_PREFIX,
    Call,
    Declaration,
    Group,
    Store,
    Tensor,
    Waiting,
    declaration_record,
    read_declaration,
    read_store,
    store_record,
)
from windlass_scheduler.disagreements import check_declare, check_name, compare_tensor, refuse_names
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Refuse, Say
from windlass_scheduler.placement import Run, homes

# Events


@dataclass(frozen=True, slots=True)
class OpenStore:
    waiter: int
    job: str
    name: str
    consistency: str
    rank: int


@dataclass(frozen=True, slots=True)
class Declare:
    """`rank_zero_awaited`: rank 0 of the job lives or is expected, so only it may be granted.

    `runs`: the vshards of each server, as they are or will be; blocks that cut no tensor are placed on them.
    `vectors`: what the rule keeps beside dense weights; `rows_bytes`: what servers hold of the job's tables.
    """

    waiter: int
    session: bytes
    rank: int
    job: str
    store_id: int
    step: int
    tensors: tuple[Tensor, ...]
    rule: bytes
    rule_text: str
    reduce: str
    block_elements_max: int
    rank_zero_awaited: bool
    transfer: bytes = b""
    lazy: bool = False
    layout: str = "blocks"
    runs: tuple[tuple[Run, ...], ...] = ()
    vectors: int = 0
    rows_bytes: int = 0
    quota_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Seal:
    """`refused`: why servers do not take the tensors, which are then not declared any more."""

    waiter: int
    session: bytes
    declaration_id: int
    refused: str = ""


@dataclass(frozen=True, slots=True)
class AwaitSeal:
    waiter: int
    session: bytes
    rank: int
    declaration_id: int
    rank_zero_awaited: bool


@dataclass(frozen=True, slots=True)
class Abandoned:
    waiter: int


@dataclass(frozen=True, slots=True)
class SessionGone:
    """A worker of `job` is gone."""

    session: bytes
    job: str
    rank_zero_awaited: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Tensors are deleted; names that are not declared are no matter."""

    store_id: int
    names: frozenset[str]


Event: TypeAlias = OpenStore | Declare | Seal | AwaitSeal | Abandoned | SessionGone | Forget

# Answers


@dataclass(frozen=True, slots=True)
class Declared:
    declaration_id: int
    granted: bool
    sealed: bool
    groups: tuple[Group, ...]
    tables: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SealAwaited:
    sealed: bool
    granted: bool


_MADE: Final = "declared-by/"


class Declarations:
    """`step(event) -> effects`; a refused request raises and changes nothing."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._stores: dict[int, Store] = {}
        self._store_ids: dict[tuple[str, str], int] = {}
        self._declarations: dict[int, Declaration] = {}

    def stores(self) -> Iterator[Store]:
        return iter(self._stores.values())

    def store(self, store_id: int) -> Store:
        """Raises UsageError if there is none of that number."""
        try:
            return self._stores[store_id]
        except KeyError:
            raise UsageError(
                "no store has this number", store_id=store_id, next_move="Open the store by name first."
            ) from None

    def declarations(self, store_id: int) -> list[Declaration]:
        return [d for d in self._declarations.values() if d.store_id == store_id]

    def groups(self, store_id: int) -> list[Group]:
        return [group for declaration in self.declarations(store_id) for group in declaration.groups]

    def step(self, event: Event) -> list[Effect]:
        match event:
            case OpenStore():
                return self._open_store(event)
            case Declare():
                return self._declare(event)
            case Seal():
                return self._seal(event)
            case AwaitSeal():
                return self._await_seal(event)
            case Abandoned():
                for declaration in self._declarations.values():
                    kept = {s: w for s, w in declaration.waiting.items() if w.waiter != event.waiter}
                    declaration.waiting = kept
                return []
            case SessionGone():
                return self._session_gone(event)
            case Forget():
                return self._forget(event)

    # Stores

    def _open_store(self, event: OpenStore) -> list[Effect]:
        store_id = self._store_ids.get((event.job, event.name))
        if store_id is not None:
            store = self._stores[store_id]
            if store.consistency != event.consistency:
                raise UsageError(
                    f"workers open store {event.name} with different consistency",
                    **{f"rank_{store.rank}": store.consistency, f"rank_{event.rank}_asks": event.consistency},
                    next_move="Give the same consistency= on every worker; store.set() changes it for all.",
                )
            return [Answer(event.waiter, store)]
        check_name("store", event.name)
        Consistency.parse(event.consistency)
        if len(self._stores) >= limits.STORES_MAX:
            raise UnavailableError("the cluster has too many stores", stores_max=limits.STORES_MAX)
        store = Store(self._counters.take("store"), event.job, event.name, event.consistency, event.rank)
        self._stores[store.store_id] = store
        self._store_ids[event.job, event.name] = store.store_id
        return [store_record(store), Answer(event.waiter, store)]

    # Declaring

    def _declare(self, event: Declare) -> list[Effect]:
        store = self.store(event.store_id)
        check_declare(event, store)
        self._compare(store, event)
        call, new = self._compare_names(store, event)
        effects: list[Effect] = []
        if new:
            dense_bytes = _dense_bytes(new, event.vectors)
            job_quotas.check(store.job, self.dense_bytes(store.job) + event.rows_bytes, dense_bytes, event.quota_bytes)
            effects += self._record_declaration(store, event, new, dense_bytes)
        if call is None:
            store.calls.append(Call(frozenset(t.spec.name for t in event.tensors), event.step, event.rank))
            call = len(store.calls) - 1
            effects.append(store_record(store))
        made = store.calls_made.setdefault(event.session, set())
        if call not in made:
            made.add(call)
            key = f"{_MADE}{store.store_id}/{event.session.hex()}"
            effects.append(Persist(key, {"calls": sorted(made)}))
        covering = self._covering(store, event.tensors)
        answered = min(covering, key=lambda declaration: (declaration.sealed, declaration.declaration_id))
        if all(declaration.sealed for declaration in covering):
            answered = covering[-1]
        effects += self._grant_caller(answered, event.session, event.rank, event.rank_zero_awaited)
        reply = Declared(
            answered.declaration_id,
            granted=answered.grantee == event.session,
            sealed=all(declaration.sealed for declaration in covering),
            groups=tuple(group for declaration in covering for group in declaration.groups),
            tables=tuple(group.table_id for group in answered.groups),
        )
        return [*effects, Answer(event.waiter, reply)]

    def _forget(self, event: Forget, refused: UsageError | None = None) -> list[Effect]:
        store = self.store(event.store_id)
        known = event.names & store.owner_of.keys()
        effects: list[Effect] = []
        for declaration_id in sorted({store.owner_of[name] for name in known}):
            declaration = self._declarations[declaration_id]
            declaration.deleted |= known & declaration.names()
            if declaration.names():
                effects.append(declaration_record(declaration))
            else:
                del self._declarations[declaration_id]
                effects.append(Persist(f"{DECLARATION_PREFIX}{declaration_id}", None))
                error = refused or _deleted(store)
                effects += [Refuse(w.waiter, error) for w in declaration.waiting.values()]
        for name in known:
            del store.owner_of[name]
        store.calls = [replace(call, names=call.names - known) for call in store.calls]
        text = f"{len(known)} tensors of store {store.name} deleted"
        return [*effects, store_record(store), Say("deleted", text, store.job)] if known else []

    def forget_job(self, job: str) -> tuple[list[int], list[Effect]]:
        """The job is over: its stores, by number, and what is in them are gone."""
        gone = [store.store_id for store in self._stores.values() if store.job == job]
        effects: list[Effect] = []
        for store_id in gone:
            store = self._stores.pop(store_id)
            del self._store_ids[job, store.name]
            effects.append(Persist(f"{STORE_PREFIX}{store_id}", None))
            effects += [Persist(f"{_MADE}{store_id}/{session.hex()}", None) for session in store.calls_made]
            for declaration in self.declarations(store_id):
                del self._declarations[declaration.declaration_id]
                effects.append(Persist(f"{DECLARATION_PREFIX}{declaration.declaration_id}", None))
        return gone, effects

    def dense_bytes(self, job: str) -> int:
        """What the dense tensors of a job take on the servers, with their rules' state."""
        ours = {store.store_id for store in self._stores.values() if store.job == job}
        return sum(each.dense_bytes for each in self._declarations.values() if each.store_id in ours)

    def deleted(self, table_id: int) -> frozenset[str]:
        """The names in a table that are deleted."""
        for declaration in self._declarations.values():
            if any(group.table_id == table_id for group in declaration.groups):
                return declaration.deleted
        return frozenset()

    def _covering(self, store: Store, tensors: Sequence[Tensor]) -> list[Declaration]:
        ids = sorted({store.owner_of[tensor.spec.name] for tensor in tensors})
        return [self._declarations[declaration_id] for declaration_id in ids]

    def _compare(self, store: Store, event: Declare) -> None:
        """Tensors that exist are as they were declared."""
        known = [tensor for tensor in event.tensors if tensor.spec.name in store.owner_of]
        declared = {
            spec.name: (declaration, group, spec)
            for declaration in self._covering(store, known)
            for group in declaration.groups
            for spec in group.tensors
            if spec.name not in declaration.deleted
        }
        for tensor in known:
            compare_tensor(*declared[tensor.spec.name], tensor, event)

    def _compare_names(self, store: Store, event: Declare) -> tuple[int | None, list[Tensor]]:
        """The recorded call that this one repeats (None: it is new), and the tensors that it adds."""
        names = frozenset(tensor.spec.name for tensor in event.tensors)
        made = store.calls_made.get(event.session, set())
        for number, call in enumerate(store.calls):
            if call.names == names:
                return number, []
        made_by_the_living = set().union(*store.calls_made.values())
        for number, call in enumerate(store.calls):
            unmade = call.step == event.step and number in made_by_the_living and bool(call.names)
            if number not in made and (call.names & names or unmade):
                refuse_names(store, call, event, names)
        return None, [tensor for tensor in event.tensors if tensor.spec.name not in store.owner_of]

    def _record_declaration(self, store: Store, event: Declare, new: list[Tensor], dense_bytes: int) -> list[Effect]:
        groups = []
        kinds = dict.fromkeys((t.dtype, t.table, t.spec.name if t.table else "") for t in new)
        for dtype, table, name in kinds:
            specs = tuple(t.spec for t in new if (t.dtype, t.table) == (dtype, table) and name in ("", t.spec.name))
            itemsize = dtype_named(dtype).itemsize
            sizes = [padded(spec.elements, itemsize) for spec in specs]
            block_elements = block_elements_for(sum(sizes), event.block_elements_max)
            whole = event.layout == "whole" and not table
            groups.append(
                Group(
                    table_id=self._counters.take("table"),
                    store_id=store.store_id,
                    dtype=dtype,
                    tensors=specs,
                    block_elements=block_elements,
                    rule=event.rule,
                    reduce=event.reduce,
                    table=table,
                    transfer=event.transfer,
                    lazy=event.lazy,
                    layout="whole" if whole else "blocks",
                    homes=self._homes(whole_begins(sizes, block_elements), itemsize, event) if whole else (),
                )
            )
        declaration = Declaration(
            declaration_id=self._counters.take("declaration"),
            store_id=store.store_id,
            rank=event.rank,
            rule_text=event.rule_text,
            dense_bytes=dense_bytes,
            groups=tuple(groups),
        )
        self._declarations[declaration.declaration_id] = declaration
        store.owner_of.update({tensor.spec.name: declaration.declaration_id for tensor in new})
        text = f"{len(new)} tensors declared in store {store.name} by rank {event.rank}"
        return [declaration_record(declaration), Say("declared", text, store.job)]

    def _homes(self, begins: tuple[int, ...], itemsize: int, event: Declare) -> tuple[int, ...]:
        """Where blocks that cut no tensor lie, beside those that lie there already. (The others are spread evenly.)"""
        held: Counter[int] = Counter()
        for group in (g for d in self._declarations.values() for g in d.groups if g.homes):
            size = dtype_named(group.dtype).itemsize
            known = whole_begins([padded(spec.elements, size) for spec in group.tensors], group.block_elements)
            for home, (begin, end) in zip(group.homes, itertools.pairwise(known), strict=True):
                held[home] += (end - begin) * size
        return homes([(end - begin) * itemsize for begin, end in itertools.pairwise(begins)], event.runs, held)

    # Granting and sealing

    def _grant_caller(
        self, declaration: Declaration, session: bytes, rank: int, rank_zero_awaited: bool
    ) -> list[Effect]:
        if declaration.sealed or declaration.grantee or (rank_zero_awaited and rank != 0):
            return []
        declaration.grantee = session
        return [declaration_record(declaration)]

    def _declaration(self, declaration_id: int) -> Declaration:
        try:
            return self._declarations[declaration_id]
        except KeyError:
            raise UsageError("no declaration has this number", declaration_id=declaration_id) from None

    def _withdraw(self, event: Seal) -> list[Effect]:
        """Servers refused the tensors. A living worker that was granted them is refused as well, and says so itself."""
        declaration = self._declarations.get(event.declaration_id)
        if declaration is None or declaration.sealed or declaration.grantee not in (b"", event.session):
            return [Answer(event.waiter, None)]
        error = UsageError("the servers do not take the tensors of an init", reason=event.refused)
        forget = Forget(declaration.store_id, declaration.names())
        return [*self._forget(forget, error), Answer(event.waiter, None)]

    def _seal(self, event: Seal) -> list[Effect]:
        if event.refused:
            return self._withdraw(event)
        declaration = self._declaration(event.declaration_id)
        if declaration.sealed:
            return [Answer(event.waiter, None)]
        if declaration.grantee != event.session:
            raise UsageError(
                "a declaration was sealed by a worker that was not granted it",
                declaration_id=event.declaration_id,
                next_move="Declare again and write first values only when granted.",
            )
        declaration.sealed, declaration.grantee = True, b""
        waiting, declaration.waiting = declaration.waiting, {}
        answers = [Answer(w.waiter, SealAwaited(sealed=True, granted=False)) for w in waiting.values()]
        text = f"first values of {sum(len(g.tensors) for g in declaration.groups)} tensors are on the servers"
        say = Say("sealed", text, self._stores[declaration.store_id].job)
        return [declaration_record(declaration), Answer(event.waiter, None), *answers, say]

    def _await_seal(self, event: AwaitSeal) -> list[Effect]:
        declaration = self._declaration(event.declaration_id)
        if declaration.sealed:
            return [Answer(event.waiter, SealAwaited(sealed=True, granted=False))]
        effects = self._grant_caller(declaration, event.session, event.rank, event.rank_zero_awaited)
        if declaration.grantee == event.session:
            return [*effects, Answer(event.waiter, SealAwaited(sealed=False, granted=True))]
        before = declaration.waiting.get(event.session)
        declaration.waiting[event.session] = Waiting(event.waiter, event.session, event.rank)
        return [] if before is None else [Refuse(before.waiter, _superseded(event.rank))]

    def _session_gone(self, event: SessionGone) -> list[Effect]:
        effects: list[Effect] = []
        for store in self._stores.values():
            if store.calls_made.pop(event.session, None) is not None:
                effects.append(Persist(f"{_MADE}{store.store_id}/{event.session.hex()}", None))
        for declaration in self._declarations.values():
            if declaration.sealed or self._stores[declaration.store_id].job != event.job:
                continue
            declaration.waiting.pop(event.session, None)
            if declaration.grantee == event.session:
                declaration.grantee = b""
                effects.append(declaration_record(declaration))
            effects += self._grant_waiting(declaration, event.rank_zero_awaited)
        return effects

    def _grant_waiting(self, declaration: Declaration, rank_zero_awaited: bool) -> list[Effect]:
        if declaration.grantee or not declaration.waiting:
            return []
        heir = min(declaration.waiting.values(), key=lambda waiting: waiting.rank)
        granted = self._grant_caller(declaration, heir.session, heir.rank, rank_zero_awaited)
        if not granted:
            return []
        del declaration.waiting[heir.session]
        text = f"rank {heir.rank} writes the first values: the worker that was to write them is gone"
        say = Say("grant_passed", text, self._stores[declaration.store_id].job)
        return [*granted, Answer(heir.waiter, SealAwaited(sealed=False, granted=True)), say]

    # Lasting

    def restore(self, records: Mapping[str, Record]) -> None:
        for key, record in records.items():
            if key.startswith(STORE_PREFIX):
                store = read_store(record)
                self._stores[store.store_id] = store
                self._store_ids[store.job, store.name] = store.store_id
        for key, record in records.items():
            if key.startswith(DECLARATION_PREFIX):
                declaration = read_declaration(record)
                self._declarations[declaration.declaration_id] = declaration
                owner_of = self._stores[declaration.store_id].owner_of
                owner_of.update(dict.fromkeys(declaration.names(), declaration.declaration_id))
            elif key.startswith(_MADE):
                store_id, session = key.removeprefix(_MADE).split("/")
                made = set(cast("list[int]", record["calls"]))
                self._stores[int(store_id)].calls_made[bytes.fromhex(session)] = made
        self._declarations = dict(sorted(self._declarations.items()))

    def validate(self) -> None:
        tables = [group.table_id for d in self._declarations.values() for group in d.groups]
        assert len(tables) == len(set(tables))
        for declaration in self._declarations.values():
            store = self._stores[declaration.store_id]
            assert not (declaration.sealed and (declaration.grantee or declaration.waiting))
            assert declaration.grantee not in declaration.waiting
            assert declaration.names(), "a declaration without names is kept"
            for name in declaration.names():
                assert store.owner_of[name] == declaration.declaration_id
        for store in self._stores.values():
            named = {name for call in store.calls for name in call.names}
            assert named == store.owner_of.keys()


def _dense_bytes(tensors: Sequence[Tensor], vectors: int) -> int:
    sizes = [(t.spec.elements, dtype_named(t.dtype).itemsize) for t in tensors if not t.table]
    return sum(padded(elements, itemsize) * itemsize for elements, itemsize in sizes) * (1 + vectors)


def _deleted(store: Store) -> UsageError:
    return UsageError("the tensors were deleted before they had values", store=store.name)


def _superseded(rank: int) -> UnavailableError:
    return UnavailableError("the same session asked again for this declaration", rank=rank)
