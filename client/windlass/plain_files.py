"""Plain files: present weights as one safetensors file, which any program reads, and such files as first values."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass._version import __version__
from windlass.arrays import as_numpy
from windlass_proto import storage, tensor_file
from windlass_proto.frames import Op

if TYPE_CHECKING:
    from windlass.store import Store


def export(store: Store, path: str | Path) -> None:
    """Write present weights to one file; see `Store.export`."""
    whole = functools.partial(store.exchange.pull_plan, list(store.exchange.where), None, exact=True)
    values: dict[str, Any] = store.ask(Op.PULL, whole).result()
    arrays = {name: np.asarray(as_numpy(name, value)) for name, value in values.items()}
    for name, bits in arrays.items():
        if store.exchange.dtype_of(name) == "bfloat16":  # a file would show its bits as integers
            arrays[name] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    for table in store.exchange.sparse.values():
        runs = [(np.empty(0, np.uint64), np.empty((0, table.dim), table.dtype)), *table.items()]
        ids, rows = (np.concatenate(column) for column in zip(*runs, strict=True))
        order = np.argsort(ids)  # equal rows give equal files, whatever servers hold them
        arrays |= {f"{table.name}.ids": ids[order], f"{table.name}.rows": rows[order]}
    tensor_file.write(storage.place_of(path), arrays, {"format": "np", "windlass": __version__})


def load_tensors(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file, by name: what `store.export` or another program wrote.

    BF16, which NumPy lacks, comes as float32. `store.init` takes them as first values.

    Raises:
        UsageError: there is no such file.
        CorruptionError: it is torn or altered; the file is named.
    """
    return tensor_file.load(storage.place_of(path))
