"""Files of a data set: found in their folder, plain or gzipped, read whole or in blocks of lines.

What a file lacks or has wrongly is a CorruptionError with the file, the place, what was expected and what was found.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from windlass_proto.errors import CorruptionError, UsageError

_BLOCK_BYTES: Final = 1 << 20  # what is made of a block stays in the cache
_GZIP: Final = b"\x1f\x8b"


def find(folder: str | Path, names: Sequence[str]) -> Path | None:
    """The first of `names`, each also tried with `.gz`, that the folder holds."""
    place = Path(folder)
    if not place.is_dir():
        raise UsageError("a data set's folder does not exist", folder=place)
    tried = [place / (name + suffix) for name in names for suffix in ("", ".gz")]
    return next((path for path in tried if path.is_file()), None)


def needed(folder: str | Path, names: Sequence[str], what: str) -> Path:
    """The file of `find`.

    Raises:
        UsageError: the folder has none of them.
    """
    found = find(folder, names)
    if found is None:
        raise UsageError(
            f"a folder lacks {what}",
            folder=folder,
            looked_for=" or ".join(names),
            next_move="Give the folder that holds it, plain or as .gz.",
        )
    return found


def read_whole(path: str | Path) -> bytes:
    """The file's bytes, unpacked if it is gzipped."""
    return b"".join(_parts(Path(path)))


def line_blocks(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines, a MiB at a time, with the number of the first one (from 1)."""
    first, left = 1, b""
    for part in _parts(Path(path)):
        block = left + part
        cut = block.rfind(b"\n") + 1
        if cut:
            yield first, block[:cut]
            first += block.count(b"\n", 0, cut)
        left = block[cut:]
    if left:
        yield first, left


def _parts(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP
            plain.seek(0)
            source = gzip.GzipFile(fileobj=plain) if packed else plain
            while part := source.read(_BLOCK_BYTES):
                yield part
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise CorruptionError(
            "a gzipped file is damaged or cut off", file=path, reason=str(cause), next_move="Fetch it again."
        ) from cause
    except OSError as cause:
        raise UsageError("a file cannot be read", file=path, reason=str(cause)) from cause
