"""Where and with what a run was made: the facts that every claim of speed must carry."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks.child import REPOSITORY
from benchmarks.peers.environments import PEERS, version_of

DISTRIBUTIONS = ("windlass", "numpy", "numba", "grpcio", "protobuf", "xxhash")


def facts() -> dict[str, object]:
    """Machine, versions and command, as they go into the first JSON line."""
    return {
        "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
        "revision": _revision(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
        "peers": {peer.name: version_of(peer.name) for peer in PEERS},
        "load_average_at_start": os.getloadavg()[0],
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from the checkout" if name == "windlass" else "absent"


def _revision() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
