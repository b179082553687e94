"""Environments of the peers: made by `python -m benchmarks peers`, never by a measurement.

One virtual environment a peer under build/peers, with the versions pinned here, so that a peer's old NumPy
never meets windlass's. An environment counts as made when its marker file names the same requirements.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import REPOSITORY, NotMeasuredError

FOLDER = REPOSITORY / "build" / "peers"
INSTALL_S = 1200.0


@dataclass(frozen=True, slots=True)
class Peer:
    """What is installed, on which Python, and the program that shows it works."""

    name: str
    requirements: tuple[str, ...]
    python: str | None  # None: the Python that runs the bench
    check: str
    by_default: bool = True


PEERS = (
    Peer("mxnet", ("mxnet==1.9.1", "numpy==1.23.5"), "python3.11", "import mxnet; print(mxnet.__version__)"),
    Peer("grpc", ("grpcio==1.74.0", "numpy==2.2.6"), None, "import grpc; print(grpc.__version__)"),
    Peer(
        "torch",
        ("torch==2.13.0", "numpy==2.2.6"),
        None,
        "import torch; print(torch.__version__)",
        by_default=False,
    ),
)


def python_of(name: str) -> str:
    """The interpreter of a peer's environment. Raises NotMeasuredError when it was not made."""
    peer = next(each for each in PEERS if each.name == name)
    if not _is_made(peer):
        failure = FOLDER / f"{name}.failed"
        why = failure.read_text().strip() if failure.exists() else "its environment is missing"
        raise NotMeasuredError(f"{why}; `python -m benchmarks peers {name}` makes it")
    return str(_python(peer))


def version_of(name: str) -> str:
    """What the peer calls itself, or why it is not there."""
    try:
        marker = FOLDER / name / "made"
        python_of(name)
        return marker.read_text().splitlines()[1]
    except NotMeasuredError as error:
        return f"not measured ({error})"


def make(names: tuple[str, ...] = ()) -> int:
    """Make the environments that are missing (all small ones, or `names`); how many could not be made."""
    failures = 0
    for peer in PEERS:
        if peer.name not in names if names else not peer.by_default:
            continue
        if _is_made(peer):
            print(f"{peer.name}: there ({version_of(peer.name)})")
            continue
        print(f"{peer.name}: installing {', '.join(peer.requirements)} into {FOLDER / peer.name}", flush=True)
        why = _install(peer)
        (FOLDER / f"{peer.name}.failed").unlink(missing_ok=True)
        if why is not None:
            failures += 1
            (FOLDER / f"{peer.name}.failed").write_text(why)
        print(f"{peer.name}: {version_of(peer.name)}", flush=True)
    return failures


def _install(peer: Peer) -> str | None:
    """Why it failed, or None."""
    interpreter = shutil.which(peer.python) if peer.python is not None else sys.executable
    if interpreter is None:
        return f"{peer.name} needs {peer.python}, which is not on the search path"
    shutil.rmtree(FOLDER / peer.name, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    steps = (
        [interpreter, "-m", "venv", str(FOLDER / peer.name)],
        [str(_python(peer)), "-m", "pip", "install", "--quiet", *peer.requirements],
        [str(_python(peer)), "-W", "ignore", "-c", peer.check],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        except subprocess.TimeoutExpired:
            return f"installing {peer.name} took longer than {INSTALL_S:.0f} s"
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return f"{' '.join(step[1:4])}: {lines[-1] if lines else f'status {done.returncode}'}"
    (FOLDER / peer.name / "made").write_text(f"{' '.join(peer.requirements)}\n{done.stdout.strip()}\n")
    return None


def _is_made(peer: Peer) -> bool:
    marker = FOLDER / peer.name / "made"
    return marker.exists() and marker.read_text().splitlines()[0] == " ".join(peer.requirements)


def _python(peer: Peer) -> Path:
    return FOLDER / peer.name / "bin" / "python"
