"""`windlass doctor`: looks at what windlass needs of this machine, each check with how to mend it.

A check is a function without arguments that returns findings; it changes nothing and takes under a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Final

import typer

PYTHON_MIN: Final = (3, 11)
# Distribution -> oldest that works, first that does not (empty: none known). As in pyproject.toml.
PACKAGES: Final = {
    "numpy": ("2", ""),
    "numba": ("0.61", ""),
    "grpcio": ("1.74", ""),
    "protobuf": ("6.31", "8"),
    "xxhash": ("3", ""),
}
_DESCRIPTORS_MIN: Final = 1024  # 256 connections, a segment each beside them, and what Python holds
_SHM_BYTES_MIN: Final = 64 << 20
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_CACHE_FOLDER: Final = "from windlass_proto import kernel_cache as k; print(k.cache_folder() or '')"
_CACHE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `ok` or how to `mend` it. A note (ok with a text in `mend`) can be left as it is."""

    check: str
    ok: bool
    found: str
    mend: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of findings.")] = False,
) -> None:
    """Check this machine; exit 1 if something must be mended."""
    findings = [finding for check in CHECKS for finding in check()]
    broken = sum(not finding.ok for finding in findings)
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    else:
        from windlass.cli.complaint import in_colour

        sys.stdout.write(report(findings, colour=in_colour(sys.stdout.fileno())))
    raise typer.Exit(1 if broken else 0)


def report(findings: list[Finding], *, colour: bool) -> str:
    """A line each, a second one where something can be done; glyph and word, never colour alone."""
    green, red, plain = ("\x1b[32m", "\x1b[31m", "\x1b[0m") if colour else ("", "", "")
    lines = []
    for finding in findings:
        mark = f"{green}✓ ok  {plain}" if finding.ok else f"{red}✗ mend{plain}"
        lines.append(f"{mark}  {finding.check:<16} {finding.found}")
        if finding.mend:
            lines.append(f"{'':8}{'':<16} {finding.mend}")
    broken = sum(not finding.ok for finding in findings)
    lines.append(f"{broken} to mend" if broken else "nothing to mend")
    encoding = sys.stdout.encoding or "ascii"
    return ("\n".join(lines) + "\n").encode(encoding, "replace").decode(encoding)


def python() -> Iterator[Finding]:
    wanted = ".".join(map(str, PYTHON_MIN))
    found = f"{sys.version.split()[0]} ({sys.executable})"
    yield Finding(
        "python",
        sys.version_info >= PYTHON_MIN,
        found,
        "" if sys.version_info >= PYTHON_MIN else f"use {wanted} or later",
    )


def packages() -> Iterator[Finding]:
    from importlib import metadata

    for name, (floor, ceiling) in PACKAGES.items():
        wanted = f"{name}>={floor}" + (f",<{ceiling}" if ceiling else "")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", f"pip install '{wanted}'")
            continue
        fits = _numbers(floor) <= _numbers(version) and not (ceiling and _numbers(version) >= _numbers(ceiling))
        yield Finding(name, fits, version, "" if fits else f"pip install '{wanted}'")


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version: "1.74.0rc1" is (1, 74, 0)."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)


def kernel_cache() -> Iterator[Finding]:
    """Asked in a process of its own: that code imports Numba, which this command does without."""
    from windlass.local_cluster import child_environment

    command = [sys.executable, "-P", "-c", _CACHE_FOLDER]
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=_CACHE_S, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        yield Finding("kernel cache", False, said[-1][:200] if said else "failed", "pip install windlass again")
        return
    folder = done.stdout.strip()
    mend = "" if folder else "set XDG_CACHE_HOME to a folder that only you can write to"
    yield Finding("kernel cache", bool(folder), folder or "none is writable: each process compiles anew", mend)


def shared_memory() -> Iterator[Finding]:
    found = "sealed memfd works"
    try:
        import fcntl

        fd = os.memfd_create("windlass-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, 4096)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        finally:
            os.close(fd)
    except (OSError, AttributeError) as error:
        found = f"no sealed memfd ({error}): processes of this machine use Unix sockets, at a third of the speed"
    yield Finding("shared memory", True, found)
    with contextlib.suppress(OSError):
        status = os.statvfs("/dev/shm")  # noqa: S108 - only looked at
        size = status.f_frsize * status.f_blocks
        small = size < _SHM_BYTES_MIN
        note = "docker run --shm-size 1g gives more to what else uses it; windlass does not" if small else ""
        yield Finding("shm folder", True, f"{size >> 20:,} MiB", note)


def socket_folder() -> Iterator[Finding]:
    from windlass.local_cluster import private_folder
    from windlass_proto.errors import WindlassError

    try:
        folder = private_folder()
    except WindlassError as error:
        yield Finding("socket folder", False, str(error.fact), error.next_move)
        return
    folder.rmdir()
    yield Finding("socket folder", True, str(folder.parent))


def descriptors() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= _DESCRIPTORS_MIN
    mend = "" if enough else f"ulimit -n {_DESCRIPTORS_MIN} (the hard limit is {hard})"
    yield Finding("descriptors", enough, "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}", mend)


def proxies() -> Iterator[Finding]:
    names = [name for name in os.environ if name.lower() in _PROXIES]
    yield Finding("proxies", True, f"{', '.join(sorted(names))} set; windlass does not use them" if names else "none")


def cores() -> Iterator[Finding]:
    from windlass.cli.environment import THREAD_VARIABLES
    from windlass.cli.environment import cores as count

    fixed = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    yield Finding("cores", True, f"{count()}" + (f" ({', '.join(fixed)})" if fixed else ""))


def clock() -> Iterator[Finding]:
    resolution_s = time.get_clock_info("monotonic").resolution
    year = time.gmtime().tm_year
    mend = "" if year >= 2025 else "set the date: certificates and logs go by it"
    yield Finding("clock", not mend, f"year {year}, monotonic to {resolution_s * 1e9:.0f} ns", mend)


def cluster() -> Iterator[Finding]:
    from windlass.cli.finding import find
    from windlass_proto.errors import WindlassError

    try:
        found = find()
        if found is None:
            yield Finding(
                "cluster", True, "none is up", "windlass up starts one; windlass run without one starts its own"
            )
            return
        with found.link() as link:
            reply = link.status()
    except WindlassError as error:
        yield Finding("cluster", False, str(error), error.next_move)
        return
    yield Finding("cluster", True, f"{found.address} is {reply.health} (from {found.source})")


CHECKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    python,
    packages,
    kernel_cache,
    shared_memory,
    socket_folder,
    descriptors,
    proxies,
    cores,
    clock,
    cluster,
)
