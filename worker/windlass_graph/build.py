"""Making nodes: arguments are checked, names given, types inferred, misfits refused where they were written.

Invariant: every node of every graph comes from `make` or `variable`, so a node that exists has passed its op's
inference with the types then known.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from windlass_graph.node import NO_LABELS, Constant, Node, Value, caller_line
from windlass_graph.op import Attrs, Op, lookup
from windlass_graph.tensor_type import ContradictionError, TensorType
from windlass_proto.errors import UsageError


class _Names(threading.local):
    """Counters by op: `relu0`, `relu1`. Each thread has its own, and each trace begins anew."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.prefix = ""

    def next(self, stem: str) -> str:
        count = self.counts.get(stem, 0)
        self.counts[stem] = count + 1
        return f"{self.prefix}{stem}{count}"


_NAMES = _Names()


def fresh_name(stem: str) -> str:
    """A name that this thread has not given yet: the stem and a number."""
    return _NAMES.next(stem)


@contextmanager
def fresh_names(prefix: str = "") -> Iterator[None]:
    """Inside, names count from 0 again: a graph that is traced twice has the same names. `prefix` keeps those that are
    given here apart from those of a graph that is there already."""
    outer = (_NAMES.counts, _NAMES.prefix)
    _NAMES.counts, _NAMES.prefix = {}, prefix
    try:
        yield
    finally:
        _NAMES.counts, _NAMES.prefix = outer


def reserve_names(names: Iterable[str]) -> None:
    """Let this thread's next names be none of these, which a graph that is read or edited brings along."""
    for name in names:
        stem = name.rstrip("0123456789")
        number = name[len(stem) :]
        if number and len(number) <= 9:
            _NAMES.counts[stem] = max(_NAMES.counts.get(stem, 0), int(number) + 1)


def variable(
    name: str, known: TensorType, *, auxiliary: bool = False, labels: Mapping[str, str] | None = None, where: str = ""
) -> Node:
    """A variable: where values come into a graph."""
    attrs = lookup("variable").filled({"auxiliary": auxiliary})
    return Node(lookup("variable"), (), attrs, name, where or caller_line(), (known,), labels or NO_LABELS)


def constant(array: Any, dtype: str | None, name: str = "") -> Node:
    """A constant. A number with `dtype=None` takes the dtype of what it meets."""
    kept = Constant(np.asarray(array, dtype))
    op = lookup("constant")
    attrs = op.filled({"value": kept, "weak": dtype is None})
    return Node(op, (), attrs, name or fresh_name("constant"), "", op.infer(attrs, ()), NO_LABELS)


def make(
    op: Op,
    inputs: Sequence[Value],
    attrs: Attrs,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    where: str = "",
) -> Node:
    """A node of `op`; `attrs` are filled already.

    Raises:
        UsageError: the number of inputs is wrong, or their types do not fit.
    """
    name, where = name or fresh_name(op.name), where or caller_line()
    check_arity(op, len(inputs), attrs)
    try:
        types = op.infer(attrs, [value.type for value in inputs])
    except ContradictionError as cause:
        shown = ", ".join(f"{value}: {value.type}" for value in inputs)
        raise misfit(op, name, shown, str(cause), where) from None
    return Node(op, tuple(inputs), attrs, name, where, types, labels or NO_LABELS)


def misfit(op: Op, name: str, shown: str, what: str, where: str) -> UsageError:
    """The error of inputs that do not fit an op: the node, its inputs' types and the line that made it."""
    return UsageError(
        f"{op.name} {name!r} does not take these inputs: {what}",
        next_move="Change the shapes or dtypes at that line.",
        inputs=f"[{shown}]",
        **({"made_at": where} if where else {}),
    )


def check_arity(op: Op, count: int, attrs: Attrs) -> None:
    names = op.input_names(attrs)
    if names and names[-1].startswith("*"):
        if count >= len(names):
            return
    elif count == len(names):
        return
    raise UsageError(
        f"{op.name} takes {len(names)} inputs, got {count}", next_move=f"Its inputs: {', '.join(names) or 'none'}."
    )
