"""`python -m windlass_scheduler`: the scheduler of one cluster as a process.

Exit status: 0 stopped in order, 1 the state could not be written, 2 it could not start (one line says why).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from windlass_proto import job_quotas
from windlass_proto.errors import CorruptionError, UnavailableError, UsageError, WindlassError
from windlass_proto.keys import VSHARDS_DEFAULT
from windlass_scheduler.config import SchedulerConfig, token_from_file
from windlass_scheduler.members import Timing
from windlass_scheduler.process import run

_TIMING = Timing()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="windlass_scheduler", description="The scheduler of a windlass cluster.")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="folder that survives restarts")
    parser.add_argument("--servers", type=int, default=1, metavar="N", help="servers the cluster begins with")
    parser.add_argument("--token-file", required=True, type=Path, metavar="F", help="the cluster's secret, mode 0600")
    parser.add_argument("--vshards", type=int, default=VSHARDS_DEFAULT, help="parts of the key space, a power of two")
    parser.add_argument("--worker-lease", type=float, default=_TIMING.worker_lease_s, metavar="S", help="seconds")
    parser.add_argument("--server-lease", type=float, default=_TIMING.server_lease_s, metavar="S", help="seconds")
    parser.add_argument(
        "--job-quota", action="append", default=[], metavar="[JOB=]SIZE", help="bytes a job may hold, such as 8GiB"
    )
    parser.add_argument(
        "--keep-job-s", type=float, default=600.0, metavar="S", help="keep a job's stores so long without workers"
    )
    parser.add_argument("--parent-fd", type=int, metavar="FD", help="stop at the end of this pipe")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="write one JSON line here when serving")
    parser.add_argument("--insecure", action="store_true", help="allow addresses beyond this host, in clear text")
    return parser


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()):
        raise UsageError("--listen is not HOST:PORT", listen=text, next_move="For example 127.0.0.1:0.")
    return host, int(port)


def _config(arguments: argparse.Namespace) -> SchedulerConfig:
    host, port = _listen(arguments.listen)
    return SchedulerConfig(
        host=host,
        port=port,
        state_path=arguments.state,
        token=token_from_file(arguments.token_file),
        servers_declared=arguments.servers,
        vshards=arguments.vshards,
        insecure=arguments.insecure,
        job_quotas=job_quotas.parse(arguments.job_quota),
        keep_job_s=arguments.keep_job_s,
        timing=Timing(worker_lease_s=arguments.worker_lease, server_lease_s=arguments.server_lease),
    )


def main() -> int:
    """Run until stopped; the exit status."""
    arguments = _parser().parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(run(_config(arguments), arguments.parent_fd, arguments.ready_fd))
    except (UsageError, UnavailableError, CorruptionError) as error:
        sys.stderr.write(f"windlass_scheduler: {error}\n")
        return 2
    except WindlassError as error:
        sys.stderr.write(f"windlass_scheduler: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
