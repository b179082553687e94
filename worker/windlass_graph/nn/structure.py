"""Nested arguments and results of blocks: tuples, lists and dicts of operands, taken apart and put together.

    leaves, structure = flattened((x, [h, c], None))      # [x, h, c]
    rebuilt(structure, leaves)                            # (x, [h, c], None)

Invariant: a structure is hashable and holds no operand; what is no operand is part of it, so two calls of one structure
differ in their operands alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from windlass_graph.operand import Operand
from windlass_proto.errors import UsageError

Structure = tuple[Any, ...]

_LEAF: Final = ("leaf",)


def is_leaf(tree: Any) -> bool:
    """Symbols, arrays, and NumPy's and CuPy's arrays."""
    return isinstance(tree, Operand) or (hasattr(tree, "__array__") and hasattr(tree, "shape"))


def flattened(tree: Any) -> tuple[list[Any], Structure]:
    """The operands of a tree in order, and the rest of it.

    Raises:
        UsageError: the tree holds what is neither an operand nor a plain hashable value.
    """
    leaves: list[Any] = []
    return leaves, _taken(tree, leaves)


def _taken(tree: Any, leaves: list[Any]) -> Structure:
    if is_leaf(tree):
        leaves.append(tree)
        return _LEAF
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return (kind, *[_taken(each, leaves) for each in tree])
    if isinstance(tree, dict):
        return ("dict", *[(key, _taken(each, leaves)) for key, each in tree.items()])
    try:
        hash(tree)
    except TypeError as cause:
        raise UsageError(
            "a block was given what is neither an array nor a plain value",
            next_move="Give arrays, numbers, text, None, or tuples, lists and dicts of them.",
            got=type(tree).__name__,
        ) from cause
    return ("value", type(tree).__name__, tree)


def rebuilt(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The tree of a structure with these operands."""
    return _built(structure, iter(leaves))


def _built(structure: Structure, leaves: Iterator[Any]) -> Any:
    kind, *rest = structure
    if kind == "leaf":
        return next(leaves)
    if kind == "list":
        return [_built(each, leaves) for each in rest]
    if kind == "tuple":
        return tuple(_built(each, leaves) for each in rest)
    if kind == "dict":
        return {key: _built(each, leaves) for key, each in rest}
    return rest[1]
