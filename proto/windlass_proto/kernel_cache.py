"""Compiled kernels: how they are compiled, and the folder where they wait for the next process.

Invariant: compiling never fails for want of a folder. The folder is the first of
`$XDG_CACHE_HOME/windlass`, `~/.cache/windlass` and a private one under the temporary folder that this
user owns and nobody else can write to (Numba's cache holds code: a folder that others write to would run
theirs); without any, one warning says so and kernels are compiled anew in every process. Below it lies
one folder per windlass version, compiler flags, Numba version and CPU, and below that one per dtype.

Compiling takes 150 to 400 ms a kernel, loading 10 to 20. A server that is ready has the cache filled by a
process beside it (`windlass_server.warm_up`), so that what is declared later is loaded.

The lock here is held while compiling (Numba's own is too). It guards Numba's setting for the folder,
which is process-wide and read when a function is decorated; it is put back, so that a user's own Numba
functions keep theirs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import re
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llvmlite.binding
import numba
import numpy as np
from numba import types

_LOG = logging.getLogger("windlass.kernels")
_DECORATING = threading.Lock()

_FLAGS: Final[dict[str, Any]] = {
    "nogil": True,  # other connections' threads run meanwhile
    "error_model": "numpy",  # Python's check for a zero divisor stops vectorisation: 4 against 21 GB/s
    "fastmath": False,  # sums are not reordered, a * b + c is not fused: the same bits on any CPU
}

_SCALARS: Final = {"float32": types.float32, "float64": types.float64}


def scalar_type(dtype: np.dtype[Any]) -> Any:
    """Numba's type of one element."""
    return _SCALARS[dtype.name]


def vector_type(dtype: np.dtype[Any], *, readonly: bool = False) -> Any:
    """Numba's type of a contiguous 1-D array; a read-only parameter takes writable arrays as well."""
    return types.Array(scalar_type(dtype), 1, "C", readonly=readonly)


def compiled(
    function: Callable[..., Any], signatures: list[Any], dtype: np.dtype[Any], variant: str = ""
) -> Callable[..., Any]:
    """`function` as machine code for exactly `signatures`, from the cache where it is there. Thread-safe.

    `variant` says what else the code depends on, where `function` was made for a rule: it has a folder of its own, and
    a name of its own. Machine code is linked by name, so of two rules' kernels that were compiled in processes of their
    own and carry one name, whichever a process loads first would run for both.
    """
    with _DECORATING:
        if variant:
            call_after(function, variant)
        folder = cache_folder()
        if folder is not None:
            kernel = _from_cache(function, signatures, folder / dtype.name / variant)
            if kernel is not None:
                return kernel
        return compiled_uncached(function, signatures)


def call_after(function: Callable[..., Any], variant: str) -> None:
    """Name a function after its variant: see `compiled`. What it calls needs such a name as much as itself."""
    ending = re.sub(r"\W", "_", f"_{variant}")
    if not function.__qualname__.endswith(ending):
        function.__qualname__ += ending
        function.__name__ += ending


def compiled_uncached(function: Callable[..., Any], signatures: list[Any]) -> Callable[..., Any]:
    """`function` as machine code made now; its assembly can be inspected."""
    kernel: Callable[..., Any] = numba.njit(signatures, **_FLAGS)(function)
    return kernel


def _from_cache(function: Callable[..., Any], signatures: list[Any], folder: Path) -> Callable[..., Any] | None:
    """The kernel through Numba's cache in `folder`; None (and a warning) if that cache does not work."""
    setting: Any = numba.config
    before = setting.CACHE_DIR
    setting.CACHE_DIR = str(folder)
    try:
        kernel = numba.njit(signatures, cache=True, **_FLAGS)(function)
    # A full disk, a truncated file: Numba raises what it meets. What is wrong with the kernel itself is
    # raised again when the caller compiles anew.
    except Exception as cause:  # noqa: BLE001
        _warn_uncached(f"the folder {folder} failed ({type(cause).__name__}: {cause}); remove it")
        return None
    finally:
        setting.CACHE_DIR = before
    if {tuple(found) for found in kernel.signatures} != {tuple(asked.args) for asked in signatures}:
        _warn_uncached(f"the folder {folder} holds a kernel of another type; remove it")
        return None
    found_kernel: Callable[..., Any] = kernel
    return found_kernel


@functools.cache
def cache_folder() -> Path | None:
    """The folder of this version and CPU, made if needed; None if no place is both writable and private.

    `$NUMBA_CACHE_DIR` is taken as it is where a user has set it. Decided once a process.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    for base in _candidates():
        if _is_private_and_writable(base):
            cpu = llvmlite.binding.get_host_cpu_name()
            return base / f"kernels-{_version()}-{_flags_digest()}-numba{numba.__version__}-{cpu}"
    _warn_uncached("no folder is both writable and private; set XDG_CACHE_HOME to one that is")
    return None


def _candidates() -> list[Path]:
    found = []
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():
        found.append(Path(configured) / "windlass")
    home = os.path.expanduser("~")
    if Path(home).is_absolute():
        found.append(Path(home) / ".cache" / "windlass")
    with contextlib.suppress(FileNotFoundError):  # no temporary folder at all
        found.append(Path(tempfile.gettempdir()) / f"windlass-{os.geteuid()}")
    return found


def _is_private_and_writable(folder: Path) -> bool:
    """Whether `folder` is, or now becomes, a real folder of ours to which we and only we can write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _flags_digest() -> str:
    """Numba's own key is the kernel's file and the CPU: without this, changed flags would find old code."""
    return f"{zlib.crc32(repr(sorted(_FLAGS.items())).encode()):08x}"


def _version() -> str:
    try:
        return importlib.metadata.version("windlass")
    except importlib.metadata.PackageNotFoundError:
        return "source"  # run from a checkout; Numba compares the source file's time and size in any case


@functools.cache
def _warn_uncached(why: str) -> None:
    """Once per reason and process."""
    _LOG.warning("kernels are compiled anew in every process: %s", why)
