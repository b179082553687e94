"""Which cluster a program uses, and as whom.

In this order: the argument, $WINDLASS_SCHEDULER, the cluster that `windlass up` recorded for this user, a private
local one. A private one is refused where a launcher has left its traces: eight workers must never train eight models
in silence.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from windlass_proto import limits
from windlass_proto.errors import UsageError
from windlass_proto.token_file import read_token

if TYPE_CHECKING:
    from windlass.local_cluster import LocalCluster

_JOB_VARIABLES = ("WINDLASS_JOB", "WINDLASS_WORKERS", "WINDLASS_RANK", "WINDLASS_TOKEN_FILE", "WINDLASS_RUN_DIR")
_LAUNCHER_VARIABLES = ("KUBERNETES_SERVICE_HOST", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_RANK_VARIABLES = ("WINDLASS_RANK", "JOB_COMPLETION_INDEX", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_WORKERS_VARIABLES = ("WINDLASS_WORKERS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class Found:
    """A cluster to join: where, how it was found, its token, and the private cluster if one was started."""

    address: str
    found_by: str
    token: bytes
    private: LocalCluster | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long this process waits, seconds.

    `rpc_s` ($WINDLASS_RPC_S) for a server or the scheduler, `wait_s` for live peers; after `said_after_s`
    ($WINDLASS_WAIT_SAID_AFTER_S) one line says for whom.
    """

    wait_s: float = limits.WAIT_S
    rpc_s: float = limits.RPC_S
    said_after_s: float = limits.WAIT_SAID_AFTER_S


@dataclass(frozen=True, slots=True)
class Place:
    """What a launcher says about this worker."""

    job: str
    workers: int
    rank: int | None
    run_dir: Path


def find(address: str | None, servers: int | None, run_dir: Path, environ: Mapping[str, str] = os.environ) -> Found:
    """Find the cluster, or start a private one, whose logs go to `run_dir`.

    Raises:
        UsageError: a job variable or a launcher is there, but no scheduler address; or no token.
    """
    from windlass import recorded_cluster

    if address is not None:
        return Found(address, "the argument of connect()", _token(address, environ))
    address = environ.get("WINDLASS_SCHEDULER")
    if address:
        return Found(address, "$WINDLASS_SCHEDULER", _token(address, environ))
    record = recorded_cluster.find() if servers is None else None
    if record is not None:
        return Found(record.address, "windlass up", read_token(record.token_file))
    traces = [name for name in (*_JOB_VARIABLES, *_LAUNCHER_VARIABLES) if environ.get(name)]
    if traces:
        raise UsageError(
            "this process looks like one of several workers, but nobody said where their scheduler is",
            variable=traces[0],
            value=environ[traces[0]],
            WINDLASS_SCHEDULER="unset",
            next_move="Set WINDLASS_SCHEDULER=HOST:PORT, or unset the variable to train alone.",
        )
    return _private(1 if servers is None else servers, run_dir)


def patience(wait_s: float, environ: Mapping[str, str] = os.environ) -> Patience:
    """`wait_s` and what the environment says.

    Raises:
        UsageError: one of them is no positive number.
    """
    rpc_s = _seconds("WINDLASS_RPC_S", environ.get("WINDLASS_RPC_S") or limits.RPC_S)
    name = "WINDLASS_WAIT_SAID_AFTER_S"
    return Patience(_seconds("wait_s", wait_s), rpc_s, _seconds(name, environ.get(name) or limits.WAIT_SAID_AFTER_S))


def _seconds(name: str, said: str | float) -> float:
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < 1e9:
        raise UsageError(f"{name} is not a number of seconds", got=said, next_move="Give a positive number.")
    return seconds


def place(job: str | None, workers: int | None, environ: Mapping[str, str] = os.environ) -> Place:
    """Job, number of workers and rank: the argument, else what the launcher says.

    A program that nobody launched gets a job of its own, so that two runs never meet in one store by chance.
    """
    said = _first(environ, _WORKERS_VARIABLES)
    count = workers if workers is not None else _number(said)
    rank = _number(_first(environ, _RANK_VARIABLES))
    name = job or environ.get("WINDLASS_JOB")
    if not name:
        alone = (count is None or count <= 1) and rank is None
        name = f"{_script()}-{secrets.token_hex(3)}" if alone else "default"
    run_dir = environ.get("WINDLASS_RUN_DIR")
    return Place(name, count or 1, rank, Path(run_dir) if run_dir else Path("runs") / name)


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str] | None:
    return next(((name, environ[name]) for name in names if environ.get(name)), None)


def _number(found: tuple[str, str] | None) -> int | None:
    if found is None:
        return None
    if not found[1].isdecimal():
        raise UsageError("a launcher's variable is not a number", variable=found[0], value=found[1])
    return int(found[1])


def _script() -> str:
    return Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else "notebook"


def _token(address: str, environ: Mapping[str, str]) -> bytes:
    from windlass import recorded_cluster

    path = environ.get("WINDLASS_TOKEN_FILE")
    if path:
        return read_token(Path(path))
    record = recorded_cluster.find()
    if record is not None and record.address == address:
        return read_token(record.token_file)
    raise UsageError(
        "no token for this cluster",
        address=address,
        WINDLASS_TOKEN_FILE="unset",  # noqa: S106 - says that the variable is not set
        next_move="Set WINDLASS_TOKEN_FILE to the file that the scheduler was started with.",
    )


def _private(servers: int, run_dir: Path) -> Found:
    from windlass.local_cluster import LocalCluster

    cluster = LocalCluster.start(servers=servers, run_dir=run_dir)
    return Found(cluster.address, f"a private cluster of {servers} server(s)", read_token(cluster.token_file), cluster)
