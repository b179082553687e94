"""Packages: the one entry point of a name that whoever started this process has allowed.

Invariant: a name stands for one package in one version, or nothing of it is loaded.
"""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint

from windlass_proto.errors import UsageError


def allowed(group: str, kind: str, name: str, version: str) -> tuple[EntryPoint, str]:
    """The entry point `name` of `group`, and its package's version.

    Args:
        kind: what its module holds, in words.
        version: that which is allowed; "" is any.

    Raises:
        UsageError: it is not installed, twice, or in another version.
    """
    entries = importlib.metadata.entry_points(group=group, name=name)
    found = {(entry.value, entry.dist.version if entry.dist else ""): entry for entry in entries}
    if len(found) != 1:
        raise UsageError(
            f"an allowed {kind} is installed twice" if found else f"an allowed {kind} is not installed",
            **{kind.rsplit(maxsplit=1)[-1]: name},
            installed=", ".join(f"{value} {there}" for value, there in found) or "none of this name",
            next_move=f"Install one package with an entry point {name} in the group {group}.",
        )
    ((_, there), entry) = found.popitem()
    if version and there != version:
        raise UsageError(
            f"an allowed {kind} is installed in another version",
            **{kind.rsplit(maxsplit=1)[-1]: name},
            allowed=version,
            installed=there,
            next_move="Install the allowed version, or allow the installed one.",
        )
    return entry, there
