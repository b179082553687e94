"""`windlass up` and `windlass down`: a cluster of this user's on this machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from windlass.cli.supervisor import ClusterOrder
    from windlass.recorded_cluster import RecordedCluster

_READY_BYTES_MAX = 64 * 1024
_DOWN_S = 8.0  # longer than a supervisor gives its processes
_LOOK_S = 0.05

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Several clusters of one user need several names.")]

AllowRule = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME[==VERSION]", help="Servers may run this rule of an installed package; repeatable."),
]
AllowReader = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME[==VERSION]", help="Servers may run this reader of a package; repeatable."),
]
JobQuota = Annotated[
    list[str] | None,
    typer.Option(metavar="[JOB=]SIZE", help="Bytes of tensors a job may hold, such as 8GiB; repeatable."),
]


def up(
    servers: Annotated[int, typer.Option(min=1, max=256, help="Server processes.")] = 2,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the scheduler is heard; port 0 takes a free one.")
    ] = "127.0.0.1:0",
    server_devices: Annotated[
        str,
        typer.Option(
            envvar="WINDLASS_SERVER_DEVICES",
            metavar="D,...",
            help="Where each server in turn has its dense tensors: memory, gpu:N.",
        ),
    ] = "memory",
    detach: Annotated[bool, typer.Option("--detach", help="Return when it serves; `windlass down` ends it.")] = False,
    name: Name = "default",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address beyond this host, in clear text.")
    ] = False,
    allow_rule: AllowRule = None,
    allow_reader: AllowReader = None,
    job_quota: JobQuota = None,
    keep_job_s: Annotated[
        float, typer.Option(min=0, metavar="S", help="Keep a job's tensors so long after its last worker has gone.")
    ] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one line of JSON.")] = False,
) -> None:
    """Start a cluster on this machine; Ctrl-C stops everything."""
    from windlass.cli.ports import require_free
    from windlass.cli.supervisor import ClusterOrder, supervise
    from windlass_proto import job_quotas

    quotas = tuple(job_quota or ())
    job_quotas.parse(quotas)
    require_free(listen)
    order = ClusterOrder(
        name,
        servers,
        listen,
        insecure,
        server_devices,
        tuple(allow_rule or ()),
        keep_job_s,
        quotas,
        tuple(allow_reader or ()),
    )

    def say(record: RecordedCluster) -> None:
        if as_json:
            sys.stdout.write(record.to_json() + "\n")
        else:
            _panel(record, detach)
        sys.stdout.flush()

    if detach:
        say(_detached(order))
        return
    status = supervise(order, say)
    if not as_json:
        sys.stdout.write("stopped; nothing is left running\n")
    raise typer.Exit(status)


def down(name: Name = "default") -> None:
    """Stop the cluster that `windlass up` started; without one, say so and succeed."""
    import signal
    import time

    from windlass import recorded_cluster
    from windlass.cli.complaint import CommandError

    record = recorded_cluster.read(name)
    if record is None:
        if recorded_cluster.is_claimed(name):
            raise CommandError(
                f"the cluster {name} is starting or ending",
                why="a process holds its name and has not recorded an address",
                next_move="windlass down again in a few seconds",
            )
        sys.stdout.write(f"no cluster called {name} is up\n")
        return
    deadline = time.monotonic() + _DOWN_S
    _signal(record.pid, signal.SIGTERM)
    while recorded_cluster.is_claimed(name):
        if time.monotonic() > deadline:
            _signal(record.pid, signal.SIGKILL)  # its processes and its folder follow by themselves
            deadline += _DOWN_S
        time.sleep(_LOOK_S)
    sys.stdout.write(f"stopped cluster {name}: scheduler {record.address}, {record.servers} servers\n")


def _signal(pid: int, number: int) -> None:
    import contextlib

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _detached(order: ClusterOrder) -> RecordedCluster:
    """Start the supervisor in a session of its own and wait until it says that the cluster serves.

    Raises:
        WindlassError: what the supervisor raised.
    """
    import subprocess

    from windlass import recorded_cluster
    from windlass.cli.complaint import CommandError
    from windlass.local_cluster import child_environment, log_tail
    from windlass_proto.errors import from_wire_untrusted

    log = order.run_dir / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    read_fd, ready_fd = os.pipe()
    with open(read_fd, "rb") as said, log.open("ab") as output:
        command = [sys.executable, "-P", "-m", "windlass.cli.supervisor", *order.arguments()]
        supervisor = subprocess.Popen(
            [*command, "--ready-fd", str(ready_fd)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment(),
            pass_fds=(ready_fd,),
            start_new_session=True,
        )
        os.close(ready_fd)
        try:
            raw = said.read(_READY_BYTES_MAX)
        except KeyboardInterrupt:
            supervisor.terminate()
            supervisor.wait()
            raise
    if raw.startswith(b"!"):
        supervisor.wait()
        raise from_wire_untrusted(raw[1:])
    record = recorded_cluster.from_json_untrusted(raw) if raw else None
    if record is None:
        raise CommandError(
            "the cluster's supervisor ended before it served",
            why=f"status {supervisor.wait()}; {log_tail(log, lines=1) or 'it said nothing'}",
            next_move=f"Read {log}",
        )
    return record


def _panel(record: RecordedCluster, detached: bool) -> None:
    which = "" if record.name == "default" else f" --cluster {record.name}"
    stop = "windlass down" + which.replace("--cluster", "--name")
    rows = [
        ("scheduler", record.address),
        ("servers", str(record.servers)),
        ("run", f"windlass run{which} --workers 2 script.py"),
        ("look", f"windlass status{which}"),
        ("logs", str(record.run_dir / "logs")),
        ("stop", stop if detached else "Ctrl-C"),
    ]
    from windlass.cli.complaint import in_colour

    if not in_colour(sys.stdout.fileno()):
        sys.stdout.write("windlass is up\n" + "".join(f"  {label:<10} {text}\n" for label, text in rows))
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for label, text in rows:
        grid.add_row(f"[dim]{label}[/dim]", text)
    Console(highlight=False).print(Panel(grid, title="windlass is up", title_align="left", expand=False))
