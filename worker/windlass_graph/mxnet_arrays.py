"""Arrays that MXNet has saved: `mx.nd.save`, the `.params` of a checkpoint.

    8 bytes  0x112                                      little-endian throughout
    8 bytes  reserved
    8 bytes  number of arrays, then the arrays:
             4 bytes  0xF993FAC9 (version 2) or FAC8 (1), FACA (3); before version 1 the rank
             4 bytes  storage, 0 for dense              versions 2 and 3
             4 bytes  rank, 8 bytes an axis             4 bytes an axis before version 1
             8 bytes  device
             4 bytes  dtype
             the elements, in C order
    8 bytes  number of names (as many, or none), then each: 8 bytes its length, UTF-8

Invariant: a file is untrusted. Every length is held against the bytes that are there before memory is taken.

Source: MXNet 1.9.1, src/ndarray/ndarray.cc, NDArray::Save and NDArray::Load.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np

from windlass_graph.array import Array, array_of
from windlass_proto import storage
from windlass_proto.errors import CorruptionError, UsageError

FILE_BYTES_MAX: Final = 8 * 2**30
ARRAYS_MAX: Final = 1_000_000
AXES_MAX: Final = 32
_LIST: Final = 0x112
_VERSION_1, _VERSION_2, _VERSION_3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES: Final = {
    0: "float32", 1: "float64", 2: "float16", 3: "uint8", 4: "int32", 5: "int8", 6: "int64", 7: "bool",
    8: "int16", 9: "uint16", 10: "uint32", 11: "uint64",
}  # fmt: skip
_STORAGES: Final = {1: "row_sparse", 2: "csr"}


class _Bytes:
    """A file's bytes, taken from the front."""

    def __init__(self, raw: bytes, source: str) -> None:
        self.raw = memoryview(raw)
        self.source = source
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.raw) - self.at:
            raise CorruptionError(
                "a file of MXNet's arrays ends too early",
                file=self.source,
                at=self.at,
                wanted=count,
                left=len(self.raw) - self.at,
            )
        self.at += count
        return self.raw[self.at - count : self.at]

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def number(self, form: str) -> int:
        return int(self.numbers(form)[0])

    def refused(self, fact: str, **values: Any) -> CorruptionError:
        return CorruptionError(fact, file=self.source, at=self.at, **values)


def load_mxnet(path: str | Path) -> dict[str, Array]:
    """The arrays of a file that `mx.nd.save` or a checkpoint of MXNet has written.

    Returns:
        By name, without the `arg:` and `aux:` of checkpoints; what was saved without names has numbers, from "0".

    Raises:
        CorruptionError: the file cannot be read, or is no such file.
        UsageError: an array is sparse, has a dtype that windlass lacks, or two carry one name.
    """
    with storage.opened_untrusted(storage.place_of(path), "a file of MXNet's arrays cannot be read") as file:
        size = storage.length_of(file)
        if size > FILE_BYTES_MAX:
            raise CorruptionError("a file of MXNet's arrays is too large", file=path, bytes=size)
        source = _Bytes(file.read(), str(path))
    if source.numbers("QQ")[0] != _LIST:
        raise source.refused("this is no file of MXNet's arrays")
    count = source.number("Q")
    if count > ARRAYS_MAX:
        raise source.refused("there are too many arrays", arrays=count, arrays_max=ARRAYS_MAX)
    arrays = [_array(source, number) for number in range(count)]
    named = source.number("Q")
    if named not in (0, count):
        raise source.refused("names are not as many as arrays", arrays=count, names=named)
    names = [_name(source) for _ in range(named)]
    return _by_name(names or [str(number) for number in range(count)], arrays)


def _name(source: _Bytes) -> str:
    try:
        return str(source.take(source.number("Q")), "utf-8")
    except UnicodeDecodeError:
        raise source.refused("a name is no text") from None


def _by_name(names: list[str], arrays: list[Array]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, array in zip(names, arrays, strict=True):
        plain = name.removeprefix("arg:") if name.startswith("arg:") else name.removeprefix("aux:")
        if plain in found:
            raise UsageError(f"two arrays of the file are called {plain!r}", arrays=len(names))
        found[plain] = array
    return found


def _array(source: _Bytes, number: int) -> Array:
    magic = source.number("I")
    if magic in (_VERSION_2, _VERSION_3):
        stored = source.number("i")
        if stored != 0:
            raise UsageError(
                "a sparse array of MXNet is not read",
                next_move="Save it with tostype('default').",
                array=number,
                storage=_STORAGES.get(stored, stored),
            )
    rank = magic if magic not in (_VERSION_1, _VERSION_2, _VERSION_3) else source.number("i")
    if not (0 if magic == _VERSION_3 else 1) <= rank <= AXES_MAX:
        raise source.refused("an array's rank is wrong, or it was never filled", array=number, rank=rank)
    old = magic not in (_VERSION_1, _VERSION_2, _VERSION_3)
    shape = source.numbers(f"{rank}{'I' if old else 'q'}")
    source.numbers("ii")  # the device it was on
    flag = source.number("i")
    if flag not in _DTYPES:
        raise UsageError("an array's dtype is none that windlass reads", array=number, flag=flag, known=_DTYPES)
    dtype = np.dtype(_DTYPES[flag])
    if any(axis < 0 for axis in shape):
        raise source.refused("an axis has a negative length", array=number, shape=shape)
    raw = source.take(math.prod(shape) * dtype.itemsize)
    return array_of(np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False))
