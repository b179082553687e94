"""Dense tensors: small exchanges, large ones, a whole model, several workers on several servers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.case import Case, Extent, size_text
from benchmarks.contender import CopyFloor, EchoFloor, Field, View
from benchmarks.contest import Goal, contest
from benchmarks.load import Load, one_tensor
from benchmarks.peers.fleets import open_grpc, open_mxnet
from benchmarks.report import Row
from benchmarks.shapes import resnet50_shapes
from benchmarks.windlass_fleet import open_windlass

MODES = ("dist_async", "dist_sync")
SMALL = (64, 64 << 10)
LARGE = (1 << 20, 4 << 20, 64 << 20)
ROUND_TRIP_GOALS = (Goal("windlass", "mxnet", 8.0),)
TCP_GOALS = (Goal("windlass tcp", "mxnet", 2.5), Goal("windlass tcp", "framed echo tcp", 0.8))
SHM_GOALS = (Goal("windlass shm arena", "mxnet", 12.0), Goal("windlass shm own", "mxnet", 6.0))
MODEL_GOALS = (Goal("windlass shm", "mxnet", 10.0), Goal("windlass tcp", "mxnet", 2.5))
AGGREGATE_GOALS = (Goal("windlass", "mxnet", 6.0), Goal("windlass", "mxnet", 4.0, "cpu"))


def enter_windlass(field: Field, link: str, consistency: str = "asp", workers: int = 1, servers: int = 1) -> None:
    """One fleet, two rows: the user's own arrays, and arrays from the arena."""
    name = f"windlass {link}"
    fleet = field.enter(name, partial(open_windlass, link, consistency, workers, servers))
    if fleet is not None:
        views = [View(f"{fleet.name} own", fleet, lambda load: load), View(f"{fleet.name} arena", fleet, in_arena)]
        field.replace(fleet, views)


def in_arena(load: Load) -> Load:
    """The same load in arrays that the library allocated."""
    return Load(f"{load.key}+arena", load.shapes, arena=True)


def one_to_one(field: Field, *, grpc: bool = True) -> None:
    """One worker, one server, on every link; the floors; the peers."""
    for link in ("tcp", "unix"):
        field.enter(f"floor: framed echo {link}", partial(EchoFloor, link))
    field.enter("floor: memcpy", CopyFloor)
    for link in ("tcp", "unix", "shm"):
        enter_windlass(field, link)
    for mode in MODES:
        field.enter(f"mxnet {mode}", partial(open_mxnet, mode))
    if grpc:
        field.enter("grpc python", open_grpc)


def round_trips(extent: Extent) -> Iterator[Row]:
    with Field() as field:
        one_to_one(field)
        for size in SMALL:
            yield from contest("roundtrip", size_text(size), field, one_tensor(size), extent.pace, ROUND_TRIP_GOALS)


def push_pulls(extent: Extent) -> Iterator[Row]:
    with Field() as field:
        one_to_one(field)
        for size in extent.sizes(*LARGE):
            load = one_tensor(size)
            yield from contest("pushpull", size_text(size), field, load, extent.pace, TCP_GOALS + SHM_GOALS)


def whole_model(extent: Extent) -> Iterator[Row]:
    shapes = resnet50_shapes()
    load = Load("resnet50", shapes[-40:] if extent.quick else shapes)
    setting = f"{len(load.shapes)} tensors, {size_text(load.payload_bytes)}, 2 servers"
    with Field() as field:
        field.enter("floor: framed echo tcp", partial(EchoFloor, "tcp"))
        field.enter("floor: memcpy", CopyFloor)
        for link in ("tcp", "shm"):
            enter_windlass(field, link, "bsp", 1, 2)
        field.enter("mxnet dist_sync", partial(open_mxnet, "dist_sync", 1, 2))
        yield from contest("model", setting, field, load, extent.pace, MODEL_GOALS)


def aggregate(extent: Extent) -> Iterator[Row]:
    size = 1 << 20 if extent.quick else 16 << 20
    setting = f"4 workers x 2 servers, {size_text(size)}, bsp"
    with Field() as field:
        for link in ("tcp", "shm"):
            enter_windlass(field, link, "bsp", 4, 2)
        field.enter("mxnet dist_sync", partial(open_mxnet, "dist_sync", 4, 2))
        load = Load(f"{size}b", ((size // 64,),) * 16)
        yield from contest("aggregate", setting, field, load, extent.pace, AGGREGATE_GOALS)


CASES = (
    Case("roundtrip", "64 B and 64 KiB there and back, one worker, one server: p50 and p99", round_trips),
    Case("pushpull", "push_pull of 1, 4 and 64 MiB, one worker, one server, every link", push_pulls),
    Case("model", "ResNet-50's 161 tensors over 2 servers", whole_model),
    Case("aggregate", "4 workers on 2 servers, BSP, what all move together and its processor time", aggregate),
)
