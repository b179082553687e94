"""A store: named dense tensors and sparse tables with one consistency mode, as a worker uses them.

Every push belongs to the worker's current step of the store. A step closes at `update`, at `push_pull`, at the end of
`with store.step():` (where `push_pull` closes its tensors only), and otherwise at the first `pull` after a `push`;
closing sends a mark to every server of the store.

Invariant: a push belongs to the step that was open when it was called, whatever thread sends it. A store belongs to one
thread at a time (`_lock`), tickets may be waited for by any.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass import checkpoints, declare, first_values, live_changes, mixture, readings
from windlass.arrays import Array, dtype_name
from windlass.averaging import Averaging
from windlass.data_link import refusal_of
from windlass.exchange import Exchange
from windlass.live_modes import LiveModes
from windlass.mixture import Asked
from windlass.open_step import OpenStep
from windlass.open_tickets import OpenTickets
from windlass.plan import Plan
from windlass.plateau import PlateauWatch
from windlass.pump import Mark
from windlass.reads import Read, Reads
from windlass.saved_store import SavedStore
from windlass.ticket import Ticket
from windlass.window_core import Request, Stamp
from windlass_proto import life_specs, limits, transfer_specs
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.consistency import Mode
from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.frames import Op, Status
from windlass_proto.init_specs import InitSpec, Normal
from windlass_proto.life_specs import AdmitSpec, EvictSpec
from windlass_proto.rule_records import RuleRecord
from windlass_proto.rule_specs import RuleSpec

if TYPE_CHECKING:
    from windlass.member import Member
    from windlass.sparse_table import Table


class Store(SavedStore):
    """Made by `cluster.store(name)`; see the module."""

    def __init__(
        self, member: Member, store_id: int, name: str, consistency: str, *, job: str = "", run_dir: Path | None = None
    ) -> None:
        self.name = name
        self.job = job
        self.modes = LiveModes(member, store_id, consistency)
        self.store_id = store_id
        self.open = OpenStep(name, store_id)
        self.member = member
        self.entered = False
        self.steps_before = 0  # of earlier runs, whose checkpoint this store holds, less the clock when it came back
        self.restored_at = 0  # the clock when it came back
        self.resumes = 0
        self.resumed_from: Path | None = None  # whoever joins later reads it
        self.exchange = Exchange(member, name)
        self.exchange.steps_done = lambda: self.steps_done
        self.exchange.present_record = self.present_record
        self._lock = threading.RLock()
        self.actions: dict[str, tuple[int, int]] = {}  # action -> the step of its last calls, and how many
        self.tickets = OpenTickets(member.pump)
        self._live = member.live(store_id)
        self.plateau: PlateauWatch | None = None
        super().__init__(run_dir)
        self._averaging = Averaging(self)
        self._reads = Reads(self.exchange.sparse)

    def __repr__(self) -> str:
        count = len(self.exchange.where)
        return f"<windlass store {self.name!r}, {self.consistency}, {count} tensors, clock {self.clock}>"

    @property
    def consistency(self) -> str:
        """The mode of this worker's present step."""
        return str(self.modes.at(self.clock))

    @property
    def clock(self) -> int:
        """Steps that this worker has closed."""
        return self.open.clock

    @property
    def steps_done(self) -> int:
        """Steps closed since the run began, also before it was resumed."""
        return self.steps_before + self.clock

    def init(
        self,
        arrays: Mapping[str, Any],
        optimizer: RuleSpec,
        groups: Mapping[str, Mapping[str, float]] | None = None,
        reduce: str = "mean",
        *,
        codec: CodecSpec | None = None,
        codec_down: CodecSpec | None = None,
        nonfinite: str = "reject",
        dtype: str | None = None,
        lazy: bool = False,
        layout: str = "blocks",
    ) -> dict[str, Any]:
        """Declare tensors and give their first values; rank 0's win. Every worker calls it with equal names and shapes.

        Returns name -> array of what the cluster holds: this worker's to read and write, and the best `out=`.

        Args:
            arrays: name -> array, float32, float64, float16 or bfloat16 (of PyTorch or ml_dtypes).
            optimizer: the update rule that the servers run, e.g. `wl.optim.Adam(lr=1e-3)`.
            groups: name pattern (as in fnmatch) -> dict of `lr_mult` and `decay_mult`; the first match counts.
            reduce: "mean" (weighted by `weight=`) or "sum" over workers.
            codec, codec_down, nonfinite, dtype: see docs/compression.md and docs/mixed-precision.md.
            lazy: a push of `wl.Rows` updates these rows alone, at their cost; see docs/rows.md.
            layout: "blocks" cuts large tensors over servers; "whole" cuts none, so that rules which take norms of
                weights work in every mode. A tensor is 63 MiB then at most.

        Raises:
            UsageError: another worker declared other names, shapes, dtypes or another rule; both are named.
        """
        with self._lock:
            self._check_writes("init")
            given, dtypes = first_values.in_halves(arrays, dtype)
            self.exchange.speak_as(next(iter(arrays.values()), None))
            fresh = declare.declare(
                self,
                given,
                optimizer,
                groups or {},
                reduce,
                (codec, codec_down, nonfinite),
                dtypes,
                lazy=lazy,
                layout=layout,
            )
            live_changes.watch_plateau(self)
            plan = self.exchange.params_plan(list(given))
            ticket, requests = self.ticket_of(Op.PULL, plan, clock=0 if fresh else self.clock)
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
        admit: AdmitSpec | None = None,
        evict: EvictSpec | Iterable[EvictSpec] | None = None,
        codec: CodecSpec | None = None,
        codec_down: CodecSpec | None = None,
        nonfinite: str = "reject",
    ) -> Table:
        """Declare a sparse table: rows of `dim` values by id. Every worker calls it with equal arguments.

        Args:
            name: with the id it decides where a row lies and how it begins, so equal names begin alike in any cluster.
            dim: values of a row, 1 to 4,096.
            optimizer: the rule, which touches the rows of a push alone and keeps its state for each of them.
            init: how a row begins, one of `windlass.init`; Normal(0.01) unless given.
            dtype: float32 or float64; float16 and "bfloat16" rows travel as such and are float32 on the servers.
            reduce: "mean" (weighted by `weight=`) or "sum" over workers, under "bsp".
            bytes_max: what rows and their state may take over all servers; what is beyond is refused, by bands.
            admit: which ids get rows, one of `windlass.admit`; every one that is pushed to unless given.
            evict: which rows go again, one of `windlass.evict`, or a TTL and another one.
            codec, codec_down, nonfinite: see docs/compression.md and docs/mixed-precision.md.

        Raises:
            UsageError: another worker declared the name otherwise; both are named.
        """
        with self._lock:
            self._check()
            spec = Normal(0.01) if init is None else init
            life = (life_specs.admission(admit), life_specs.evictions(evict))
            travels = (dtype_name(dtype), transfer_specs.of(codec, codec_down, nonfinite))
            table = declare.declare_table(self, name, dim, optimizer, spec, travels, reduce, bytes_max, life)
            live_changes.watch_plateau(self)
            return table

    def specs(self) -> dict[str, dict[str, Any]]:
        """name -> shape, dtype and rule of every tensor and table, with the hyper-parameters of the present step."""
        return self.exchange.specs(self.present_record())

    @property
    def replaced(self) -> dict[str, int]:
        """name -> how many values of this worker's gradients were not finite and were replaced, as nonfinite= says."""
        return self.exchange.replaced.by_name()

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An array that the servers on this host can read in place: pushes of it are not copied.

        Between `push` and its ticket's end it is borrowed: do not write to it.
        """
        return self.member.empty((shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype))

    def push(self, grads: Mapping[str, Any], *, weight: float = 1.0, priority: int = 0, borrow: bool = False) -> Ticket:
        """Send gradients as part of the current step; several pushes of one step are summed.

        Args:
            grads: name -> array of the tensor's shape and dtype, or `windlass.Rows(ids, gradients)` of a table. Arrays
                of `store.empty` are borrowed until the ticket is done; others are copied before the call returns,
                unless `borrow`; rows always are.
            weight: this worker's weight in the mean, the same for all pushes of a step.
            priority: higher ones overtake what has not been sent.
        """
        self.open.check_unfinished(grads)
        make = functools.partial(mixture.push_plan, self.exchange, Op.PUSH, grads, None, borrow=borrow)
        return self.send(Op.PUSH, make, weight=weight, priority=priority)

    def pull(self, names: Asked = None, out: Mapping[str, Any] | None = None, *, priority: int = 0) -> Ticket:
        """Ask for present values, in `out` or fresh arrays, by name; closes a step that has pushes.

        Args:
            names: tensors; or name -> ids of the rows of a table, None of a tensor, in one round trip; default: all
                tensors.
            out: an array for each tensor, and for what rows it is wanted: of the shape ids.shape + (dim,).
            priority: higher ones overtake what has not been sent.
        """
        return self.ask(Op.PULL, functools.partial(mixture.pull_plan, self.exchange, names, out), priority=priority)

    def push_pull(
        self,
        grads: Mapping[str, Any],
        out: Mapping[str, Any] | None = None,
        *,
        weight: float = 1.0,
        priority: int = 0,
        borrow: bool = False,
    ) -> Ticket:
        """Push, close the step, and ask for the values after it. The result is `out`, or a dict of fresh arrays.

        Inside `with store.step()` it does not close the step: it is the step's last push of these tensors, whose new
        values come as soon as every worker has made its own, layer by layer (docs/overlap.md). `out` may be written
        from the call on. Under "bsp" they are waited for after the block.

        Of rows, those that were pushed to come back, in the order of their ids; in `out` they may be left out.
        """
        with self._lock:
            ticket, requests, mark = self._last_push(grads, out, weight, borrow=borrow, priority=priority)
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
            self.open.check_no_block("update")
            ticket, requests, mark = self._last_push(grads, out, weight, borrow=borrow, priority=0)
            held = self.member.pump.submit_to_wait(requests, mark)
        self.member.pump.wait_on(ticket, held=held)
        result: dict[str, Any] = ticket.result()
        return result

    def average(self, params: Mapping[str, Any], *, weight: float = 1.0, now: bool = False) -> bool:
        """Under "avg:H=N": count a step that this worker made on `params`; with every N-th, exchange them, in place.

        Returns whether it was an exchange. `weight` is of this step, e.g. `len(batch)`: an exchange weighs what was
        trained on since the last. `now` exchanges with this step; every worker waits for the others' exchange.
        """
        return self._averaging.step(params, weight, now=now)

    def skip(self, out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Close the step with nothing from this worker (its gradients overflowed) and return the values after it."""
        return first_values.skip(self, out)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Everything inside is one step; pulls inside read the last completed step and never wait."""
        with self._lock:
            self._check()
            self.open.depth += 1
        try:
            yield
        finally:
            with self._lock:
                self.open.depth -= 1
                if self.open.depth == 0:
                    self.member.pump.submit([], self._close_step())

    def assign(self, arrays: Mapping[str, Any]) -> None:
        """Overwrite tensors once the steps before this one are complete; slots stay.

        Called by one worker or by all with equal values at the same step: the n-th `assign` of a step is one action.

        Raises:
            UsageError: another worker assigns other values at this step; both are named.
        """
        with self._lock:
            self._check_writes("assign")
            first_values.assign(self, arrays)

    def delete(self, names: Iterable[str] | str) -> None:
        """Delete tensors and tables, slots with them, once the steps before this one are complete. The names are free.

        Called by one worker or by all at the same step. A worker that goes on using them gets a UsageError; under
        "asp" and "ssp" that may be a worker which has not come to this call yet, so put a barrier before it there.

        Raises:
            UsageError: a name is not declared, another worker deletes other tensors at this step, or this step has
            pushes.
        """
        with self._lock:
            self._check_writes("delete")
            chosen = sorted({names} if isinstance(names, str) else set(names))
            self.open.check_nothing_pushed("delete")
            declare.delete(self, chosen)

    def set(self, names: str = "*", *, consistency: str | None = None, **hyper_parameters: Any) -> int:
        """Change hyper-parameters of the update rule, or the mode, while training, e.g. `store.set(lr=1e-4)`.

        Called by one worker or by all with equal values at the same step: the n-th `set` of a step is one action. Every
        worker of the job follows: under "bsp" and "ssp" from the step returned on, under "asp", where steps have
        nothing in common, with its next push. A schedule given here counts the same steps as one declared.

        Args:
            names: name pattern (as in fnmatch) of the tensors and tables; what is declared later is as declared.
            consistency: another mode, for the whole store, from the next step that nobody has begun; what else is given
                holds from there, too. Workers under "asp" and "ssp" go on with that step: `clock` may jump.
            hyper_parameters: numbers of their rule, or schedules for lr and weight_decay.

        Returns:
            The first step it holds from: this one, or (not under "asp") a later one that an earlier change holds from.

        Raises:
            UsageError: the rule cannot do it, this step has pushes, or another worker sets something else.
        """
        with self._lock:
            self._check_writes("set")
            self.open.check_nothing_pushed("set")
            since = live_changes.carry_out(self, names, hyper_parameters, consistency)
            self.open.unstamp()
            live_changes.watch_plateau(self)
            return self.clock if consistency is None and self.consistency == "asp" else since

    def read(
        self,
        reader: str,
        name: str,
        request: bytes = b"",
        *,
        version: str = "",
        answer_bytes: int = 64 * limits.KIB,
        timeout: float | None = 60.0,
    ) -> list[bytes]:
        """Run a reader of an installed package on the servers, where tensor or table `name` lies; its answers.

        One answer for each part that a server holds, in the order of keys. See docs/own-readers.md.

        Args:
            request: what the reader is given.
            version: of its package; any that all servers have unless given.
            answer_bytes: how long each answer may be.

        Raises:
            UsageError: a server may not run it, has another version, or the reader failed.
            TimeoutError: after `timeout` seconds.
        """
        return readings.read(self, reader, name, request, version, answer_bytes, timeout)

    # ---- what tables send and ask ------------------------------------------------------------------------------------

    def send(self, op: Op, make: Callable[[], Plan], *, weight: float | None = None, priority: int = 0) -> Ticket:
        """Send what `make` plans: a push in the current step, a push_pull that closes it (no block), or an erasure."""
        with self._lock:
            self._check_writes(op.name.lower())
            if weight is not None:
                self.open.weigh(weight)
                self._stamp_step()  # what is planned depends on which step this is
            ticket, requests = self.ticket_of(op, make(), priority=priority)
            mark = self._pushed(op, ticket) if op is not Op.ERASE else None
            self.member.pump.submit(requests, mark)
            return ticket

    def ask(self, op: Op, make: Callable[[], Plan], *, priority: int = 0) -> Ticket:
        """Ask for what `make` plans; a pull closes the step if something was pushed in it, other questions do not."""
        with self._lock:
            self._check()
            inside = self.open.depth > 0 or op is not Op.PULL
            mark = self._close_step() if self.open.pushed and not inside else None
            ticket, requests = self.ticket_of(op, make(), nowait=inside, priority=priority)
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
            self.tickets.fail(ticket)

    def has_read(self, reads: Iterable[Read]) -> None:
        """A caller has these values: gradients that are pushed from now on are made from them."""
        for read in reads:
            self._reads.take(read)

    def refusal(self, status: Status, request: Request) -> WindlassError:
        """Why a request was refused, with its tensors and this worker; the pump's holder calls this."""
        tensors = self.exchange.request_names(request, status)
        return refusal_of(status, tensors, worker=self.member.joined.rank)

    def leave(self) -> None:
        """Say the last clock: nobody waits for this worker's further steps."""
        if self.entered and self.exchange.servers():
            last = max(0, self.clock - 1)
            mark = Mark(self.store_id, last, self.exchange.servers(), leaves=True, stamp=self.open.stamp)
            self.member.pump.submit([], mark)

    def check_waitable(self, ticket: Ticket) -> None:
        """Under bsp a push is answered once its step has completed, which may wait for this worker to close it.

        Raises:
            UsageError: the step of `ticket` is open, so that to wait for it may be for ever.
        """
        self.member.check_open()
        mode = self.modes.at(self.clock)
        waits = mode.mode is Mode.BSP or (mode.mode is Mode.SSP and not mode.bound and ticket.brings_values)
        if waits and self.tickets.in_step(ticket):
            raise UsageError(
                "a push was waited for inside its step, which only this worker can close",
                store=self.name,
                step=self.clock,
                next_move="Close the step first: pull, or leave the `with store.step()` block.",
            )

    def finish(self) -> None:
        """Wait until what was pushed last is answered."""
        self.tickets.finish()
        if self.saving is not None and self.saving.writes:
            checkpoints.settle(self)

    def end(self) -> None:
        """The connection is closed: join what still ran."""
        if self.saving is not None:
            self.saving.end()

    def _last_push(
        self, grads: Mapping[str, Any], out: Mapping[str, Any] | None, weight: float, *, borrow: bool, priority: int
    ) -> tuple[Ticket, list[Request], Mark | None]:
        """What a push_pull sends: its entries, and the mark of the step unless that is a block, whose end closes it."""
        self._check_writes("push_pull")
        self.open.check_unfinished(grads)
        self.open.weigh(weight)
        self._stamp_step()  # what is planned depends on which step this is
        plan = mixture.push_plan(self.exchange, Op.PUSH_PULL, grads, out, borrow=borrow)
        ticket, requests = self.ticket_of(Op.PUSH_PULL, plan, priority=priority)
        self.open.finished.update(name for name in grads if name in self.exchange.where)
        return ticket, requests, self._pushed(Op.PUSH_PULL, ticket)

    def _pushed(self, op: Op, ticket: Ticket) -> Mark | None:
        """`ticket` belongs to the open step; the mark that closes it, if it does."""
        self.open.pushed = True
        self.tickets.sent(ticket)
        return self._close_step() if op is Op.PUSH_PULL and not self.open.depth else None

    def _check(self) -> None:
        self.member.check_open()
        self.tickets.raise_failed()

    def _check_writes(self, call: str) -> None:
        self._check()
        if self.member.observes:
            raise UsageError(
                "an observer reads only", call=call, next_move="Connect without observe=True to take part in steps."
            )

    def check_between_steps(self, call: str) -> None:
        """This worker takes part in steps, and none is open.

        Raises:
            UsageError: it is not so.
        """
        self._check_writes(call)
        self.open.check_nothing_pushed(call, inside=self.open.depth > 0)

    def _close_step(self) -> Mark:
        self._stamp_step()
        self.tickets.close_step()
        return self.open.close(self.exchange.servers())

    def present_record(self) -> RuleRecord:
        """The hyper-parameters that this worker's present step is for."""
        return self._live.newest() if self.modes.at(self.clock).mode is Mode.ASP else self._live.at(self.clock)

    def _stamp_step(self) -> Stamp | None:
        """The stamp of this step, which begins with it: at the step that others have come to, if ours is behind."""
        if not self.open.is_stamped:
            self.open.reach(self.modes.reach(self.clock))
            jumped = self.open.jump(self.exchange.servers())
            if jumped is not None:
                self.member.pump.submit([], jumped)
            if self.plateau is not None and self.plateau.due and self.open.depth == 0:
                live_changes.lower_lr(self)
            self.open.stamp_with(self.present_record() if self._live.records else None)
        return self.open.stamp

    def ticket_of(
        self,
        op: Op,
        plan: Plan,
        *,
        priority: int = 0,
        nowait: bool = False,
        clock: int | None = None,
    ) -> tuple[Ticket, list[Request]]:
        """A ticket for what `plan` sends, and its requests."""
        stamped = op in (Op.PUSH, Op.PUSH_PULL)
        stamp = self._stamp_step() if stamped else None
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
        requests = plan.requests(
            op,
            self.store_id,
            ticket,
            clock=at,
            weight=self.open.weight,
            stamp=stamp,
            free=self.member.all_shared,
            nowait=nowait,
            priority=priority,
            reads=self._reads if stamped and self.modes.at(at).mode is not Mode.BSP else None,
        )
        return ticket, requests
