"""`windlass run`: workers of one script on a cluster, their output on one terminal, one exit status.

The cluster is `$WINDLASS_SCHEDULER`'s, else the one that `windlass up` recorded, else a private one that ends with
the run; `--servers` always means a private one of that size. When a worker fails the others have some seconds to
notice (a job of fixed size cannot go on without it), then they are ended. Ctrl-C ends the workers with SIGINT, so
that Python unwinds; a second one kills.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from windlass.cli.finding import FoundCluster
    from windlass.cli.interrupts import Interrupts
    from windlass.cli.run_view import RunView
    from windlass.cli.scalars import ScalarWatch
    from windlass.cli.worker_fleet import WorkerFleet
    from windlass.run_folder import ConfigValue
    from windlass_proto.control_link import ControlLink
    from windlass_proto.gen.control_pb2 import StatusReply

SERVERS_DEFAULT: Final = 2
_FAILED_GRACE_S: Final = 3.0  # for the others to end by themselves after one has failed
_END_GRACE_S: Final = 5.0
_PUMP_S: Final = 0.1
_REPORT_S: Final = 1.0  # servers report their figures once a second
_STATUS_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What `windlass run` was asked for."""

    script: Path
    arguments: tuple[str, ...]
    workers: int
    servers: int | None
    name: str | None
    job: str | None
    cluster: str | None


def run(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT.py", help="Runs on every worker.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Handed to the script.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Worker processes.")] = 1,
    servers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Start a private cluster of so many servers.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's folder below runs/; else script and time.")] = None,
    job: Annotated[str | None, typer.Option(help="The job on the cluster; else the run's name.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="One that `up --name` started.")] = None,
) -> None:
    """Run a script on N workers, on the cluster of `windlass up` or on a private one."""
    order = RunOrder(script, tuple(arguments or ()), workers, servers, name, job, cluster)
    raise typer.Exit(launch(order))


def launch(order: RunOrder) -> int:
    """Run to the end; the exit status: 0, that of the first worker that failed, or 128 + n after signal n.

    Raises:
        WindlassError: if there is no such script or the cluster could not be found or started.
    """
    from windlass.cli import run_folder
    from windlass.cli.complaint import USAGE, CommandError
    from windlass.cli.interrupts import Interrupted, Interrupts

    if not order.script.is_file():
        raise CommandError(
            f"there is no script {order.script}",
            why=f"looked in {Path.cwd()}",
            next_move="windlass run [options] script.py [arguments of the script]",
            status=USAGE,
        )
    with Interrupts() as interrupts, contextlib.ExitStack() as held:
        held.callback(interrupts.hold)
        try:
            found = _found(order)
            folder = run_folder.make(Path("runs"), order.name, order.script)
            if found is None:
                found = _private(order, folder, held)
            else:
                sys.stdout.write(f"cluster {found.address} (from {found.source})\n")
                sys.stdout.flush()
            return _Run(order, found, folder, interrupts).to_the_end()
        except Interrupted as stopped:
            return stopped.status


def _found(order: RunOrder) -> FoundCluster | None:
    from windlass.cli import finding

    return None if order.servers is not None and order.cluster is None else finding.find(order.cluster)


def _private(order: RunOrder, folder: Path, held: contextlib.ExitStack) -> FoundCluster:
    """Start a cluster that `held` stops."""
    from windlass.cli.finding import FoundCluster
    from windlass.local_cluster import LocalCluster

    servers = order.servers or SERVERS_DEFAULT
    sys.stdout.write(f"starting a private cluster of {servers} servers\n")
    sys.stdout.flush()
    cluster = held.enter_context(LocalCluster.start(servers=servers, run_dir=folder))
    # Entered after the cluster, so left before it: from here on its end is not interrupted.
    return FoundCluster(cluster.address, cluster.token_file, "a private cluster")


class _Run:
    """One run: its workers, its view, its observer. Owner: the main thread."""

    def __init__(self, order: RunOrder, found: FoundCluster, folder: Path, interrupts: Interrupts) -> None:
        from windlass.cli.scalars import Scalars

        self._order = order
        self._found = found
        self._folder = folder
        self._interrupts = interrupts
        self._job = order.job or folder.name
        self._scalars = Scalars()
        self._began_s = time.monotonic()
        self._took_s = 0.0

    def to_the_end(self) -> int:
        from windlass.cli.interrupts import Interrupted
        from windlass.cli.run_view import open_view
        from windlass.cli.worker_fleet import WorkerFleet

        self._write_config()
        view = open_view(self._order.workers)
        command = [sys.executable, str(self._order.script), *self._order.arguments]
        fleet = WorkerFleet(command, self._environments(), self._folder / "logs", view.line)
        status, moved_bytes = 0, 0.0
        try:
            with fleet, self._found.link() as link, self._watch(link) as watch:
                before = _moved_bytes(_status(link))
                try:
                    self._attend(fleet, view, watch)
                except Interrupted as stopped:
                    status = stopped.status
                    self._interrupts.hold()
                    self._end_by(fleet)
                self._took_s = time.monotonic() - self._began_s
                if not status and fleet.failed is None:
                    moved = self._settled_bytes(link)
                    moved_bytes = sum(count - before.get(who, 0.0) for who, count in moved.items())
                watch.drain(self._scalars, time.monotonic())  # the last ones come a moment after their worker ended
        finally:
            view.close(self._scalars)
        if fleet.failed is not None and not status:
            rank, status = fleet.failed
            view.say(_epitaph(rank, status, self._folder / "logs" / f"worker-{rank}.log"))
        view.say(self._summary(moved_bytes))
        return status

    def _attend(self, fleet: WorkerFleet, view: RunView, watch: ScalarWatch) -> None:
        """Pass on output and scalars until every worker has ended."""
        failed_s = 0.0
        while running := fleet.running():
            fleet.pump(_PUMP_S)
            watch.drain(self._scalars, time.monotonic())
            view.show(self._scalars, len(running))
            if fleet.failed is not None:
                failed_s = failed_s or time.monotonic()
                if time.monotonic() > failed_s + _FAILED_GRACE_S:
                    fleet.end(_END_GRACE_S)

    def _watch(self, link: ControlLink) -> ScalarWatch:
        from windlass.cli.scalars import ScalarWatch
        from windlass_proto.token_file import read_token

        return ScalarWatch(link, read_token(self._found.token_file), self._job)

    def _end_by(self, fleet: WorkerFleet) -> None:
        """What the user pressed reaches the workers; a second time, or the grace's end, kills them."""
        fleet.signal(signal.SIGINT)
        pressed = self._interrupts.count
        deadline = time.monotonic() + _END_GRACE_S
        while fleet.running() and time.monotonic() < deadline and self._interrupts.count == pressed:
            fleet.pump(_PUMP_S)
        fleet.end(0.0)

    def _environments(self) -> list[dict[str, str]]:
        from windlass.cli.environment import launcher_variables
        from windlass.local_cluster import child_environment

        inherited = child_environment()
        inherited.setdefault("PYTHONUNBUFFERED", "1")  # lines appear when they are printed
        return [
            inherited
            | launcher_variables(
                address=self._found.address,
                token_file=self._found.token_file,
                job=self._job,
                workers=self._order.workers,
                rank=rank,
                run_dir=self._folder,
                environ=os.environ,
            )
            for rank in range(self._order.workers)
        ]

    def _write_config(self) -> None:
        from windlass._version import __version__
        from windlass.cli.run_folder import write_config

        order = self._order
        fields: dict[str, ConfigValue] = {
            "script": str(order.script),
            "arguments": list(order.arguments),
            "job": self._job,
            "workers": order.workers,
            "scheduler": self._found.address,
            "cluster": self._found.source,
        }
        written_by = {"windlass": __version__, "python": sys.version.split()[0], "folder": str(Path.cwd())}
        write_config(self._folder, {"run": fields, "written_by": written_by})

    def _summary(self, moved_bytes: float) -> str:
        from windlass.cli.status import duration, size

        took = duration(self._took_s) if self._took_s >= 60 else f"{self._took_s:.1f} s"
        rows = [f"took {took}"]
        if moved_bytes:
            rows.append(f"{size(moved_bytes)} moved")
        shown = self._folder
        with contextlib.suppress(ValueError):
            shown = self._folder.relative_to(Path.cwd())
        return "\n".join([*rows, f"run folder {shown}"])

    def _settled_bytes(self, link: ControlLink) -> dict[int, float]:
        """What the servers have moved, once each has reported what the workers did last, or had the time to."""
        deadline = time.monotonic() + 1.2 * _REPORT_S
        reply = _status(link)
        if reply is None or not any(job.job == self._job and job.workers_declared for job in reply.jobs):
            return {}  # no worker ever joined
        begin = found = _moved_bytes(reply)
        while time.monotonic() < deadline and any(found.get(who) == count for who, count in begin.items()):
            time.sleep(_PUMP_S)
            found = _moved_bytes(_status(link))
        return found


def _status(link: ControlLink) -> StatusReply | None:
    """None while the scheduler is away: a run's summary does without."""
    from windlass_proto.errors import UnavailableError

    try:
        return link.status(timeout_s=_STATUS_S)
    except UnavailableError:
        return None


def _moved_bytes(reply: StatusReply | None) -> dict[int, float]:
    """By server, what it has received and sent since it started."""
    from windlass_proto.gen import control_pb2 as pb

    return {
        member.member_id: member.figures["bytes_in"] + member.figures["bytes_out"]
        for member in (reply.members if reply is not None else ())
        if member.role == pb.ROLE_SERVER and "bytes_in" in member.figures
    }


def _epitaph(rank: int, status: int, log: Path) -> str:
    how = signal.Signals(status - 128).name if 128 < status < 160 else f"status {status}"
    return f"worker {rank} failed with {how}; its output is in {log}"
