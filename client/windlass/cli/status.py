"""`windlass status`: what the scheduler knows, as tables and sentences or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from windlass_proto.consistency import Consistency

if TYPE_CHECKING:
    from windlass.cli.finding import FoundCluster
    from windlass_proto.gen.control_pb2 import JobState, MemberStatus, StatusReply, StoreStatus

_WATCH_S = 1.0
_SERVER_HEADS = (
    "server", "host", "pid", "device", "vshards", "held", "received", "sent", "pushes", "pulls", "beat", "state",
)  # fmt: skip
_WORKER_HEADS = ("worker", "job", "host", "pid", "clock", "lag", "last", "waited for", "late", "beat", "state")
_JOB_HEADS = ("job", "workers", "held", "quota", "without workers")
_STORE_HEADS = ("store", "job", "consistency", "staleness", "tensors", "roster", "steps")


def status(
    as_json: Annotated[bool, typer.Option("--json", help="The scheduler's reply as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second until Ctrl-C.")] = False,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="One that `up --name` started.")] = None,
) -> None:
    """Show servers, workers and stores, and what waits for whom."""
    import time

    from windlass.cli.finding import require

    found = require(cluster)
    clear = "\x1b[2J\x1b[H" if watch and not as_json and sys.stdout.isatty() else ""
    with found.link() as link:
        while True:
            reply = link.status()
            text = json_of(reply) + "\n" if as_json else page(reply, found)
            sys.stdout.write(clear + text)
            sys.stdout.flush()
            if not watch:
                return
            time.sleep(_WATCH_S)


def json_of(reply: StatusReply) -> str:
    """One line of JSON with every field of the reply."""
    import json

    from windlass.status_fields import fields_of

    return json.dumps(fields_of(reply))


def page(reply: StatusReply, found: FoundCluster) -> str:
    """The same for a person: a header, a table each of servers, workers and stores, then sentences."""
    from windlass_proto.gen import control_pb2 as pb

    by_role = {role: [m for m in reply.members if m.role == role] for role in (pb.ROLE_SERVER, pb.ROLE_WORKER)}
    servers, workers = by_role[pb.ROLE_SERVER], by_role[pb.ROLE_WORKER]
    glyph = {"healthy": "*", "waiting": "~"}.get(reply.health, "!")
    count = f"{len(servers)} of {reply.servers_declared} servers  {len(workers)} workers"
    where = f"{found.address}  cluster {reply.cluster_id}  generation {reply.generation}"
    parts = [f"{glyph} {reply.health.upper()}  {where}  {count}  up {duration(reply.uptime_s)}\n"]
    if servers:
        parts.append(table(_SERVER_HEADS, map(_server_row, servers)))
    if workers:
        parts.append(table(_WORKER_HEADS, (_worker_row(member, reply) for member in workers)))
    if reply.jobs:
        parts.append(table(_JOB_HEADS, map(_job_row, reply.jobs)))
    if reply.stores:
        parts.append(table(_STORE_HEADS, map(_store_row, reply.stores)))
    if not workers:
        parts.append("No workers yet. Start one: windlass run --workers 2 script.py\n")
    parts += [f"- {sentence}\n" for sentence in reply.sentences]
    return "\n".join(parts)


def _server_row(member: MemberStatus) -> Sequence[str]:
    figures = member.figures
    return (
        str(member.rank),
        member.host,
        str(member.pid),
        member.device or "-",
        ", ".join(f"{run.begin}..{run.end - 1}" for run in member.runs) or "none",
        size(figures.get("parameter_bytes", 0)),
        size(figures.get("bytes_in", 0)),
        size(figures.get("bytes_out", 0)),
        f"{figures.get('pushes', 0):,.0f}",
        f"{figures.get('pulls', 0):,.0f}",
        f"{member.beat_age_s:.1f} s",
        member.state,
    )


def _worker_row(member: MemberStatus, reply: StatusReply) -> Sequence[str]:
    stores = {store.store_id: store for store in reply.stores if store.job == member.job}
    clocks = {clock.store_id: clock.clock for clock in member.clocks if clock.store_id in stores}
    lags = [_lag(stores[store_id], clock, reply) for store_id, clock in clocks.items()]
    counted = [steps for store in stores.values() for steps in store.workers if steps.rank == member.rank]
    return (
        str(member.rank),
        member.job,
        member.host,
        str(member.pid),
        " ".join(f"{clock:,}" for _, clock in sorted(clocks.items())) or "-",
        str(max(lags, default=0)),
        f"{sum(steps.last for steps in counted):,}",
        f"{sum(steps.waited_s for steps in counted):,.0f} s",
        f"{sum(steps.late_steps for steps in counted):,}",
        f"{member.beat_age_s:.1f} s",
        member.state,
    )


def _lag(store: StoreStatus, clock: int, reply: StatusReply) -> int:
    """Steps behind the furthest worker. Clocks are those of beats a second apart, so the mode's bound is the better
    knowledge where the difference goes beyond it."""
    clocks = [c.clock for m in reply.members for c in m.clocks if c.store_id == store.store_id]
    apart = Consistency.parse(store.consistency).apart
    lag = max(clocks) - clock
    return lag if apart is None else min(lag, apart + 1)


def _staleness(store: StoreStatus) -> str:
    """Median and greatest lag at which pushes were applied on arrival; nothing where none was."""
    total = sum(bucket.pushes for bucket in store.staleness)
    if not total:
        return "-"
    median, passed = 0, 0
    for bucket in store.staleness:
        if passed * 2 < total:
            median = bucket.lag
        passed += bucket.pushes
    return f"{median} to {store.staleness[-1].lag}"


def _job_row(job: JobState) -> Sequence[str]:
    kept = f"kept {duration(job.kept_s)}" if job.HasField("kept_s") else "-"
    quota = size(job.quota_bytes) if job.quota_bytes else "-"
    return (job.job, f"{len(job.ranks_joined)} of {job.workers_declared}", size(job.bytes), quota, kept)


def _store_row(store: StoreStatus) -> Sequence[str]:
    roster = store.roster
    tensors = sum(len(group.tensors) for group in store.groups)
    counted = f"{len(roster.members)} of {roster.declared}" if roster.declared else str(len(roster.members))
    return (
        store.store,
        store.job,
        store.consistency,
        _staleness(store),
        str(tensors),
        counted,
        "begun" if roster.started else "not begun",
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, numbers to the right; text, so that it can be cut and compared."""
    cells = [heads, *rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heads))]
    numeric = [all(row[at][:1].isdigit() or row[at] == "-" for row in cells[1:]) for at in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, cells)) + "\n"


def size(count_bytes: float) -> str:
    """Bytes in binary units, three digits."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    at = 0
    while count_bytes >= 1024 and at < len(units) - 1:
        count_bytes /= 1024
        at += 1
    return f"{count_bytes:.0f} {units[at]}" if at == 0 or count_bytes >= 100 else f"{count_bytes:.1f} {units[at]}"


def duration(seconds: float) -> str:
    """H:MM:SS, without hours below one."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
