"""What holds for all symbols that a block of code makes: a prefix of their names, labels.

    with wl.sym.Prefix("net_"), wl.sym.Labels(lr_mult="0.1"):
        y = wl.sym.fully_connected(x, units=10, name="fc1")     # net_fc1

Invariant: scopes are a thread's own, nest, and end with their block. Inner prefixes follow outer ones; of two labels of
one key the inner one holds, and one that is given with a symbol before both. A variable keeps its name. Parameters that
a symbol makes for itself carry its labels.

Prior art: MXNet's name.Prefix and AttrScope.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from windlass_graph.node import NO_LABELS
from windlass_proto.errors import UsageError


class _Scope(threading.local):
    def __init__(self) -> None:
        self.prefix = ""
        self.labels: dict[str, str] = {}


_SCOPE = _Scope()


@contextmanager
def Prefix(prefix: str) -> Iterator[None]:  # noqa: N802 - its name in the field
    """Inside, names of symbols begin with `prefix`, given ones and those that are made."""
    outer = _SCOPE.prefix
    _SCOPE.prefix = outer + prefix
    try:
        yield
    finally:
        _SCOPE.prefix = outer


@contextmanager
def only_prefix(prefix: str) -> Iterator[None]:
    """Inside, names begin with `prefix` alone, whatever the scopes around say."""
    outer, _SCOPE.prefix = _SCOPE.prefix, prefix
    try:
        yield
    finally:
        _SCOPE.prefix = outer


@contextmanager
def Labels(**labels: str) -> Iterator[None]:  # noqa: N802 - in the manner of Prefix
    """Inside, symbols and variables carry these labels."""
    outer = _SCOPE.labels
    _SCOPE.labels = {**outer, **checked(labels)}
    try:
        yield
    finally:
        _SCOPE.labels = outer


def named(name: str) -> str:
    """A name as it is here."""
    return _SCOPE.prefix + name


def labelled(own: Mapping[str, str] | None) -> Mapping[str, str]:
    """Labels as they are here, `own` before those of the scope."""
    if not _SCOPE.labels:
        return checked(own) if own else NO_LABELS
    return {**_SCOPE.labels, **checked(own or {})}


def checked(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Labels, if they are text.

    Raises:
        UsageError: one is not.
    """
    for key, value in labels.items():
        if not isinstance(value, str):
            raise UsageError(f"label {key!r} is no text", next_move="Write it as text.", got=type(value).__name__)
    return labels
