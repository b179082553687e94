"""The cluster as a training program sees it."""

from __future__ import annotations

import atexit
import json
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from windlass import declare
from windlass.batches import Batches
from windlass.finding import Found, Patience, Place, find, patience, place
from windlass.member import Member, join_request
from windlass.run_folder import RunFolder
from windlass.store import Store
from windlass_proto import limits
from windlass_proto.consistency import Consistency
from windlass_proto.errors import UsageError, WindlassError

if TYPE_CHECKING:
    from windlass.scalar_log import ScalarLog

T = TypeVar("T")


def connect(
    address: str | None = None,
    *,
    job: str | None = None,
    workers: int | None = None,
    servers: int | None = None,
    observe: bool = False,
    wait_s: float = limits.WAIT_S,
) -> Cluster:
    """Join a cluster as a worker.

    Args:
        address: the scheduler, "host:port". Default: $WINDLASS_SCHEDULER, else the cluster of `windlass up`, else a
            private local cluster that lives as long as this process.
        job: a namespace of stores; default $WINDLASS_JOB.
        workers: how many workers the job starts with; default $WINDLASS_WORKERS, else 1. Steps begin when all are
            there.
        servers: shapes a private local cluster.
        observe: join no step; reads only.
        wait_s: how long to wait for live peers before a call fails.

    Raises:
        UnavailableError: nobody answers there.
        UsageError: refused in words (another token, another protocol version, a rank that is taken).
    """
    _refuse_a_second_import()
    sys.setswitchinterval(0.0005)
    where, patient = place(job, workers), patience(wait_s)
    found = find(address, servers, where.run_dir)
    try:
        return _join(found, where, patient, observe=observe)
    except BaseException:
        if found.private is not None:
            found.private.stop()
        raise


def _refuse_a_second_import() -> None:
    """A process that multiprocessing spawned runs the whole script again, unless its main part is guarded."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and getattr(processes.current_process(), "_inheriting", False):
        raise UsageError(
            "a spawned process that imports its script would join the cluster as one worker more",
            next_move='Keep what the script does below `if __name__ == "__main__":`.',
        )


def _join(found: Found, where: Place, patient: Patience, *, observe: bool) -> Cluster:
    from windlass_proto.control_link import ControlLink
    from windlass_proto.gen import control_pb2 as pb

    control = ControlLink(found.address, found.token, found_by=found.found_by, timeout_s=patient.rpc_s)
    try:
        role = pb.ROLE_OBSERVER if observe else pb.ROLE_WORKER
        name = f"worker-{where.rank}" if where.rank is not None else ""
        request = join_request(role, where.job, where.workers, where.rank, name)
        member = Member(control, request, found.token, patience=patient)
    except BaseException:
        control.close()
        raise
    try:
        member.await_routing(patient.rpc_s)
    except BaseException:
        member.close()
        raise
    if member.joined.rank == 0:
        sys.stderr.write(f"windlass: cluster {found.address} (from {found.found_by}), job {where.job}\n")
    return Cluster(member, found, where, observe=observe)


class Cluster:
    """A joined cluster; made by `connect`. Use it in a `with` block, or call `close`."""

    def __init__(self, member: Member, found: Found, where: Place, *, observe: bool = False) -> None:
        self.job = where.job
        self.num_workers = member.joined.workers_declared or where.workers
        self._member = member
        self._private = found.private
        self._stores: dict[str, Store] = {}
        self._broadcasts = 0
        self._barriers: dict[str, int] = {}
        self._loaders = 0
        self._lock = threading.Lock()
        self._run = RunFolder(where.run_dir, main=self.is_main and not observe, facts=self._facts(found))
        member.on_event = self._run.event
        self._scalars: ScalarLog | None = None
        member.clocks = self._clocks
        self._closed = False
        atexit.register(self._close_at_exit)

    def __repr__(self) -> str:
        place = f"worker {self.rank} of {self.num_workers}"
        return f"<windlass cluster, job {self.job!r}, {place}, {self.num_servers} servers>"

    @property
    def rank(self) -> int:
        """This worker's number in the job, from 0."""
        return int(self._member.joined.rank)

    @property
    def num_servers(self) -> int:
        """Servers that own key ranges."""
        return len(self._member.routing.servers) if self._member.routing is not None else 0

    @property
    def is_main(self) -> bool:
        """Is this the worker of rank 0?"""
        return self.rank == 0 and not self._member.observes

    @property
    def run_dir(self) -> Path:
        """The run folder, `runs/<name>`."""
        return self._run.path

    def store(self, name: str = "default", consistency: str = "bsp") -> Store:
        """The store of this name, made by the first worker that asks; the others must ask for the same mode.

        Args:
            consistency: "bsp", "bsp:k=K", "bsp:k=K,late=fold", "ssp:N", "asp", "avg:H=N" or "avg:H=N,elastic=A".
        """
        from windlass_proto.gen import control_pb2 as pb

        self._member.check_open()
        consistency = str(Consistency.parse(consistency))
        with self._lock:
            known = self._stores.get(name)
            if known is not None:
                declared = str(known.modes.declared)
                if declared != consistency and not self._member.observes:
                    raise UsageError(
                        "a store was opened with another mode", store=name, open=declared, asked=consistency
                    )
                return known
            reply = self._member.control.open_store(
                pb.OpenStoreRequest(session=self._member.session, job=self.job, store=name, consistency=consistency)
            )
            self._member.learn_roster(reply.roster)
            mode = reply.consistency or consistency
            store = Store(self._member, reply.store_id, name, mode, job=self.job, run_dir=self.run_dir)
            if self._member.observes:
                declare.observe(store)
            self._stores[name] = store
            return store

    def batches(
        self,
        *arrays_or_length: Any,
        size: int,
        epochs: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Batches:
        """This worker's share of a data set.

        Args:
            arrays_or_length: arrays of equal length (batches are tuples of slices), or a number of rows (row numbers).
            size: rows a batch, at most. Under bsp every worker gets equally many batches an epoch.
        """
        self._member.check_open()
        self._loaders += 1
        balanced = all(Consistency.parse(store.consistency).is_strict for store in self._stores.values())
        return Batches(
            self._member,
            self.job,
            f"batches-{self._loaders}",
            arrays_or_length,
            size=size,
            epochs=epochs,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            balanced=balanced,
        )

    def log(self, step: int | None = None, **scalars: float) -> None:
        """Log numbers of a step (default: the furthest store's steps): merged over workers, shown, kept. Never blocks.

        The mean over workers has the weights of their last updates. Raises UsageError for what is not a number.
        """
        from windlass.scalar_log import ScalarLog

        self._member.check_open()
        if self._scalars is None:
            self._scalars = ScalarLog(self._member, self._run)
        furthest = max(self._stores.values(), key=lambda store: store.steps_done, default=None)
        clock, weight = (0, 1.0) if furthest is None else (furthest.steps_done, furthest.open.weight)
        self._scalars.put(clock if step is None else step, scalars, weight)

    def progress(self, items: Iterable[T]) -> Iterator[T]:
        """Iterate over `items`, logging how many are done."""
        for count, item in enumerate(items, 1):
            yield item
            self.log(done=float(count))

    def barrier(self, name: str = "barrier") -> None:
        """Wait until every live worker of the job has called it with this name."""
        from windlass_proto.gen import control_pb2 as pb

        self._member.check_open()
        call = self._barriers[name] = self._barriers.get(name, 0) + 1
        asking = pb.BarrierRequest(session=self._member.session, job=self.job, name=name, call=call)
        self._member.ask_peers(self._member.control.barrier, asking, f"barrier {name}")

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Every worker calls it; all receive `root`'s value, which must be JSON."""
        from windlass_proto.gen import control_pb2 as pb

        self._member.check_open()
        self._broadcasts += 1
        try:
            raw = json.dumps(value).encode() if self.rank == root else b""
        except (TypeError, ValueError) as cause:
            raise UsageError("a broadcast value is not JSON", type=type(value).__name__, reason=str(cause)) from cause
        asking = pb.BroadcastRequest(
            session=self._member.session,
            job=self.job,
            call=self._broadcasts,
            root=root,
            is_root=self.rank == root,
            value=raw,
        )
        reply = self._member.ask_peers(self._member.control.broadcast, asking, "broadcast")
        return json.loads(reply.value)

    def status(self) -> dict[str, Any]:
        """The cluster's state as `windlass status --json` prints it."""
        from windlass.status_fields import fields_of

        self._member.check_open()
        return fields_of(self._member.control.status())

    def close(self) -> None:
        """Leave in order: what was pushed is finished, nobody waits for this worker. Raises what nobody waited for."""
        self._close(finish=True)

    def _close(self, *, finish: bool) -> None:
        """Leave; `finish`: wait for other workers whom a push of ours waits for."""
        if self._closed:
            return
        self._closed = True
        if self._member.is_forked():
            return  # the parent's to close
        atexit.unregister(self._close_at_exit)
        failure: WindlassError | None = None
        try:
            for store in self._stores.values():
                try:
                    store.leave()
                    if finish:
                        store.finish()
                    store.tickets.raise_failed()
                except WindlassError as error:
                    failure = failure or error
            if self._scalars is not None:
                self._scalars.close()
            self._member.close(flush_s=5.0 if finish else 0.5)
            for store in self._stores.values():
                store.end()
        finally:
            self._run.close()
            if self._private is not None:
                self._private.stop()
        for store in self._stores.values():
            store.tickets.raise_failed()
        if failure is not None:
            raise failure

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._run.failed(error)
        try:
            self._close(finish=False)
        except WindlassError as second:
            error.add_note(f"closing the cluster then failed: {second}")

    def _close_at_exit(self) -> None:
        """The program ended without `close`; an exception that ended it is the run's."""
        uncaught = getattr(sys, "last_value", None)
        if isinstance(uncaught, BaseException):
            self._run.failed(uncaught)
        self._close(finish=not isinstance(uncaught, BaseException))

    def _facts(self, found: Found) -> dict[str, str | int | list[str]]:
        return {
            "script": sys.argv[0] if sys.argv else "",
            "arguments": sys.argv[1:],
            "job": self.job,
            "workers": self.num_workers,
            "scheduler": found.address,
            "cluster": found.found_by,
        }

    def _clocks(self) -> list[tuple[int, int]]:
        return [(store.store_id, store.clock) for store in list(self._stores.values())]
