"""Readers: functions of installed packages that read what this server holds of a tensor or a table, for a worker.

An entry point of the group `windlass.readers` names a function

    reader(part, request: bytes) -> bytes

`part` is a `TablePart` or a `TensorPart`. Readers run one at a time in a thread of their own, beside what is served, so
a slow one delays other readings alone.

Invariant: what a reader gets are copies, each made under the lock of its share and let go of before the reader sees it;
it changes nothing, and holds nobody up for longer than one copy takes. Nothing that comes over a link loads code. What
a reader raises is told to who asked, and this server goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto import limits, own_rules
from windlass_proto.errors import ProtocolError, UnavailableError, UsageError, WindlassError
from windlass_proto.frames import Entry
from windlass_proto.ids import Ids
from windlass_proto.own_readers import ENTRY_POINTS, InstalledReader, Reading
from windlass_rules import packages
from windlass_server.dense import DenseGroup, Share
from windlass_server.share_events import absent_error
from windlass_server.sparse import SparseTable

_LOG = logging.getLogger("windlass.server")
CHUNK_BYTES: Final = 4 * limits.MIB
WAITING_MAX: Final = 64

Array = npt.NDArray[Any]
Done = Callable[[bytes, WindlassError | None], None]


class TablePart:
    """The rows that one band of a sparse table holds: `name`, `dim`, `dtype`, and `chunks()`."""

    def __init__(self, table: SparseTable, share: Share) -> None:
        self.name = table.spec.name
        self.dim = table.spec.dim
        self.dtype = table.spec.held
        self._table = table
        self._share = share

    def chunks(self) -> Iterator[tuple[Ids, Array]]:
        """Its rows, as (ids, rows of shape (n, dim)), some thousand at a time; each chunk is whole as of one moment.

        A row that is made, or goes, meanwhile may be among them or not.
        """
        count = max(1, CHUNK_BYTES // (self.dim * self.dtype.itemsize))
        begin = 0
        while True:
            with self._share.lock:
                _check_present(self._share, self._share.vshard, 0)
                rows = self._table.tables[self._share.vshard]
                end = min(begin + count, rows.used)
                if begin >= end:
                    return
                live = np.zeros(end - begin, np.uint8)
                rows.scan(begin, live)
                chosen = np.flatnonzero(live) + begin
                ids, values = rows.ids[chosen], rows.rows[: end * self.dim].reshape(-1, self.dim)[chosen]
            yield ids, values
            begin = end


class TensorPart:
    """The elements of a dense tensor that one block holds: `name`, `shape` and `dtype` of all of it, and `chunks()`."""

    def __init__(self, group: DenseGroup, share: Share, block: int, segment: int) -> None:
        layout = group.spec.layout
        self._group = group
        self._share = share
        self._block = block
        self._number = segment
        self._segment = layout.blocks[block].segments[segment]
        tensor = layout.tensors[self._segment.tensor]
        self.name = tensor.name
        self.shape = tensor.shape
        self.dtype = layout.held

    def chunks(self) -> Iterator[tuple[int, Array]]:
        """Its elements, as (number of the first one in C order, values); each chunk is whole as of one moment.

        Half tensors are shown as their float32 masters.
        """
        count = max(1, CHUNK_BYTES // self.dtype.itemsize)
        for at in range(0, self._segment.elements, count):
            length = min(count, self._segment.elements - at)
            values: Array = np.empty(length, self.dtype)
            begin = self._segment.begin + at
            with self._share.lock:
                _check_present(self._share, self._block, self._number)
                weights = self._share.arrays[self._block].weights
                self._group.memory.read(weights[begin : begin + length], values)
                self._group.memory.finish()
            yield self._segment.tensor_begin + at, values


Part = TablePart | TensorPart


def part_of_untrusted(entry: Entry, group: DenseGroup | SparseTable, share: Share) -> Part:
    """What a READ entry names.

    Raises:
        ProtocolError: there is none such.
    """
    blocks = () if isinstance(group, SparseTable) else group.spec.layout.blocks
    segments = len(blocks[entry.block].segments) if blocks else 1
    if entry.seg_end != entry.seg_begin + 1 or entry.seg_end > segments:
        raise ProtocolError("a reading names no segment", begin=entry.seg_begin, end=entry.seg_end)
    if isinstance(group, SparseTable):
        return TablePart(group, share)
    return TensorPart(group, share, entry.block, entry.seg_begin)


Reader = Callable[[Part, bytes], bytes]


class Readers:
    """What this server may run; see the module."""

    def __init__(self) -> None:
        self._installed: dict[str, tuple[str, Reader]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readers")
        self._waiting = 0
        self._lock = threading.Lock()

    def install(self, allowed: Iterable[str]) -> tuple[InstalledReader, ...]:
        """Load the readers that `allowed` names, each as NAME or NAME==VERSION; before anybody is served.

        Raises:
            UsageError: a name is not installed, in another version, twice, or not a function.
        """
        for text in allowed:
            name, version = own_rules.parse_allowed(text, "--allow-reader")
            self._installed[name] = _load(name, version)
        return tuple(InstalledReader(name, version) for name, (version, _) in self._installed.items())

    def carry_out(self, reading: Reading, part: Part, done: Done) -> None:
        """Have the reader read `part`; `done` is called once, by some thread.

        Raises:
            WindlassError: it is not installed here in this version, or too many readings wait.
        """
        version, reader = self._installed.get(reading.name, ("none", None))
        if reader is None or reading.version not in ("", version):
            raise UsageError(
                "this server does not have a reader",
                reader=reading.name,
                version_asked=reading.version or "any",
                version_there=version,
                next_move=f"Install its package here and start the server with --allow-reader {reading.name}.",
            )
        with self._lock:
            if self._waiting >= WAITING_MAX:
                raise UnavailableError("too many readings wait on a server", waiting=self._waiting, max=WAITING_MAX)
            self._waiting += 1
        self._thread.submit(self._run, reader, reading, part, done)

    def close(self) -> None:
        """Nothing more is begun; a reading under way is left to itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, reader: Reader, reading: Reading, part: Part, done: Done) -> None:
        answer, error = b"", None
        try:
            answer = _answer(reader, reading, part)
        except WindlassError as refused:
            error = refused
        except Exception as bug:  # noqa: BLE001 - code of others: who asked is told
            _LOG.exception("reader_failed reader=%s", reading.name)
            error = UsageError("a reader failed", reader=reading.name, of=part.name, reason=repr(bug)[:200])
        finally:
            with self._lock:
                self._waiting -= 1
        done(answer, error)


def _answer(reader: Reader, reading: Reading, part: Part) -> bytes:
    answer = reader(part, reading.request)
    if not isinstance(answer, bytes):
        raise UsageError("a reader's answer is not bytes", reader=reading.name, type=type(answer).__name__)
    if len(answer) > reading.answer_bytes:
        raise UsageError(
            "a reader's answer is longer than it may be",
            reader=reading.name,
            bytes=len(answer),
            answer_bytes=reading.answer_bytes,
            next_move="Call store.read with a larger answer_bytes=.",
        )
    return answer


def _check_present(share: Share, block: int, segment: int) -> None:
    state = share.core.blocks[block]
    if not state.present[segment]:
        raise absent_error(state.applied[segment : segment + 1], block)


def _load(name: str, version: str) -> tuple[str, Reader]:
    entry, there = packages.allowed(ENTRY_POINTS, "reader", name, version)
    reader = entry.load()
    if not callable(reader):
        raise UsageError("an entry point is not a reader", reader=name, got=repr(reader)[:80])
    return there, reader
