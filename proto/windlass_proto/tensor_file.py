"""Files of named arrays in the safetensors layout, written whole or not at all.

    8 bytes  length of the header, little-endian
    header   JSON: name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, and "__metadata__";
             spaces fill it up, so that the data starts on 64 bytes
    data     the arrays, little-endian, C order, one after the other without holes

Invariant: a file is written whole or not at all (`storage`). What is read back is checked before memory is taken for
it; whatever is wrong with it is a CorruptionError that names the file. Nothing in such a file is code.

The layout is the one the safetensors library documents, so its readers open these files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from windlass_proto import limits, storage
from windlass_proto.errors import CorruptionError, UsageError
from windlass_proto.storage import WriteAll

Array = npt.NDArray[Any]

_DTYPES: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_NAMES: Final = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}
_METADATA: Final = "__metadata__"
_CHUNK_BYTES: Final = 8 * limits.MIB


class Place(NamedTuple):
    """Where an array lies in its file: bytes [begin, end), as `dtype` (a name of the layout) in `shape`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Written(NamedTuple):
    """A file that is on the disk: its length, and the XXH3-128 of all its bytes in hexadecimal."""

    nbytes: int
    digest: str


def write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Written:
    """Write `arrays` to `path`, in place of what was there.

    Raises:
        UsageError: an array's dtype has no name in the layout.
        UnavailableError: the file could not be written (a full disk, no such folder); what was there is left.
    """
    header = _header(arrays, metadata or {})
    digest = xxhash.xxh3_128()
    nbytes = 0

    def fill(write_all: WriteAll) -> None:
        nonlocal nbytes
        for piece in (memoryview(header), *(_bytes_of(array) for array in arrays.values())):
            for at in range(0, len(piece), _CHUNK_BYTES):
                chunk = piece[at : at + _CHUNK_BYTES]
                write_all(chunk)
                digest.update(chunk)
            nbytes += len(piece)

    storage.write_whole(path, fill)
    return Written(nbytes, digest.hexdigest())


def digest_of(path: Path, nbytes: int) -> str:
    """The XXH3-128 of a file that should have `nbytes` bytes.

    Raises:
        CorruptionError: it is missing or has another length.
    """
    digest = xxhash.xxh3_128()
    with storage.opened_untrusted(path) as file:
        size = storage.length_of(file)
        if size != nbytes:
            raise CorruptionError("a file of a checkpoint has another length", file=path, bytes=size, expected=nbytes)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def places_untrusted(path: Path) -> dict[str, Place]:
    """Where each array of a file lies.

    Raises:
        CorruptionError: the header cannot be read, or what it says does not fit the file.
    """
    with storage.opened_untrusted(path) as file:
        size = storage.length_of(file)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, limits.TENSOR_FILE_HEADER_BYTES_MAX):
            raise CorruptionError("a file of arrays has no whole header", file=path, bytes=size, header_bytes=length)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        if not isinstance(header, dict):
            raise TypeError("the header is not an object")
        header.pop(_METADATA, None)
        places = {str(name): _place_untrusted(fields, 8 + length, size) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise CorruptionError("a file of arrays has a broken header", file=path, reason=str(cause)[:200]) from cause
    return places


def _place_untrusted(fields: Any, base: int, size: int) -> Place:
    dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("a shape or an offset is not a count")
    elements = 1
    for extent in shape:
        elements *= extent
    if end - begin != elements * np.dtype(_DTYPES[dtype]).itemsize or base + end > size:
        raise ValueError(f"bytes {begin} to {end} do not hold {dtype} of shape {list(shape)}")
    return Place(dtype, shape, base + begin, base + end)


def read(path: Path, place: Place) -> Array:
    """The array at `place`. BF16, which NumPy lacks, comes as float32, which holds it exactly.

    Raises:
        CorruptionError: the file has become shorter.
    """
    code = np.dtype(_DTYPES[place.dtype])
    count = (place.end - place.begin) // code.itemsize
    array = np.empty(count, code)
    with storage.opened_untrusted(path) as file:
        file.seek(place.begin)
        found = storage.read_into(file, array.view(np.uint8).data)
    if found != array.nbytes:
        raise CorruptionError("a file of arrays ends too soon", file=path, bytes=found, expected=array.nbytes)
    if place.dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(place.shape)


def load(path: Path) -> dict[str, Array]:
    """Every array of a file, by name.

    Raises:
        UsageError: there is no such file.
        CorruptionError: it is not a whole file of arrays.
    """
    if not path.is_file():
        raise UsageError("there is no file of arrays", file=path, next_move="Give the path of a .safetensors file.")
    return {name: read(path, place) for name, place in places_untrusted(path).items()}


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    record: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, array in arrays.items():
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None or name == _METADATA:
            raise UsageError(
                "an array cannot be put into a file", name=name, dtype=array.dtype, supported=", ".join(_NAMES.values())
            )
        record[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    raw = json.dumps(record, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % limits.ALIGN_BYTES)
    return len(raw).to_bytes(8, "little") + raw


def _bytes_of(array: Array) -> memoryview:
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data
