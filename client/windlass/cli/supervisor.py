"""The process that owns the cluster of `windlass up`: starts it, records it, ends it.

In the foreground it is `windlass up` itself; with `--detach` it is `python -m windlass.cli.supervisor` in a
session of its own, which says on a pipe that the cluster serves, or why not.

Invariant: the claim to the name is held from before the first process is started until after the last one has
ended, so whoever finds the name free finds nothing left of the cluster either.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from windlass import recorded_cluster
from windlass.cli.interrupts import Interrupted, Interrupts
from windlass.local_cluster import KEEP_JOB_S, LocalCluster
from windlass_proto.errors import WindlassError, to_wire

_LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ClusterOrder:
    """What `windlass up` was asked for."""

    name: str
    servers: int
    listen: str
    insecure: bool = False
    server_devices: str = "memory"
    allowed_rules: tuple[str, ...] = ()
    keep_job_s: float = KEEP_JOB_S
    job_quotas: tuple[str, ...] = ()
    allowed_readers: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        return recorded_cluster.folder() / "up" / self.name

    def arguments(self) -> list[str]:
        flags = ["--name", self.name, "--servers", str(self.servers), "--listen", self.listen]
        flags += ["--server-devices", self.server_devices, "--keep-job-s", str(self.keep_job_s)]
        flags += [flag for quota in self.job_quotas for flag in ("--job-quota", quota)]
        flags += [flag for rule in self.allowed_rules for flag in ("--allow-rule", rule)]
        flags += [flag for reader in self.allowed_readers for flag in ("--allow-reader", reader)]
        return [*flags, *(["--insecure"] if self.insecure else [])]


def supervise(order: ClusterOrder, on_ready: Callable[[recorded_cluster.RecordedCluster], None]) -> int:
    """Run the cluster until a signal asks to end it; the exit status (0 after SIGINT and SIGTERM).

    Raises:
        UsageError, UnavailableError: if the name is taken, the cluster did not start, or one of its processes
            ended; nothing of it is left then.
    """
    claim = recorded_cluster.Claim(order.name)
    try:
        with Interrupts() as interrupts:
            cluster: LocalCluster | None = None
            try:
                cluster = LocalCluster.start(
                    servers=order.servers,
                    run_dir=order.run_dir,
                    listen=order.listen,
                    insecure=order.insecure,
                    server_devices=order.server_devices,
                    allowed_rules=order.allowed_rules,
                    allowed_readers=order.allowed_readers,
                    keep_job_s=order.keep_job_s,
                    job_quotas=order.job_quotas,
                )
                record = recorded_cluster.RecordedCluster(
                    name=order.name,
                    address=cluster.address,
                    cluster_id=cluster.cluster_id,
                    token_file=cluster.token_file,
                    pid=os.getpid(),
                    run_dir=cluster.run_dir,
                    servers=order.servers,
                )
                claim.record(record)
                on_ready(record)
                while (failure := cluster.failure()) is None:
                    time.sleep(_LOOK_S)
                raise failure
            except Interrupted:
                return 0
            finally:
                interrupts.hold()
                if cluster is not None:
                    cluster.stop()
    finally:
        claim.release()


def main() -> int:
    """`python -m windlass.cli.supervisor`; the exit status: 0 ended as asked, 1 a failure it has said."""
    parser = argparse.ArgumentParser(prog="windlass.cli.supervisor")
    parser.add_argument("--name", required=True)
    parser.add_argument("--servers", required=True, type=int)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--server-devices", required=True)
    parser.add_argument("--job-quota", action="append", default=[], dest="job_quotas")
    parser.add_argument("--keep-job-s", required=True, type=float)
    parser.add_argument("--allow-rule", action="append", default=[], dest="allowed_rules")
    parser.add_argument("--allow-reader", action="append", default=[], dest="allowed_readers")
    parser.add_argument("--ready-fd", required=True, type=int)
    arguments = parser.parse_args()
    order = ClusterOrder(
        arguments.name,
        arguments.servers,
        arguments.listen,
        arguments.insecure,
        arguments.server_devices,
        tuple(arguments.allowed_rules),
        arguments.keep_job_s,
        tuple(arguments.job_quotas),
        tuple(arguments.allowed_readers),
    )
    ready_fd: list[int] = [arguments.ready_fd]

    def say(raw: bytes) -> None:
        if ready_fd:
            fd = ready_fd.pop()
            os.write(fd, raw)
            os.close(fd)

    try:
        return supervise(order, lambda record: say(record.to_json().encode()))
    except WindlassError as error:
        say(b"!" + to_wire(error))
        sys.stderr.write(f"windlass: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
