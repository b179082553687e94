"""How long a server holds a band of a sparse table for one entry of a push: what every other call to the band waits.

In one process, without links: new rows until the table is as large as it gets, so that indexes grow; and new rows to
a table that is full, so that others are evicted. `cpu` is the worst hold's processor time, which a loaded machine
disturbs less than the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.case import Case, Extent
from benchmarks.report import Row
from windlass_proto import ids, limits, memory
from windlass_proto.consistency import Consistency
from windlass_proto.init_specs import Normal
from windlass_proto.life_specs import LFU, LRU, TTL, Evictions, Score
from windlass_proto.rule_records import DECLARED
from windlass_proto.rule_specs import SGD
from windlass_proto.table_specs import TableSpec
from windlass_rules.rows import build_rows
from windlass_server.share_core import Push
from windlass_server.sparse import Rows, SparseTable

DIM = 16
VSHARDS = 256
CALL_ROWS = 100_000
FULL_ROWS = 1_000_000
GROWN_ROWS = 8_000_000


def pauses(extent: Extent) -> Iterator[Row]:
    scale = 50 if extent.quick else 1
    call, full, grown = CALL_ROWS // scale, FULL_ROWS // scale, GROWN_ROWS // scale // (4 if extent.quick else 1)
    setting = f"{call:,} x {DIM} a call"
    yield Row("pauses", f"growing to {grown:,}, {setting}", "windlass", _holds(grown, call, ()))
    lives: tuple[tuple[str, Evictions], ...] = (
        ("lru", (LRU(full),)),
        ("lfu", (LFU(full),)),
        ("score", (Score(full, 20),)),
        ("ttl", (TTL(full // call),)),
    )
    for name, evict in lives:
        yield Row("pauses", f"full of {full:,}, {setting}", f"windlass {name}", _holds(2 * full, call, evict))


def _holds(rows: int, call: int, evict: Evictions) -> dict[str, float]:
    """Push `rows` ids once each, and of tables that evict as many again, some of them known."""
    spec = TableSpec(
        1, 1, "t", DIM, "float32", Normal(0.01), 64 * limits.GIB, SGD(lr=0.1), False, Consistency.parse("asp"),
        VSHARDS, None, evict,
    )  # fmt: skip
    random = np.random.default_rng(0)
    wall, cpu = [], []
    with ThreadPoolExecutor(1) as ahead:
        table = SparseTable(
            spec,
            build_rows(spec.rule, spec.dtype),
            range(VSHARDS),
            memory.BufferPool(limits.MIB),
            lambda array: ahead.submit(memory.populate, array),
        )
        grads = np.ones(call * DIM, np.float32)
        for step, begin in enumerate(range(0, rows, call)):
            asked = np.arange(begin, begin + call, dtype=np.uint64)
            if evict and begin:
                asked[::4] = random.integers(0, begin, asked[::4].size)
            plan = ids.plan(asked, spec.seed, VSHARDS)
            for share in table.shares.values():
                held = table.tables[share.vshard].held
                mine = plan.ids[plan.begins[held.start] : plan.begins[held.stop]].copy()
                pushed = Rows(mine, grads[: mine.size * DIM], None)
                table.take_memory(share.vshard, pushed)
                began, began_cpu = time.perf_counter(), time.thread_time()
                with share.lock:
                    refusal = table.make_room(share, b"s", step + 1, pushed)
                    event = Push(
                        None, b"s", step + 1, step, share.vshard, 0, 1, pushed, refusal=refusal, stamp=DECLARED
                    )
                    table.execute(share, share.core.push(event), lambda _: None)
                cpu.append(time.thread_time() - began_cpu)
                wall.append(time.perf_counter() - began)
                assert refusal is None
    return {
        "median_s": float(np.median(wall)),
        "p99_s": float(np.quantile(wall, 0.99)),
        "worst_s": max(wall),
        "worst_cpu_s": max(cpu),
    }


CASES = (Case("pauses", "the longest a server holds a sparse table's band: growth and eviction", pauses),)
