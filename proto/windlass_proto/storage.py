"""Storage: where checkpoints lie, a folder of a file system or a place that fsspec reaches (s3://, gs://, az://, sftp://).

A *place* has the interface of `pathlib.Path`: it is one, or a `upath.UPath` of the extra `storage`.

Invariant: a file that is there under its name was written to its end. In a folder it is written beside, synced and
renamed, and its folder synced; other storage shows an object when it is whole, or one that was cut short, which its
digest betrays. Whatever goes wrong on the way is an UnavailableError (writing) or a CorruptionError (reading) that
names the file.

Prior art: PyTorch's distributed checkpoints reach storage through fsspec as well.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote, urlsplit

from windlass_proto.errors import CorruptionError, UnavailableError, UsageError, WindlassError

_NO_ROOM: Final = "Make room or choose another folder; training goes on without this checkpoint."
_NO_RIGHT: Final = "Give a folder that every server and worker can read and write."

WriteAll = Callable[[bytes | memoryview], None]


def place_of(uri: str | Path) -> Path:
    """The place that `uri` names: a path, file:///path, or what fsspec knows by its scheme.

    Raises:
        UsageError: nothing here knows the scheme.
    """
    if isinstance(uri, Path):
        return uri.absolute()
    if not isinstance(uri, str):
        return cast("Path", uri)  # a UPath of the user's
    split = urlsplit(uri)
    if split.scheme == "file" and split.netloc in ("", "localhost"):
        return Path(unquote(split.path)).absolute()
    return _remote(uri) if "://" in uri else Path(uri).absolute()


def _remote(uri: str) -> Path:
    try:
        from upath import UPath

        place = UPath(uri)
        _ = place.fs  # imports the package of its scheme
    except (ImportError, ValueError) as cause:
        raise UsageError(
            "a checkpoint's place is not supported here",
            uri=uri,
            reason=cause,
            supported="a path, file:///path, or a scheme of fsspec",
            next_move="Install windlass[storage] and fsspec's package for the scheme on every server and worker.",
        ) from cause
    return cast("Path", place)


def is_local(place: Path) -> bool:
    """Is it in a file system of this machine, with files that can be renamed and synced?"""
    return isinstance(place, Path)


def write_whole(place: Path, fill: Callable[[WriteAll], None]) -> None:
    """What `fill` writes becomes the file `place` at once; what was there is left if that fails.

    Raises:
        UnavailableError: the storage refused.
    """
    with _refusals(UnavailableError, "a file of a checkpoint could not be written", _NO_ROOM, file=place):
        if is_local(place):
            _write_beside(place, fill)
        else:
            with place.open("wb") as file:
                fill(lambda raw: _write_all(file, raw))


def _write_beside(path: Path, fill: Callable[[WriteAll], None]) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb", buffering=0) as file:
            fill(lambda raw: _write_all(file, raw))
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(place: Path) -> None:
    """See that the folder is there; object stores have none.

    Raises:
        UnavailableError: the storage refused.
    """
    with _refusals(UnavailableError, "a checkpoint's folder could not be made", _NO_RIGHT, folder=place):
        place.mkdir(parents=True, exist_ok=True)


def listed(place: Path) -> list[Path]:
    """What is in a folder; nothing if there is none.

    Raises:
        UnavailableError: the storage refused.
    """
    with _refusals(UnavailableError, "a checkpoint's folder could not be listed", _NO_RIGHT, folder=place):
        return list(place.iterdir()) if place.is_dir() else []


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing, where storage has such folders and lets go of them."""
    if not listed(folder):
        with contextlib.suppress(OSError):
            if is_local(folder):
                folder.rmdir()
            else:
                cast("Any", folder).fs.rmdir(cast("Any", folder).path)  # UPath.rmdir would take what came meanwhile


def sync_folder(folder: Path) -> None:
    """What was renamed or made in `folder` outlives a crash of the machine."""
    if not is_local(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_untrusted(place: Path, fact: str = "a file of a checkpoint cannot be read") -> Iterator[BinaryIO]:
    """The file for reading; `fact` is what a failure says.

    Raises:
        CorruptionError: it is missing, or the storage failed while it was read.
    """
    with _refusals(CorruptionError, fact, file=place), place.open("rb") as file:
        yield file


def length_of(file: BinaryIO) -> int:
    """Bytes of an open file, which is at its beginning before and after."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def read_into(file: BinaryIO, target: memoryview) -> int:
    """Fill `target` from where `file` stands; returns the bytes read, fewer if it ends."""
    at = 0
    while at < len(target):
        taken = cast("Any", file).readinto(target[at:])
        if not taken:
            break
        at += taken
    return at


def _write_all(file: Any, raw: bytes | memoryview) -> None:
    """Write everything: an unbuffered file may take a part."""
    left = memoryview(raw)
    while left:
        left = left[file.write(left) :]


@contextlib.contextmanager
def _refusals(kind: type[WindlassError], fact: str, next_move: str = "", **where: Path) -> Iterator[None]:
    """What the storage raises, as an error of ours. Only its own package knows what that is beside an OSError."""
    try:
        yield
    except WindlassError:
        raise
    except Exception as cause:
        if not isinstance(cause, OSError) and all(map(is_local, where.values())):
            raise
        reason = (isinstance(cause, OSError) and cause.strerror) or cause
        raise kind(fact, **where, reason=reason, next_move=next_move) from cause
