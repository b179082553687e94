"""Blocks made of blocks: chains, branches side by side, and functions as blocks.

Invariant: children of a chain are named by their numbers, so the parameters of its third block begin with "2.".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

from windlass_graph.functions import function
from windlass_graph.nn.block import Block
from windlass_graph.nn.hybrid_block import HybridBlock


class Sequential(Block):
    """Blocks one after the other, each on what the one before it gave."""

    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.add(*blocks)

    def add(self, *blocks: Block) -> None:
        """Append blocks."""
        for block in blocks:
            self.register_child(block)

    def forward(self, x: Any, *rest: Any) -> Any:
        return _chained(self, x, rest)

    def __getitem__(self, key: int | slice) -> Any:
        found = list(self._children.values())[key]
        return type(self)(*found) if isinstance(found, list) else found

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._children.values())


class HybridSequential(HybridBlock):
    """Hybrid blocks one after the other."""

    def __init__(self, *blocks: HybridBlock) -> None:
        super().__init__()
        self.add(*blocks)

    def add(self, *blocks: HybridBlock) -> None:
        """Append blocks."""
        for block in blocks:
            self.register_child(block)

    def forward(self, x: Any, *rest: Any) -> Any:
        return _chained(self, x, rest)

    def __getitem__(self, key: int | slice) -> Any:
        found = list(self._children.values())[key]
        return type(self)(*found) if isinstance(found, list) else found  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._children.values())


def _chained(block: Block, x: Any, rest: tuple[Any, ...]) -> Any:
    for child in block.children.values():
        x = child(x, *rest)
        if rest:
            x, *others = x if isinstance(x, tuple | list) else (x,)
            rest = tuple(others)
    return (x, *rest) if rest else x


class HybridConcurrent(HybridBlock):
    """Hybrid blocks side by side on the same input, their outputs joined along an axis."""

    def __init__(self, *blocks: HybridBlock, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.add(*blocks)

    def add(self, *blocks: HybridBlock) -> Self:
        """Append branches."""
        for block in blocks:
            self.register_child(block)
        return self

    def forward(self, x: Any) -> Any:
        return function("concat")(*[child(x) for child in self._children.values()], axis=self.axis)


class Identity(HybridBlock):
    """What it is given."""

    def forward(self, x: Any) -> Any:
        return x


class Lambda(Block):
    """A function as a block; a name is that of an op."""

    def __init__(self, function: Callable[..., Any] | str) -> None:
        super().__init__()
        self.function = _named(function)

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def settings(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


class HybridLambda(HybridBlock):
    """A function of operands as a hybrid block; a name is that of an op."""

    def __init__(self, function: Callable[..., Any] | str) -> None:
        super().__init__()
        self.function = _named(function)

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def settings(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def _named(given: Callable[..., Any] | str) -> Callable[..., Any]:
    return function(given) if isinstance(given, str) else given
