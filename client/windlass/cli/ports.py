"""Whether a TCP port is free, and which process has it if not."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from windlass.cli.complaint import USAGE, CommandError


def require_free(listen: str) -> None:
    """Raise a CommandError that names the process which listens on `listen` ("host:port"); port 0 is always free."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise CommandError(
            f"--listen {listen} is not HOST:PORT",
            why="the address needs a host, a colon and a port from 0 to 65535",
            next_move="For example --listen 127.0.0.1:7070",
            status=USAGE,
        )
    if port == "0":
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as cause:
            owner = listener(int(port))
            raise CommandError(
                f"the scheduler cannot listen on {listen}",
                why=f"{cause.strerror}" + (f": {owner}" if owner else ""),
                next_move="Choose another port, or --listen 127.0.0.1:0 for a free one.",
            ) from cause


def listener(port: int) -> str:
    """The process of this user that listens on `port`, in words; empty if it is not seen (Linux only)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd") if inodes else ():
        with contextlib.suppress(OSError):
            if any(os.readlink(entry) in inodes for entry in folder.iterdir()):
                program, *arguments = (folder.parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
                command = " ".join([Path(program).name, *arguments]).strip()
                return f"process {folder.parent.name} has it ({command[:100]})"
    return ""
