"""A store: named dense tensors with one consistency mode, as a worker uses them.

Every push belongs to the worker's current step of the store. A step closes at `update`, at `push_pull`, at the end of
`with store.step():`, and otherwise at the first `pull` after a `push`; closing sends a mark to every server of the store.

Invariant: `clock` is the number of steps this worker has closed; it grows by one with each mark. A store belongs to one
thread at a time (`_lock`), tickets may be waited for by any.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass import declare
from windlass.arrays import Array, as_numpy, as_target, check_like, family_of
from windlass.borrow import Borrowed
from windlass.data_link import InArena, bytes_of, refusal_of
from windlass.dense_table import DenseTable, Flat, Place, Span, not_finite, tensors_between
from windlass.pump import Mark
from windlass.ticket import Ticket
from windlass.window_core import Request
from windlass_proto import limits, memory
from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.frames import Op, Status
from windlass_proto.rule_specs import RuleSpec

if TYPE_CHECKING:
    from windlass.member import Member


class Store:
    """Made by `cluster.store(name)`; see the module."""

    def __init__(self, member: Member, store_id: int, name: str, consistency: str) -> None:
        self.name = name
        self.consistency = consistency
        self.clock = 0
        self.store_id = store_id
        self.member = member
        self.entered = False
        self.tables: dict[int, DenseTable] = {}
        self.rules: dict[int, RuleSpec] = {}
        self.where: dict[str, tuple[int, int]] = {}  # tensor name -> (table id, tensor number)
        self._lock = threading.RLock()
        self._depth = 0
        self._pushed = False
        self._actions: dict[str, tuple[int, int]] = {}  # action -> the step of its last calls, and how many
        self._latest: Ticket | None = None
        self._weight: float | None = None
        self._failed: deque[Ticket] = deque(maxlen=16)
        self._steps: deque[Ticket] = deque()
        self._family: Callable[[Array], Any] = lambda array: array
        self._params: dict[int, Flat] = {}

    def __repr__(self) -> str:
        return f"<windlass store {self.name!r}, {self.consistency}, {len(self.where)} tensors, clock {self.clock}>"

    @property
    def weight(self) -> float:
        """This worker's weight in the mean of its last step."""
        return 1.0 if self._weight is None else self._weight

    # ---- declaring ---------------------------------------------------------------------------------------------------

    def init(
        self,
        arrays: Mapping[str, Any],
        optimizer: RuleSpec,
        groups: Mapping[str, Mapping[str, float]] | None = None,
        reduce: str = "mean",
    ) -> dict[str, Any]:
        """Declare tensors and give their first values; rank 0's win. Every worker calls it with equal names and shapes.

        Args:
            arrays: name -> array, float32 or float64.
            optimizer: the update rule that the servers run, e.g. `wl.optim.Adam(lr=1e-3)`.
            groups: name pattern (as in fnmatch) -> dict of `lr_mult` and `decay_mult`; the first match counts.
            reduce: "mean" (weighted by `weight=`) or "sum" over workers.

        Returns:
            name -> array of what the cluster holds. They are this worker's to read and write, and the best `out=`.

        Raises:
            UsageError: another worker declared other names, shapes, dtypes or another rule; both are named.
        """
        with self._lock:
            self._check_writes("init")
            if not isinstance(arrays, Mapping):
                raise UsageError(
                    "init was not given a dict", type=type(arrays).__name__, next_move="Pass name -> array."
                )
            given = {name: as_numpy(name, value) for name, value in arrays.items()}
            self._family = family_of(next(iter(arrays.values()), None))
            fresh = declare.declare(self, given, optimizer, groups or {}, reduce)
            flats = self._pull_flats(given, clock=0 if fresh else self.clock)
            self._params.update(flats)
            return self._named(given, flats)

    def specs(self) -> dict[str, dict[str, Any]]:
        """name -> shape, dtype and rule of every declared tensor."""
        found = {}
        for name, (table_id, number) in self.where.items():
            layout = self.tables[table_id].layout
            found[name] = {
                "shape": layout.tensors[number].shape,
                "dtype": layout.dtype_name,
                "rule": self.rules[table_id],
            }
        return found

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An array that the servers on this host can read in place: pushes of it are not copied.

        Between `push` and its ticket's end it is borrowed: do not write to it.
        """
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        kind = np.dtype(dtype)
        nbytes = int(np.prod(dims, dtype=np.int64)) * kind.itemsize
        heap = self.member.heap
        if heap is None:
            array = memory.aligned_zeros(nbytes // kind.itemsize, kind)
            self.member.own(array)
        else:
            piece = heap.take(nbytes)
            heap.own_span(piece, 0, nbytes)
            array = piece.array.view(kind)
        return array.reshape(dims)

    # ---- steps -------------------------------------------------------------------------------------------------------

    def push(self, grads: Mapping[str, Any], *, weight: float = 1.0, priority: int = 0, borrow: bool = False) -> Ticket:
        """Send gradients as part of the current step; several pushes of one step are summed.

        Args:
            grads: name -> array of the tensor's shape and dtype. Arrays of `store.empty` are borrowed until the ticket is
                done; others are copied before the call returns, unless `borrow`.
            weight: this worker's weight in the mean, the same for all pushes of a step.
            priority: higher ones overtake what has not been sent.
        """
        with self._lock:
            self._check_writes("push")
            self._check_weight(weight)
            ticket, requests = self._pushes(
                Op.PUSH, grads, None, borrow=borrow, priority=priority, last=False, weight=weight
            )
            self._pushed = True
            self._latest = ticket
            self.member.pump.submit(requests)
            return ticket

    def pull(self, names: Iterable[str] | str | None = None, out: Mapping[str, Any] | None = None) -> Ticket:
        """Ask for present values (all tensors, or those named); closes the step if something was pushed in it.

        The ticket's result is a dict of arrays: `out`'s where given, else fresh ones.
        """
        with self._lock:
            self._check()
            chosen = [names] if isinstance(names, str) else list(self.where if names is None else names)
            chosen = list(dict.fromkeys(chosen if out is None or names is not None else out))
            if out is not None and not out.keys() >= set(chosen):
                raise UsageError(
                    "out= lacks tensors that were asked for",
                    store=self.name,
                    missing=", ".join(sorted(set(chosen) - out.keys())),
                    next_move="Pass an array for each name.",
                )
            inside = self._depth > 0
            mark = self._close_step() if self._pushed and not inside else None
            ticket, requests = self._pulls(chosen, out, nowait=inside)
            self.member.pump.submit(requests, mark)
            return ticket

    def push_pull(
        self,
        grads: Mapping[str, Any],
        out: Mapping[str, Any] | None = None,
        *,
        weight: float = 1.0,
        priority: int = 0,
        borrow: bool = False,
    ) -> Ticket:
        """Push, close the step, and ask for the values after it. The result is `out`, or a dict of fresh arrays."""
        with self._lock:
            ticket, requests, mark = self._whole_step(grads, out, weight, borrow=borrow, priority=priority)
            self.member.pump.submit(requests, mark)
            return ticket

    def update(
        self,
        grads: Mapping[str, Any],
        out: Mapping[str, Any] | None = None,
        *,
        weight: float = 1.0,
        borrow: bool = False,
    ) -> dict[str, Any]:
        """`push_pull` and wait: one training step. Returns the new values (`out` if given)."""
        with self._lock:
            ticket, requests, mark = self._whole_step(grads, out, weight, borrow=borrow, priority=0)
            held = self.member.pump.submit_to_wait(requests, mark)
        self.member.pump.wait_on(ticket, held=held)
        result: dict[str, Any] = ticket.result()
        return result

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Everything inside is one step; pulls inside read the last completed step and never wait."""
        with self._lock:
            self._check()
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self.member.pump.submit([], self._close_step())

    # ---- whole values ------------------------------------------------------------------------------------------------

    def assign(self, arrays: Mapping[str, Any]) -> None:
        """Overwrite tensors once the steps before this one are complete; slots stay.

        Called by one worker or by all with equal values at the same step: the n-th `assign` of a step is one action.

        Raises:
            UsageError: another worker assigns other values at this step; both are named.
        """
        with self._lock:
            self._check_writes("assign")
            given = {name: as_numpy(name, value) for name, value in arrays.items()}
            self._by_table(given, what="an assigned array")
            action = declare.agree(self, "assign", sorted(given), declare.digest_of(given), declare.in_words(given))
            if action is not None:
                ticket, requests = self._pushes(Op.ASSIGN, given, None, borrow=False, priority=0, last=False)
                self.member.pump.submit(requests)
                ticket.result()
                declare.agreed(self, action)

    def delete(self, names: Iterable[str] | str) -> None:
        """Delete tensors, their slots with them, once the steps before this one are complete. The names are free then.

        Called by one worker or by all at the same step. A worker that goes on using them gets a UsageError; under "asp" and
        "ssp" that may be a worker which has not come to this call yet, so put a barrier before it there.

        Raises:
            UsageError: a name is not declared, another worker deletes other tensors at this step, or this step has pushes.
        """
        with self._lock:
            self._check_writes("delete")
            chosen = sorted({names} if isinstance(names, str) else set(names))
            if self._pushed:
                raise UsageError(
                    "tensors were to be deleted inside a step",
                    store=self.name,
                    step=self.clock,
                    next_move="Close the step with update, push_pull or pull before.",
                )
            declare.delete(self, chosen)

    def forget(self, names: Iterable[str]) -> None:
        """Deleted tensors are not this worker's any more."""
        for name in names:
            self.where.pop(name, None)
        held = {table_id for table_id, _ in self.where.values()}
        for table_id in self.tables.keys() - held:
            del self.tables[table_id], self.rules[table_id]
            self._params.pop(table_id, None)

    def next_call(self, action: str) -> int:
        """Counts the calls of `action` at this step, from 1: every worker's n-th is the same action."""
        step, calls = self._actions.get(action, (-1, 0))
        self._actions[action] = (self.clock, calls + 1 if step == self.clock else 1)
        return self._actions[action][1]

    # ---- what the pump calls -----------------------------------------------------------------------------------------

    def on_done(self, ticket: Ticket) -> None:
        """A ticket's last answer is here; the pump's holder calls this before anybody sees it done."""
        if ticket.error is None:
            try:
                for action in ticket.settle:
                    action()
            except UsageError as error:
                ticket.error = error
        if ticket.error is not None:
            self._failed.append(ticket)

    def refusal(self, status: Status, request: Request) -> WindlassError:
        """Why a request was refused, with its tensors and this worker; the pump's holder calls this."""
        table = self.tables.get(request.share[0])
        names: list[str] = []
        if table is not None:
            place = (table.layout, request.block, request.seg_begin, request.seg_end)
            if status is Status.REJECTED:
                names = not_finite(*place, bytes_of(request.payload, self.member.heap))
            names = names or tensors_between(*place)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return refusal_of(status, shown or f"table {request.share[0]}", worker=self.member.joined.rank)

    def table_names(self, table_id: int) -> str:
        """A table in words: its first tensors."""
        table = self.tables.get(table_id)
        if table is None:
            return f"table {table_id}"
        names = [tensor.name for tensor in table.layout.tensors]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def leave(self) -> None:
        """Say the last clock: nobody waits for this worker's further steps."""
        if self.entered and self.tables:
            self.member.pump.submit([], Mark(self.store_id, max(0, self.clock - 1), self.servers(), leaves=True))

    def finish(self) -> None:
        """Wait until what was pushed last is answered."""
        if self._latest is not None and self._latest.left:
            self.member.pump.wait(self._latest, None)

    def servers(self) -> tuple[int, ...]:
        """The servers that hold a share of this store."""
        owner = self.member.server_of
        return tuple(sorted({owner(block.vshard) for table in self.tables.values() for block in table.layout.blocks}))

    def raise_failed(self) -> None:
        """Raise the error of a ticket that nobody waited for."""
        while self._failed:
            ticket = self._failed.popleft()
            if not ticket.seen and ticket.error is not None:
                ticket.seen = True
                raise ticket.error

    def _whole_step(
        self, grads: Mapping[str, Any], out: Mapping[str, Any] | None, weight: float, *, borrow: bool, priority: int
    ) -> tuple[Ticket, list[Request], Mark]:
        """What a push_pull sends: its entries and the mark of the step that it closes."""
        self._check_writes("push_pull")
        self._check_weight(weight)
        if self._depth:
            raise UsageError(
                "push_pull was called inside `with store.step()`",
                store=self.name,
                next_move="Use push inside the block and pull after it.",
            )
        ticket, requests = self._pushes(
            Op.PUSH_PULL, grads, out, borrow=borrow, priority=priority, last=True, weight=weight
        )
        self._latest = ticket
        mark = self._close_step()
        self._bound_open_steps(ticket)
        return ticket, requests, mark

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self.member.check_open()
        self.raise_failed()

    def _check_writes(self, call: str) -> None:
        self._check()
        if self.member.observes:
            raise UsageError(
                "an observer reads only", call=call, next_move="Connect without observe=True to take part in steps."
            )

    def _check_weight(self, weight: float) -> None:
        if not 0.0 < weight < 1e30:
            raise UsageError("a weight is not a positive number", weight=weight, next_move="Pass weight=len(batch).")
        if self._pushed and self._weight != weight:
            raise UsageError(
                "pushes of one step have different weights",
                store=self.name,
                first=self._weight,
                now=weight,
                next_move="A worker has one weight in a step's mean: pass the same to each push of it.",
            )

    def _close_step(self) -> Mark:
        mark = Mark(self.store_id, self.clock, self.servers())
        self.clock += 1
        self._pushed = False
        return mark

    def _bound_open_steps(self, ticket: Ticket) -> None:
        self._steps.append(ticket)
        while self._steps and self._steps[0].done():
            self._steps.popleft()
        if len(self._steps) > limits.OPEN_STEPS_MAX:
            oldest = self._steps.popleft()
            self.member.pump.wait(oldest, None)

    def place(self, name: str) -> tuple[int, int]:
        """Table id and number of a declared tensor.

        Raises:
            UsageError: it is not declared; the nearest name is said.
        """
        found = self.where.get(name)
        if found is None:
            close = difflib.get_close_matches(name, self.where, 1)
            raise UsageError(
                "a tensor is not declared in this store",
                store=self.name,
                name=name,
                nearest=close[0] if close else "none",
                next_move="Call store.init with it first, on every worker." if not close else f"Use {close[0]!r}.",
            )
        return found

    def _by_table(self, arrays: Mapping[str, Any], *, what: str, target: bool = False) -> dict[int, dict[int, Array]]:
        """Arrays by table and tensor number, checked against what is declared."""
        if not arrays:
            raise UsageError("no arrays were given", store=self.name, next_move="Pass a dict of name -> array.")
        found: dict[int, dict[int, Array]] = {}
        for name, value in arrays.items():
            table_id, number = self.place(name)
            array = as_target(name, value) if target else as_numpy(name, value)
            layout = self.tables[table_id].layout
            check_like(name, array, layout.tensors[number].shape, layout.dtype, what=what)
            found.setdefault(table_id, {})[number] = array
        return {table_id: dict(sorted(tensors.items())) for table_id, tensors in found.items()}

    def _pushes(
        self,
        op: Op,
        grads: Mapping[str, Any],
        out: Mapping[str, Any] | None,
        *,
        borrow: bool,
        priority: int,
        last: bool,
        weight: float | None = None,
    ) -> tuple[Ticket, list[Request]]:
        sources = self._by_table(grads, what="a gradient" if op is not Op.ASSIGN else "an assigned array")
        if out is not None and set(out) != set(grads):
            raise UsageError(
                "out= has other names than the gradients",
                store=self.name,
                out=sorted(out),
                grads=sorted(grads),
                next_move="Pass the same names, or pull the others.",
            )
        targets = self._by_table(out, what="an out array", target=True) if out is not None else {}
        if weight is not None:
            self._weight = weight
        plans: list[list[Span]] = []
        after: list[Callable[[], None]] = []
        settle: list[Callable[[], None]] = []
        flats: dict[int, Flat] = {}
        for table_id, tensors in sources.items():
            table = self.tables[table_id]
            source = self._source(table, tensors, settle, borrow=borrow)
            target: Place = None
            if op is Op.PUSH_PULL:
                target = self._target(table, targets.get(table_id), flats, after)
            plans.append(table.spans(tuple(tensors), source, target))
        names = list(grads)
        finish = self._finisher(names, out, flats, after, values=op is Op.PUSH_PULL)
        return self._requests(op, plans, finish, settle, priority=priority, last=last)

    def drops(self, names: Iterable[str]) -> tuple[Ticket, list[Request]]:
        """The entries that delete tensors, after the steps before this one have completed on them."""
        chosen: dict[int, list[int]] = {}
        for name in names:
            table_id, number = self.place(name)
            chosen.setdefault(table_id, []).append(number)
        before, requests = self._pulls(list(names), None, nowait=False)
        self.member.pump.submit(requests)
        with contextlib.suppress(UsageError):  # another worker deleted them at an earlier step
            before.result()
        plans = [
            self.tables[table_id].spans(tuple(sorted(numbers)), None, None) for table_id, numbers in chosen.items()
        ]
        return self._requests(Op.DROP, plans, lambda: None, (), priority=0, last=False)

    def _pulls(
        self, names: list[str], out: Mapping[str, Any] | None, *, nowait: bool, clock: int | None = None
    ) -> tuple[Ticket, list[Request]]:
        chosen: dict[int, list[int]] = {}
        for name in names:
            table_id, number = self.place(name)
            chosen.setdefault(table_id, []).append(number)
        asked = {name: out[name] for name in names} if out else {}
        targets = self._by_table(asked, what="an out array", target=True) if asked else {}
        flats: dict[int, Flat] = {}
        after: list[Callable[[], None]] = []
        plans = []
        for table_id, numbers in chosen.items():
            table = self.tables[table_id]
            target = self._target(table, targets.get(table_id), flats, after)
            plans.append(table.spans(tuple(sorted(numbers)), None, target))
        finish = self._finisher(names, out, flats, after, values=True)
        return self._requests(Op.PULL, plans, finish, (), priority=0, last=False, nowait=nowait, clock=clock)

    def _requests(
        self,
        op: Op,
        plans: list[list[Span]],
        finish: Callable[[], Any],
        settle: Iterable[Callable[[], None]],
        *,
        priority: int,
        last: bool,
        nowait: bool = False,
        clock: int | None = None,
    ) -> tuple[Ticket, list[Request]]:
        count = sum(map(len, plans))
        at = self.clock if clock is None else clock
        ticket = Ticket(
            self.member.pump,
            f"{op.name.lower()} of {self.name}",
            count,
            store=self,
            clock=at,
            finish=finish,
            settle=settle,
        )
        if not count:
            self.on_done(ticket)
        weight = self.weight
        free = self.member.all_shared
        requests = []
        for spans in plans:
            for share, block, begin, end, payload, out in spans:
                nbytes = 0 if payload is None or (free and type(payload) is InArena) else payload.nbytes
                requests.append(
                    Request(
                        op,
                        self.store_id,
                        share,
                        block,
                        begin,
                        end,
                        owner=ticket,
                        clock=at,
                        payload=payload,
                        nbytes=nbytes,
                        out=out,
                        weight=weight,
                        last=last,
                        nowait=nowait,
                        priority=priority,
                    )
                )
        return ticket, requests

    def _source(
        self, table: DenseTable, tensors: dict[int, Array], settle: list[Callable[[], None]], *, borrow: bool
    ) -> Place:
        """Where gradients are read: in place if they are lent, else from one copy."""
        lent = borrow or all(self.member.lends(table, number, array) for number, array in tensors.items())
        if lent and all(array.flags.c_contiguous for array in tensors.values()):
            borrowed = Borrowed.check(tensors)
            if borrowed is not None:
                settle.append(borrowed.verify)
            return tensors
        flat = table.take_flat()
        for number, array in tensors.items():
            np.copyto(flat.views[table.layout.tensors[number].name], array)
        settle.append(lambda: table.give_flat(flat))
        return flat

    def _target(
        self,
        table: DenseTable,
        tensors: dict[int, Array] | None,
        flats: dict[int, Flat],
        after: list[Callable[[], None]],
    ) -> Place:
        """Where values are written: in place if possible, else into a flat array that `finish` copies from."""
        if tensors is None:
            flat = flats[table.table_id] = Flat(table.layout, self.member.heap)
            return flat
        known = self._params.get(table.table_id)
        specs = table.layout.tensors
        if known is not None and all(known.views[specs[n].name] is array for n, array in tensors.items()):
            return known
        if self.member.heap is None:
            in_place = all(array.flags.c_contiguous and array.flags.writeable for array in tensors.values())
        else:
            in_place = all(table.lies_in_arena(number, array) for number, array in tensors.items())
        if in_place:
            return tensors
        flat = table.take_flat()

        def copy_out() -> None:
            for number, array in tensors.items():
                np.copyto(array, flat.views[specs[number].name])
            table.give_flat(flat)

        after.append(copy_out)
        return flat

    def _finisher(
        self,
        names: list[str],
        out: Mapping[str, Any] | None,
        flats: dict[int, Flat],
        after: list[Callable[[], None]],
        *,
        values: bool,
    ) -> Callable[[], Any]:
        def finish() -> Any:
            for action in after:
                action()
            if not values:
                return None
            return dict(out) if out is not None else self._named(names, flats)

        return finish

    def _named(self, names: Iterable[str], flats: Mapping[int, Flat]) -> dict[str, Any]:
        return {name: self._family(flats[self.where[name][0]].views[name]) for name in names}

    def _pull_flats(self, names: Iterable[str], *, clock: int) -> dict[int, Flat]:
        """Pull whole tensors at `clock` into fresh flat arrays, which become this worker's parameters."""
        wanted = list(names)
        tables = dict.fromkeys(self.place(name)[0] for name in wanted)
        flats = {table_id: Flat(self.tables[table_id].layout, self.member.heap) for table_id in tables}
        out = {name: flats[self.where[name][0]].views[name] for name in wanted}
        self._params, held = flats, self._params
        try:
            ticket, requests = self._pulls(wanted, out, nowait=False, clock=clock)
        finally:
            self._params = held
        self.member.pump.submit(requests)
        ticket.result()
        return flats
