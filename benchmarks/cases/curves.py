"""How cost grows: one quantity changes, the others stay. Processor seconds per GB beside every speed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.case import Case, Extent, size_text
from benchmarks.cases.dense import enter_windlass
from benchmarks.contender import EchoFloor, Field
from benchmarks.contest import contest
from benchmarks.load import Load, one_tensor
from benchmarks.peers.fleets import open_mxnet
from benchmarks.report import Row

COUNTS = (1, 2, 4)
TOTAL_BYTES = 16 << 20
BYTES = tuple(64 << (2 * step) for step in range(12))  # 64 B, 256 B, ... 256 MiB
TENSORS = (1, 10, 100, 500, 2000)


def by_workers(extent: Extent) -> Iterator[Row]:
    size = extent.sizes(1 << 20, TOTAL_BYTES)[-1]
    for workers in COUNTS[:2] if extent.quick else COUNTS:
        with Field() as field:
            enter_windlass(field, "tcp", "bsp", workers, 2)
            field.enter("mxnet dist_sync", partial(open_mxnet, "dist_sync", workers, 2))
            setting = f"{workers} workers x 2 servers, {size_text(size)}"
            yield from contest("curve-workers", setting, field, split(size, 16), extent.pace)


def by_servers(extent: Extent) -> Iterator[Row]:
    size = extent.sizes(1 << 20, TOTAL_BYTES)[-1]
    for servers in COUNTS[:2] if extent.quick else COUNTS:
        with Field() as field:
            enter_windlass(field, "tcp", "asp", 1, servers)
            field.enter("mxnet dist_async", partial(open_mxnet, "dist_async", 1, servers))
            setting = f"1 worker x {servers} servers, {size_text(size)}"
            yield from contest("curve-servers", setting, field, split(size, 16), extent.pace)


def by_bytes(extent: Extent) -> Iterator[Row]:
    with Field() as field:
        field.enter("floor: framed echo tcp", partial(EchoFloor, "tcp"))
        enter_windlass(field, "tcp")
        enter_windlass(field, "shm")
        for size in extent.sizes(*BYTES):
            yield from contest("curve-bytes", size_text(size), field, one_tensor(size), extent.pace)


def by_tensors(extent: Extent) -> Iterator[Row]:
    size = extent.sizes(1 << 20, TOTAL_BYTES)[-1]
    with Field() as field:
        enter_windlass(field, "tcp")
        enter_windlass(field, "shm")
        field.enter("mxnet dist_async", partial(open_mxnet, "dist_async"))
        for tensors in TENSORS[:3] if extent.quick else TENSORS:
            setting = f"{tensors} tensors, together {size_text(size)}"
            yield from contest("curve-tensors", setting, field, split(size, tensors), extent.pace)


def split(payload_bytes: int, tensors: int) -> Load:
    """`tensors` equal tensors of `payload_bytes` together (rounded down to whole elements)."""
    elements = max(1, payload_bytes // 4 // tensors)
    return Load(f"{payload_bytes}b-{tensors}t", ((elements,),) * tensors)


CASES = (
    Case("curve-workers", "1, 2, 4 workers on 2 servers, BSP", by_workers),
    Case("curve-servers", "one worker on 1, 2, 4 servers", by_servers),
    Case("curve-bytes", "64 B to 256 MiB, one worker, one server", by_bytes),
    Case("curve-tensors", "1 to 2,000 tensors of the same total", by_tensors),
)
