"""Which cluster a command is about: `$WINDLASS_SCHEDULER`, else the one that `windlass up` recorded.

Invariant: what is returned has accepted a connection a moment ago, and says where its address came from, so
that every later error can name the setting.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from windlass import recorded_cluster
from windlass.cli.complaint import CommandError

if TYPE_CHECKING:
    from windlass_proto.control_link import ControlLink

_REACH_S = 3.0
_CALL_S = 5.0


@dataclass(frozen=True, slots=True)
class FoundCluster:
    """`source` says in words where `address` came from."""

    address: str
    token_file: Path
    source: str

    def link(self) -> ControlLink:
        """A control link; the caller closes it.

        Raises:
            UsageError: if the token file cannot be read or is open to others.
        """
        from windlass_proto.control_link import ControlLink
        from windlass_proto.token_file import read_token

        return ControlLink(self.address, read_token(self.token_file), found_by=self.source, timeout_s=_CALL_S)


def find(name: str | None = None) -> FoundCluster | None:
    """The cluster of `$WINDLASS_SCHEDULER` unless a recorded one is asked for by `name`; None without any.

    Raises:
        CommandError: if one is named, by variable or by name, and cannot be reached.
    """
    address = os.environ.get("WINDLASS_SCHEDULER", "")
    if address and name is None:
        return _of_variable(address)
    record = recorded_cluster.read(name or recorded_cluster.DEFAULT_NAME)
    if record is None:
        if name is not None:
            raise CommandError(
                f"no cluster called {name} is up",
                why="none is recorded under this name, or its owner has ended",
                next_move=f"windlass up --name {name}",
            )
        return None
    _require_reachable(record.address, "the record of `windlass up`", "windlass down, then windlass up")
    return FoundCluster(record.address, record.token_file, "the record of `windlass up`")


def require(name: str | None = None) -> FoundCluster:
    """As `find`, but none is a CommandError."""
    found = find(name)
    if found is None:
        raise CommandError(
            "no cluster was found",
            why="WINDLASS_SCHEDULER is not set, and `windlass up` has recorded none that is alive",
            next_move="windlass up --detach",
        )
    return found


def _of_variable(address: str) -> FoundCluster:
    token_file = os.environ.get("WINDLASS_TOKEN_FILE", "")
    record = recorded_cluster.read()
    if not token_file and record is not None and record.address == address:
        token_file = str(record.token_file)
    if not token_file:
        raise CommandError(
            "the cluster's token is not known",
            why=f"WINDLASS_SCHEDULER={address} is set, WINDLASS_TOKEN_FILE is not",
            next_move="Set WINDLASS_TOKEN_FILE to the cluster's token file, or unset WINDLASS_SCHEDULER.",
        )
    _require_reachable(address, "$WINDLASS_SCHEDULER", "Start that cluster, or unset WINDLASS_SCHEDULER.")
    return FoundCluster(address, Path(token_file), "$WINDLASS_SCHEDULER")


def _require_reachable(address: str, source: str, next_move: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if not host or not port.isdecimal():
            raise OSError("it is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as cause:
        raise CommandError(
            f"the scheduler at {address} cannot be reached",
            why=f"{cause.strerror or cause}; the address came from {source}",
            next_move=next_move,
        ) from cause
