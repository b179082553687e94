"""`windlass env` and `windlass version`: what a launcher hands a worker, and what is installed.

WINDLASS_SCHEDULER   host:port of the cluster's scheduler
WINDLASS_TOKEN_FILE  the cluster's secret
WINDLASS_JOB         name of the job; WINDLASS_WORKERS how many take part, WINDLASS_RANK which of them this is
WINDLASS_RUN_DIR     the run folder
OMP_NUM_THREADS ...  cores / workers, unless set: 4 processes that each use every core are 3 to 6 times slower
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def launcher_variables(
    *,
    address: str,
    token_file: Path,
    job: str,
    workers: int,
    rank: int,
    run_dir: Path,
    environ: Mapping[str, str],
) -> dict[str, str]:
    """What worker `rank` of `workers` finds in its environment; thread counts set in `environ` are left alone."""
    threads = str(max(1, cores() // workers))
    return {
        "WINDLASS_SCHEDULER": address,
        "WINDLASS_TOKEN_FILE": str(token_file),
        "WINDLASS_JOB": job,
        "WINDLASS_WORKERS": str(workers),
        "WINDLASS_RANK": str(rank),
        "WINDLASS_RUN_DIR": str(run_dir),
        **{name: threads for name in THREAD_VARIABLES if name not in environ},
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def env(
    workers: Annotated[int, typer.Option(min=1, help="How many workers the job has.")] = 1,
    rank: Annotated[int, typer.Option(min=0, help="Which of them this is.")] = 0,
    job: Annotated[str, typer.Option(help="The job's name.")] = "default",
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="One that `up --name` started.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object instead of export lines.")] = False,
) -> None:
    """Print what a launcher hands a worker: eval "$(windlass env)"."""
    import json
    import shlex

    from windlass.cli.complaint import USAGE, CommandError
    from windlass.cli.finding import require

    if rank >= workers:
        raise CommandError(
            "there is no such rank",
            why=f"rank {rank} of {workers} workers; ranks begin at 0",
            next_move=f"--rank 0 to {workers - 1}, or more --workers",
            status=USAGE,
        )
    found = require(cluster)
    variables = launcher_variables(
        address=found.address,
        token_file=found.token_file,
        job=job,
        workers=workers,
        rank=rank,
        run_dir=Path("runs", job).resolve(),
        environ=os.environ,
    )
    if as_json:
        sys.stdout.write(json.dumps(variables) + "\n")
    else:
        sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def version() -> None:
    """Print the version."""
    from windlass._version import __version__

    sys.stdout.write(f"windlass {__version__}\n")
