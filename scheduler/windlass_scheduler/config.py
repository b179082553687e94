"""What a scheduler is started with: one frozen record, validated whole before anything starts."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from windlass_proto.errors import UsageError
from windlass_proto.job_quotas import Quotas
from windlass_proto.keys import VSHARDS_DEFAULT
from windlass_scheduler import limits
from windlass_scheduler.members import Timing


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Relations are checked when made.

    Raises:
        UsageError: if a value, or a relation between two, does not hold.
    """

    host: str
    """Where gRPC (TCP) and beats (UDP) are heard, on one port."""
    port: int
    """0: a free one, said in the ready line."""
    state_path: Path
    """Folder on a local disk; a scheduler started on it again continues the cluster."""
    token: bytes = field(repr=False)
    """The cluster's secret; every call and every beat is proven with it."""
    servers_declared: int = 1
    """The placement is committed when so many servers have joined."""
    vshards: int = VSHARDS_DEFAULT
    """Fixed for ever when the cluster is made."""
    insecure: bool = False
    """Allow addresses beyond this host, in clear text."""
    timing: Timing = field(default_factory=Timing)
    """How members show that they live."""
    vote_s: float = 3.0
    """How long servers have to vote on a newcomer."""
    job_quotas: Quotas = field(default_factory=Quotas)
    """How many bytes of parameters each job may hold."""
    keep_job_s: float = 600.0
    """How long a job's stores are kept after its last worker has gone."""

    def __post_init__(self) -> None:
        if not self.token:
            raise UsageError("the cluster token is empty", next_move="Write 32 random bytes, base64, into the file.")
        if any(not 0x21 <= byte <= 0x7E for byte in self.token):
            raise UsageError("the cluster token is not printable ASCII", next_move="Write it in base64 or hex.")
        if not 0 <= self.port <= 65_535:
            raise UsageError("the port is out of range", port=self.port, allowed="0..65535")
        if not 1 <= self.servers_declared <= limits.MEMBERS_MAX:
            raise UsageError(
                "a cluster needs servers", servers=self.servers_declared, allowed=f"1..{limits.MEMBERS_MAX}"
            )
        if self.vshards & (self.vshards - 1) or not 1 <= self.vshards <= limits.VSHARDS_MAX:
            raise UsageError(
                "vshards is not a power of two in range",
                vshards=self.vshards,
                allowed=f"1..{limits.VSHARDS_MAX}",
            )
        if not 0 <= self.keep_job_s <= limits.KEEP_JOB_S_MAX:
            raise UsageError(
                "a job without workers is kept for no such time",
                keep_job_s=self.keep_job_s,
                allowed=f"0..{limits.KEEP_JOB_S_MAX:g}",
            )
        if self.servers_declared > self.vshards:
            raise UsageError("there are more servers than vshards", servers=self.servers_declared, vshards=self.vshards)
        for who in ("worker", "server"):
            beat_s, lease_s = getattr(self.timing, f"{who}_beat_s"), getattr(self.timing, f"{who}_lease_s")
            if not 0 < 2 * beat_s <= lease_s:
                raise UsageError(
                    f"the {who} lease is shorter than two beats",
                    beat_s=beat_s,
                    lease_s=lease_s,
                    next_move="Lengthen the lease or beat more often.",
                )
        if not self.insecure and not _is_loopback(self.host):
            raise UsageError(
                "the scheduler would listen beyond this host in clear text",
                listen=f"{self.host}:{self.port}",
                next_move="Listen on 127.0.0.1, or pass --insecure if the network is yours alone.",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def token_from_file(path: Path) -> bytes:
    """The token in `path`, without surrounding white space.

    Raises:
        UsageError: if it cannot be read, is empty, or others than its owner may read it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            token = file.read(4097).strip()
    except OSError as cause:
        raise UsageError("the token file cannot be read", path=path, reason=cause.strerror) from cause
    if mode & 0o077:
        raise UsageError(
            "the token file can be read by others than its owner",
            path=path,
            mode=f"{mode:04o}",
            next_move=f"chmod 600 {path}",
        )
    if not 0 < len(token) <= 4096:
        raise UsageError("the token file is empty or too long", path=path, bytes=len(token), bytes_max=4096)
    return token
