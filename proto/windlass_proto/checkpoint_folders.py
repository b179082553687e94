"""The folder of a run's checkpoints: which of them is whole, which are too old.

Invariant: a folder loses its manifest before a part, and no part that a checkpoint which stays is read from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from windlass_proto import storage
from windlass_proto.checkpoint_format import MANIFEST, Manifest, is_named_as_one, is_ours, read_manifest_untrusted
from windlass_proto.errors import CorruptionError


def folders(root: Path) -> list[Path]:
    """Folders of `root` that are named as checkpoints are, the newest first; whole or not."""
    found = [path for path in storage.listed(root) if is_named_as_one(path)]
    return sorted(found, key=_step_of, reverse=True)


def newest(root: Path, passed_over: Callable[[str], object]) -> tuple[Path, Manifest] | None:
    """The newest complete checkpoint of `root`: its manifest is whole and its parts are there in full length.

    `passed_over` is told why a newer one does not count.
    """
    for folder in folders(root):
        try:
            manifest = read_manifest_untrusted(folder)
        except CorruptionError as error:
            passed_over(str(error))
            continue
        torn = [path.name for path, nbytes in manifest.files(folder).items() if not _has_length(path, nbytes)]
        if not torn:
            return folder, manifest
        passed_over(f"a checkpoint lacks a part or some of it (folder={folder}, part={torn[0]})")
    return None


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove files in a checkpoint's folder that neither it nor a later one names: of attempts that came to nothing."""
    named = manifest.files(folder)
    unnamed = [path for path in storage.listed(folder) if is_ours(path.name) and path not in named]
    needed = _needed(folder.parent) if unnamed else set()
    for path in unnamed:
        if (folder.name, path.name) not in needed:
            path.unlink(missing_ok=True)


def prune(root: Path, latest: Path, keep_last: int, *, keep: Path | None = None) -> None:
    """Remove checkpoints of `root` older than the `keep_last` newest complete ones up to `latest`.

    `latest` stays, and so does `keep`, and whatever has parts of one that stays.
    """
    kept: list[Path] = []
    old: list[Path] = []
    for folder in folders(root):
        if _step_of(folder) > _step_of(latest) or folder in (keep, latest):
            kept.append(folder)
        elif sum(_step_of(other) <= _step_of(latest) and other != keep for other in kept) >= keep_last:
            old.append(folder)
        elif (folder / MANIFEST).exists():
            kept.append(folder)
    needed = {name for folder in kept for name, _ in _parts_elsewhere(folder)}
    for folder in old:
        if folder.name not in needed:
            _remove(folder)


def _needed(root: Path) -> set[tuple[str, str]]:
    """Folder and name of parts that checkpoints in other folders of `root` have."""
    return {place for folder in folders(root) for place in _parts_elsewhere(folder)}


def _parts_elsewhere(folder: Path) -> set[tuple[str, str]]:
    try:
        manifest = read_manifest_untrusted(folder)
    except CorruptionError:
        return set()
    return {(part.folder, part.file) for part in manifest.parts if part.folder}


def _remove(folder: Path) -> None:
    """The manifest first, so that a half-removed folder is no checkpoint; other people's files stay."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in storage.listed(folder):
        if is_ours(path.name) or path.name.startswith((".part-", ".residual-", f".{MANIFEST}.")):
            path.unlink(missing_ok=True)
    storage.remove_if_empty(folder)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _has_length(path: Path, nbytes: int) -> bool:
    return path.is_file() and path.stat().st_size == nbytes
