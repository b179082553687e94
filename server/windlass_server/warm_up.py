"""Kernels compiled before a table or a codec asks for them: a process beside the server, after it serves.

A table whose kernels this machine has not compiled holds up its first declaration, in the middle of a training loop,
for ten seconds and more. So a server that is ready starts `python -m windlass_server.warm_up`, which fills the cache
that servers and workers of this machine load from (`windlass_proto.kernel_cache`), likely kernels first. It is a
process, as compiling holds the interpreter's lock, and has the lowest priority. An image may run the same command when
it is built, for the processor it is built on.

Invariant: one process a cache warms it at a time (it holds the lock of the file `warming`, which its server took), a
cache that holds everything starts none (the file `warm-<digest>` says so; the digest is of what the code is made of),
and the process ends with its server. What it has compiled by then is kept, and the next one goes on from there.

Owner: the server's main thread.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import select
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import windlass_proto
import windlass_rules
from windlass_proto import codec_specs, finite, ids, kernel_cache, row_moves, row_specs, rule_specs
from windlass_proto.codecs import halves, registry
from windlass_rules import norms, rows
from windlass_rules.registry import RULE_MODULES, variant_of
from windlass_rules.rule import Per
from windlass_server import admission_counts, eviction_kernels, hot_rows, row_kernels

_LOG = logging.getLogger("windlass.warm_up")
_NICE: Final = 19
_DTYPES: Final = (np.dtype(np.float32), np.dtype(np.float64))

_OFTEN: Final[tuple[rule_specs.RuleSpec, ...]] = (
    rule_specs.SGD(lr=0.1),
    rule_specs.Adagrad(),
    rule_specs.Adam(),
    row_specs.RowWiseAdagrad(),
    rule_specs.SGD(lr=0.1, momentum=0.9),
    rule_specs.FTRL(),
)
_VARIANTS: Final[tuple[rule_specs.RuleSpec, ...]] = (
    rule_specs.Adam(amsgrad=True),
    rule_specs.Signum(momentum=0.0),
    rule_specs.RMSprop(momentum=0.9),
    rule_specs.RMSprop(centered=True),
    rule_specs.RMSprop(momentum=0.9, centered=True),
    rule_specs.DCASGD(lr=0.1, adaptive=True),
)
CODECS: Final[tuple[codec_specs.CodecSpec, ...]] = (
    codec_specs.Float16(),
    codec_specs.BFloat16(),
    codec_specs.Int8(),
    codec_specs.OneBit(),
    codec_specs.TwoBit(threshold=0.5),
    codec_specs.TopK(),
    codec_specs.RandomK(),
    codec_specs.Dithering(),
)


def rules() -> list[rule_specs.RuleSpec]:
    """A spec of every variant of every rule, often used ones first."""
    kinds: list[Any] = list(RULE_MODULES)
    needs_rate = (rule_specs.SGD, rule_specs.DCASGD)
    others = [kind(lr=0.1) if kind in needs_rate else kind() for kind in kinds]
    found: dict[str, rule_specs.RuleSpec] = {}
    for spec in (*_OFTEN, *others, *_VARIANTS):
        found.setdefault(variant_of(spec)[1].name, spec)
    return list(found.values())


def steps() -> Iterator[Callable[[], object]]:
    """What compiles, one or a few kernels each, in the order in which they are likely to be asked for."""
    for dtype in _DTYPES:
        yield from _tables(dtype)
        for spec in rules():
            variant = variant_of(spec)[1]
            if variant.measure is None and not any(slot.per is Per.WORKER for slot in variant.slots):
                yield partial(rows.build_rows, spec, dtype)
            if not variant.by_row:
                yield partial(windlass_rules.build, spec, dtype)
        if dtype == _DTYPES[0]:
            yield from (partial(registry.build, spec) for spec in CODECS)
            yield from (partial(halves.build, kind) for kind in halves.HALVES)
        yield partial(norms.build_squares, dtype)
        yield partial(finite.build, dtype)


def _tables(dtype: np.dtype[Any]) -> Iterator[Callable[[], object]]:
    yield partial(row_kernels.build, dtype)
    yield partial(row_moves.moves, dtype)
    yield ids.build_plan
    yield hot_rows.build
    yield admission_counts.build
    yield eviction_kernels.lowest


def digest() -> str:
    """Of the sources' sizes and times, as Numba compares them, for all packages that hold kernels."""
    folders = {Path(str(module.__file__)).parent for module in (windlass_proto, windlass_rules)} | {
        Path(__file__).parent
    }
    found = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for each in folders for path in each.rglob("*.py")
    ]
    return f"{zlib.crc32(repr(sorted(found)).encode()):08x}"


class WarmUp:
    """The process beside a server, or none where it is not needed. `stop` ends and joins it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: int | None = None
        folder = kernel_cache.cache_folder()
        if folder is None or _stamp(folder).exists():
            return
        with _only_one(folder) as lock:
            if lock is not None:
                self._start(lock)

    def _start(self, lock: int) -> None:
        read_fd, self._leash = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "windlass_server.warm_up", "--parent-fd", str(read_fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=(read_fd, lock),
            )
        finally:
            os.close(read_fd)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the process, wherever it is, and join it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
        if self._leash is not None:
            os.close(self._leash)
            self._leash = None


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[int | None]:
    """A descriptor that holds the cache's lock, as does a child that inherits it; None while another process has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "warming", os.O_WRONLY | os.O_CREAT, 0o600)
    held = True
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        yield lock if held else None
    finally:
        os.close(lock)


def _stamp(folder: Path) -> Path:
    return folder / f"warm-{digest()}"


def fill(alone: Callable[[], bool] = lambda: False) -> bool:
    """Compile what the cache lacks; False if `alone` came true before all was there."""
    begin, count = time.monotonic(), 0
    for step in steps():
        if alone():
            return False
        step()
        count += 1
    folder = kernel_cache.cache_folder()
    if folder is not None:
        for old in folder.glob("warm-*"):
            old.unlink(missing_ok=True)
        _stamp(folder).touch()
    _LOG.info("kernels_warmed steps=%d seconds=%.1f folder=%s", count, time.monotonic() - begin, folder)
    return True


def ended(pipe: int) -> bool:
    """Nothing is ever written to it: what can be read is its end."""
    return bool(select.select([pipe], [], [], 0)[0])


def main() -> int:
    """Fill the cache, or as much of it as the parent's life allows; 0 either way."""
    parser = argparse.ArgumentParser(prog="windlass_server.warm_up", description="Compile all kernels into the cache.")
    parser.add_argument("--parent-fd", type=int, metavar="FD", help="stop at the end of this pipe")
    parent = parser.parse_args().parent_fd
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.nice(_NICE)
    fill(lambda: parent is not None and ended(parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
