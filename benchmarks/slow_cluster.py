"""A local cluster behind slow links: a throttle before each server, and routing as users have it.

The servers advertise another loopback address than they listen on; there the throttle sits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.throttle import Throttle
from windlass.local_cluster import LocalCluster, _Child

ADVERTISED = "127.0.0.2"


class AdvertisedCluster(LocalCluster):
    """A local cluster whose servers are told to others under ADVERTISED."""

    def _spawn(self, module: str, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> _Child:
        advertised = ["--advertise", ADVERTISED] if module == "windlass_server" else []
        return super()._spawn(module, name, [*arguments, *advertised], environment)


@contextlib.contextmanager
def behind_slow_links(
    run_dir: Path, *, servers: int, bytes_per_s: float
) -> Iterator[tuple[LocalCluster, list[Throttle]]]:
    """A cluster, and the throttle before each of its servers."""
    with contextlib.ExitStack() as opened:
        cluster = opened.enter_context(AdvertisedCluster.start(servers=servers, run_dir=run_dir))
        yield (
            cluster,
            [
                opened.enter_context(Throttle((ADVERTISED, port), ("127.0.0.1", port), bytes_per_s))
                for port in listening_ports(cluster)
            ],
        )


def listening_ports(cluster: LocalCluster) -> list[int]:
    """The port of each server."""
    pids = [pid for name, pid in cluster.pids.items() if name.startswith("server")]
    found = [psutil.Process(pid).net_connections(kind="tcp") for pid in pids]
    return [c.laddr.port for connections in found for c in connections if c.status == psutil.CONN_LISTEN]
