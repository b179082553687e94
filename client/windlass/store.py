"""A store: named dense tensors and sparse tables with one consistency mode, as a worker uses them.

Every push belongs to the worker's current step of the store. A step closes at `update`, at `push_pull`, at the end of
`with store.step():`, and otherwise at the first `pull` after a `push`; closing sends a mark to every server of the
store.

Invariant: `clock` is the number of steps this worker has closed; it grows by one with each mark. A store belongs to one
thread at a time (`_lock`), tickets may be waited for by any.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass import declare
from windlass.arrays import Array, as_numpy, family_of
from windlass.data_link import InArena, refusal_of
from windlass.exchange import Exchange, Plan
from windlass.pump import Mark
from windlass.ticket import Ticket
from windlass.window_core import Request
from windlass_proto import limits, memory
from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.frames import Op, Status
from windlass_proto.init_specs import InitSpec, Normal
from windlass_proto.rule_specs import RuleSpec

if TYPE_CHECKING:
    from windlass.member import Member
    from windlass.sparse_table import Table


class Store:
    """Made by `cluster.store(name)`; see the module."""

    def __init__(self, member: Member, store_id: int, name: str, consistency: str) -> None:
        self.name = name
        self.consistency = consistency
        self.clock = 0
        self.store_id = store_id
        self.member = member
        self.entered = False
        self.exchange = Exchange(member, name)
        self._lock = threading.RLock()
        self._depth = 0
        self._pushed = False
        self._actions: dict[str, tuple[int, int]] = {}  # action -> the step of its last calls, and how many
        self._latest: Ticket | None = None
        self._open_push: Ticket | None = None  # the last push of the open step
        self._weight: float | None = None
        self._failed: deque[Ticket] = deque(maxlen=16)
        self._steps: deque[Ticket] = deque()

    def __repr__(self) -> str:
        count = len(self.exchange.where)
        return f"<windlass store {self.name!r}, {self.consistency}, {count} tensors, clock {self.clock}>"

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
            self.exchange.family = family_of(next(iter(arrays.values()), None))
            fresh = declare.declare(self, given, optimizer, groups or {}, reduce)
            plan = self.exchange.params_plan(list(given))
            ticket, requests = self._ticket(Op.PULL, plan, clock=0 if fresh else self.clock)
            self.member.pump.submit(requests)
        params: dict[str, Any] = ticket.result()
        return params

    def table(
        self,
        name: str,
        dim: int,
        optimizer: RuleSpec,
        init: InitSpec | None = None,
        dtype: Any = np.float32,
        reduce: str = "mean",
        bytes_max: int = limits.TABLE_BYTES_DEFAULT,
    ) -> Table:
        """Declare a sparse table: rows of `dim` values by id. Every worker calls it with equal arguments.

        Args:
            name: with the id it decides where a row lies and how it begins, so equal names begin alike in any cluster.
            dim: values of a row, 1 to 4,096.
            optimizer: the rule, which touches the rows of a push alone and keeps its state for each of them.
            init: how a row begins, one of `windlass.init`; Normal(0.01) unless given.
            dtype: float32 or float64.
            reduce: "mean" (weighted by `weight=`) or "sum" over workers, under "bsp".
            bytes_max: what rows and their state may take over all servers; a push beyond is refused whole.

        Raises:
            UsageError: another worker declared the name otherwise; both are named.
        """
        with self._lock:
            self._check()
            spec = Normal(0.01) if init is None else init
            return declare.declare_table(self, name, dim, optimizer, spec, np.dtype(dtype), reduce, bytes_max)

    def specs(self) -> dict[str, dict[str, Any]]:
        """name -> shape, dtype and rule of every declared tensor."""
        return self.exchange.specs()

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
            grads: name -> array of the tensor's shape and dtype. Arrays of `store.empty` are borrowed until the ticket
            is
                done; others are copied before the call returns, unless `borrow`.
            weight: this worker's weight in the mean, the same for all pushes of a step.
            priority: higher ones overtake what has not been sent.
        """
        make = functools.partial(self.exchange.push_plan, Op.PUSH, grads, None, borrow=borrow)
        return self.send(Op.PUSH, make, weight=weight, priority=priority)

    def pull(self, names: Iterable[str] | str | None = None, out: Mapping[str, Any] | None = None) -> Ticket:
        """Ask for present values (all tensors, or those named); closes the step if something was pushed in it.

        The ticket's result is a dict of arrays: `out`'s where given, else fresh ones.
        """
        with self._lock:
            self._check()
            chosen = [names] if isinstance(names, str) else list(self.exchange.where if names is None else names)
            chosen = list(dict.fromkeys(chosen if out is None or names is not None else out))
            if out is not None and not out.keys() >= set(chosen):
                raise UsageError(
                    "out= lacks tensors that were asked for",
                    store=self.name,
                    missing=", ".join(sorted(set(chosen) - out.keys())),
                    next_move="Pass an array for each name.",
                )
            return self.ask(Op.PULL, functools.partial(self.exchange.pull_plan, chosen, out))

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
            self.exchange.by_table(given, what="an assigned array")
            action = declare.agree(self, "assign", sorted(given), declare.digest_of(given), declare.in_words(given))
            if action is not None:
                ticket, requests = self._ticket(Op.ASSIGN, self.exchange.push_plan(Op.ASSIGN, given, None))
                self.member.pump.submit(requests)
                ticket.result()
                declare.agreed(self, action)

    def delete(self, names: Iterable[str] | str) -> None:
        """Delete tensors, their slots with them, once the steps before this one are complete. The names are free then.

        Called by one worker or by all at the same step. A worker that goes on using them gets a UsageError; under
        "asp" and "ssp" that may be a worker which has not come to this call yet, so put a barrier before it there.

        Raises:
            UsageError: a name is not declared, another worker deletes other tensors at this step, or this step has
            pushes.
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

    def next_call(self, action: str) -> int:
        """Counts the calls of `action` at this step, from 1: every worker's n-th is the same action."""
        step, calls = self._actions.get(action, (-1, 0))
        self._actions[action] = (self.clock, calls + 1 if step == self.clock else 1)
        return self._actions[action][1]

    # ---- what tables send and ask ------------------------------------------------------------------------------------

    def send(self, op: Op, make: Callable[[], Plan], *, weight: float | None = None, priority: int = 0) -> Ticket:
        """Send what `make` plans: a push in the current step, a push_pull that closes it, or an erasure."""
        with self._lock:
            self._check_writes(op.name.lower())
            if op is Op.PUSH_PULL:
                self._check_no_step(op)
            if weight is not None:
                self._check_weight(weight)
                self._weight = weight
            ticket, requests = self._ticket(op, make(), priority=priority)
            mark = None
            if op is Op.PUSH:
                self._pushed = True
                self._open_push = ticket
            elif op is Op.PUSH_PULL:
                mark = self._close_step()
                self._bound_open_steps(ticket)
            self._latest = ticket
            self.member.pump.submit(requests, mark)
            return ticket

    def ask(self, op: Op, make: Callable[[], Plan]) -> Ticket:
        """Ask for what `make` plans; a pull closes the step if something was pushed in it, other questions do not."""
        with self._lock:
            self._check()
            inside = self._depth > 0 or op is not Op.PULL
            mark = self._close_step() if self._pushed and not inside else None
            ticket, requests = self._ticket(op, make(), nowait=inside)
            self.member.pump.submit(requests, mark)
            return ticket

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
        tensors = self.exchange.request_names(request, status)
        return refusal_of(status, tensors, worker=self.member.joined.rank)

    def leave(self) -> None:
        """Say the last clock: nobody waits for this worker's further steps."""
        if self.entered and self.exchange.servers():
            self.member.pump.submit(
                [], Mark(self.store_id, max(0, self.clock - 1), self.exchange.servers(), leaves=True)
            )

    def check_waitable(self, ticket: Ticket) -> None:
        """Under bsp a push is answered once its step has completed, which waits for this worker to close it.

        Raises:
            UsageError: the step of `ticket` is open, so that to wait for it would be for ever.
        """
        self.member.check_open()
        if self._pushed and self.consistency == "bsp" and ticket is self._open_push:
            raise UsageError(
                "a push was waited for inside its step, which only this worker can close",
                store=self.name,
                step=self.clock,
                next_move="Close the step first: pull, or leave the `with store.step()` block.",
            )

    def finish(self) -> None:
        """Wait until what was pushed last is answered."""
        if self._latest is not None and self._latest.left:
            self.member.pump.wait(self._latest, None)

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
        self._check_no_step(Op.PUSH_PULL)
        plan = self.exchange.push_plan(Op.PUSH_PULL, grads, out, borrow=borrow)
        self._weight = weight
        ticket, requests = self._ticket(Op.PUSH_PULL, plan, priority=priority, last=True)
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

    def _check_no_step(self, op: Op) -> None:
        if self._depth:
            raise UsageError(
                f"{op.name.lower()} was called inside `with store.step()`",
                store=self.name,
                next_move="Use push inside the block and pull after it.",
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
        mark = Mark(self.store_id, self.clock, self.exchange.servers())
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

    def _ticket(
        self,
        op: Op,
        plan: Plan,
        *,
        priority: int = 0,
        last: bool = False,
        nowait: bool = False,
        clock: int | None = None,
    ) -> tuple[Ticket, list[Request]]:
        """A ticket for what `plan` sends, and its requests."""
        at = self.clock if clock is None else clock
        ticket = Ticket(
            self.member.pump,
            f"{op.name.lower()} of {self.name}",
            plan.entries,
            store=self,
            clock=at,
            finish=plan.finish,
            settle=plan.settle,
        )
        if not plan.entries:
            self.on_done(ticket)
        weight, free = self.weight, self.member.all_shared
        requests = [
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
                nbytes=0 if payload is None or (free and type(payload) is InArena) else payload.nbytes,
                out=out,
                weight=weight,
                last=last,
                nowait=nowait,
                priority=priority,
            )
            for spans in plan.spans
            for share, block, begin, end, payload, out in spans
        ]
        return ticket, requests

    def first_values(self, arrays: Mapping[str, Array]) -> Ticket:
        """Send first values of declared tensors."""
        ticket, requests = self._ticket(Op.INIT, self.exchange.push_plan(Op.INIT, arrays, None))
        self.member.pump.submit(requests)
        return ticket

    def drops(self, names: Iterable[str]) -> Ticket:
        """Delete tensors on the servers, after the steps before this one have completed on them."""
        chosen = list(names)
        before, requests = self._ticket(Op.PULL, self.exchange.pull_plan(chosen, None))
        self.member.pump.submit(requests)
        with contextlib.suppress(UsageError):  # another worker deleted them at an earlier step
            before.result()
        ticket, requests = self._ticket(Op.DROP, self.exchange.drop_plan(chosen))
        self.member.pump.submit(requests)
        return ticket
