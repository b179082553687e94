"""`windlass server` and `windlass scheduler`: one role on any host, in the foreground.

The process becomes the role (exec), so that what a service manager started is what it stops.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The cluster's secret, mode 0600; else $WINDLASS_TOKEN_FILE.")
]


def server(
    context: typer.Context,
    join: Annotated[str, typer.Option(metavar="HOST:PORT", help="The scheduler of the cluster.")],
    token_file: TokenFile = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where data links are opened.")] = "127.0.0.1:0",
    name: Annotated[str, typer.Option(help="Stable over restarts of this server.")] = "",
    device: Annotated[str, typer.Option(metavar="D", help="Where dense tensors lie: memory, or gpu:N.")] = "memory",
) -> None:
    """Serve one part of the parameters; further flags go to `python -m windlass_server`."""
    from windlass.local_cluster import Sweeper, private_folder

    folder = private_folder()
    # Its presence pipe stays open over the exec and closes with the server: then the folder goes.
    os.set_inheritable(Sweeper(folder).presence_fd, True)
    flags = ["--scheduler", join, "--listen", listen, "--socket-dir", str(folder), "--device", device]
    flags += ["--token-file", str(_token_file(token_file, join)), *(["--name", name] if name else [])]
    _become("windlass_server", [*flags, *context.args])


def scheduler(
    context: typer.Context,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the cluster's members find it.")],
    servers: Annotated[int, typer.Option(min=1, help="Servers that the cluster begins with.")] = 1,
    token_file: TokenFile = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Its state; started again on it, it goes on.")
    ] = None,
) -> None:
    """Coordinate a cluster; further flags go to `python -m windlass_scheduler`."""
    from windlass import recorded_cluster
    from windlass.cli.ports import require_free
    from windlass.local_cluster import write_token

    require_free(listen)
    folder = state or recorded_cluster.folder() / "scheduler"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = token_file or Path(os.environ.get("WINDLASS_TOKEN_FILE") or folder / "token")
    if not secret.exists():
        write_token(secret)
        sys.stderr.write(f"wrote a new cluster token to {secret}; servers and workers need a copy, mode 0600\n")
    flags = ["--listen", listen, "--servers", str(servers), "--state", str(folder), "--token-file", str(secret)]
    _become("windlass_scheduler", [*flags, *context.args])


def _token_file(chosen: Path | None, address: str) -> Path:
    from windlass import recorded_cluster
    from windlass.cli.complaint import USAGE, CommandError

    if chosen is None and os.environ.get("WINDLASS_TOKEN_FILE"):
        chosen = Path(os.environ["WINDLASS_TOKEN_FILE"])
    records = map(recorded_cluster.read, recorded_cluster.names())
    found = chosen or next((r.token_file for r in records if r is not None and r.address == address), None)
    if found is None:
        raise CommandError(
            "the cluster's token is not known",
            why=f"neither --token-file nor WINDLASS_TOKEN_FILE is given, and no cluster of yours is at {address}",
            next_move="Copy the token file from the scheduler's host (chmod 600) and name it with --token-file.",
            status=USAGE,
        )
    return found


def _become(module: str, flags: list[str]) -> None:
    from windlass.local_cluster import child_environment

    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *flags], child_environment())  # noqa: S606
