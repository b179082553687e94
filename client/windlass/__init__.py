"""windlass: a parameter server for Python training loops.

    import windlass as wl

    with wl.connect() as cluster:
        store = cluster.store("model", consistency="bsp")
        params = store.init({"w": w0, "b": b0}, optimizer=wl.optim.Adam(lr=1e-3))
        for x, y in cluster.batches(X, Y, size=64, epochs=20):
            loss, grads = loss_and_grads(params, x, y)
            store.update(grads, out=params, weight=len(x))
            cluster.log(loss=loss)

Importing it loads NumPy and nothing else; everything resolves when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from windlass._version import __version__

if TYPE_CHECKING:
    from windlass import admit, codec, evict, optim, schedule
    from windlass.checkpoints import Resume
    from windlass.cluster import Cluster, connect
    from windlass.hashing import hash64
    from windlass.mixture import Rows
    from windlass.store import Store
    from windlass.ticket import Ticket, wait
    from windlass_graph import autograd, loss, nd, nn, profiler, sym
    from windlass_graph import functions as F  # noqa: N812 - what the field calls it
    from windlass_graph.device import cpu, gpu
    from windlass_graph.graph import Graph
    from windlass_graph.monitor import Monitor
    from windlass_proto.errors import (
        ClosedError,
        CorruptionError,
        FencedError,
        InvariantError,
        ProtocolError,
        UnavailableError,
        UsageError,
        WindlassError,
    )
    from windlass_worker import callback, data, init, metric
    from windlass_worker.devices import split_and_load
    from windlass_worker.estimator import Estimator
    from windlass_worker.trainer import Trainer

_ERRORS = "windlass_proto.errors"
_WORKER = "windlass_worker."
_GRAPH = "windlass_graph."
# By name, the module that has it; what ends in a full stop is the package whose module it is.
_WHERE = {
    "admit": "windlass.",
    "codec": "windlass.",
    "evict": "windlass.",
    "optim": "windlass.",
    "schedule": "windlass.",
    "datasets": "windlass.",
    "autograd": _GRAPH,
    "nd": _GRAPH,
    "profiler": _GRAPH,
    "Monitor": "windlass_graph.monitor",
    "sym": _GRAPH,
    "Graph": "windlass_graph.graph",
    "loss": _GRAPH,
    "nn": _GRAPH,
    "F": "windlass_graph.nn",
    "cpu": "windlass_graph.device",
    "gpu": "windlass_graph.device",
    "data": _WORKER,
    "init": _WORKER,
    "metric": _WORKER,
    "hash64": "windlass.hashing",
    "Trainer": "windlass_worker.trainer",
    "Estimator": "windlass_worker.estimator",
    "callback": _WORKER,
    "split_and_load": "windlass_worker.devices",
    "Cluster": "windlass.cluster",
    "connect": "windlass.cluster",
    "Store": "windlass.store",
    "Ticket": "windlass.ticket",
    "wait": "windlass.ticket",
    "load_tensors": "windlass.plain_files",
    "Resume": "windlass.checkpoints",
    "Rows": "windlass.mixture",
    "ClosedError": _ERRORS,
    "CorruptionError": _ERRORS,
    "FencedError": _ERRORS,
    "InvariantError": _ERRORS,
    "ProtocolError": _ERRORS,
    "UnavailableError": _ERRORS,
    "UsageError": _ERRORS,
    "WindlassError": _ERRORS,
}

__all__ = [
    "ClosedError",
    "Cluster",
    "CorruptionError",
    "Estimator",
    "F",
    "FencedError",
    "Graph",
    "InvariantError",
    "Monitor",
    "ProtocolError",
    "Resume",
    "Rows",
    "Store",
    "Ticket",
    "Trainer",
    "UnavailableError",
    "UsageError",
    "WindlassError",
    "__version__",
    "admit",
    "autograd",
    "callback",
    "codec",
    "connect",
    "cpu",
    "data",
    "evict",
    "gpu",
    "hash64",
    "init",
    "load_tensors",
    "loss",
    "metric",
    "nd",
    "nn",
    "optim",
    "profiler",
    "schedule",
    "split_and_load",
    "sym",
    "wait",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        from windlass_proto.arguments import unknown_name

        raise unknown_name("windlass", name, _WHERE)
    if where.endswith("."):
        return importlib.import_module(where + name)
    return getattr(importlib.import_module(where), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
