"""The floors alone: what this machine's sockets and memory give before any parameter server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.case import Case, Extent, size_text
from benchmarks.contender import CopyFloor, EchoFloor, Field
from benchmarks.contest import contest
from benchmarks.load import one_tensor
from benchmarks.report import Row


def floors(extent: Extent) -> Iterator[Row]:
    with Field() as field:
        for link in ("tcp", "unix"):
            field.enter(f"floor: framed echo {link}", partial(EchoFloor, link))
        field.enter("floor: memcpy", CopyFloor)
        for size in extent.sizes(64, 64 << 10, 1 << 20, 4 << 20, 64 << 20):
            yield from contest("floors", size_text(size), field, one_tensor(size), extent.pace)


CASES = (Case("floors", "framed echo over TCP and Unix sockets, memcpy", floors),)
