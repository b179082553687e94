"""`net.summary(x)`: a table of blocks in the order in which they ran, with what they gave and what they hold.

Invariant: the net computes at once, in prediction mode and unrecorded, and is left as it was. A parameter is counted
where it is met first; a block that shows it again counts it as shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from windlass_graph import modes
from windlass_graph.nn.parameter import Parameter
from windlass_graph.nn.structure import flattened, rebuilt

if TYPE_CHECKING:
    from windlass_graph.nn.block import Block

_HEADINGS = ("block", "output shape", "parameters", "shared")


def summarised(block: Block, inputs: tuple[Any, ...]) -> str:
    """The table.

    Raises:
        UsageError: the net is not initialised, or does not take these inputs.
    """
    shapes = _shapes_of(block, inputs)
    counted: set[int] = set()
    rows: list[tuple[str, ...]] = []
    for path, each in block.blocks():
        own, shared = _counts(each._own.values(), counted)
        name = f"{path or 'net'} ({type(each).__name__})"
        rows.append((name, shapes.get(id(each), "-"), f"{own:,}", f"{shared:,}" if shared else ""))
    parameters = list(block.collect_params().values())
    learned = sum(parameter.size for parameter in parameters if parameter.grad_req != "null")
    total = sum(parameter.size for parameter in parameters)
    nbytes = sum(array.memory.nbytes for parameter in parameters for array in parameter.list_data()[:1])
    ends = [
        f"parameters: {total:,}",
        f"learned: {learned:,}, fixed: {total - learned:,}",
        f"bytes: {nbytes:,}",
    ]
    given = f"input: {_shown(inputs[0] if len(inputs) == 1 else inputs)}"
    return "\n".join([given, *_aligned(rows), *ends])


def _shapes_of(block: Block, inputs: tuple[Any, ...]) -> dict[int, str]:
    """Shapes that each block gave, by its identity; a block that ran twice shows the last."""
    from windlass_graph.nn.hybrid_block import HybridBlock

    found: dict[int, str] = {}

    def note(each: Block, _: tuple[Any, ...], output: Any) -> None:
        found[id(each)] = _shown(output)

    below = [each for _, each in block.blocks()]
    attached = [each.register_forward_hook(note) for each in below]
    hybrid = [each for each in below if isinstance(each, HybridBlock) and each.is_hybridized]
    try:
        for each in hybrid:
            object.__setattr__(each, "_active", False)
        with modes.modes(recording=False, training=False):
            block(*inputs)
    finally:
        for each in hybrid:
            object.__setattr__(each, "_active", True)
        for hook in attached:
            hook.detach()
    return found


def _shown(tree: Any) -> str:
    leaves, structure = flattened(tree)
    shapes = [_Shape(tuple(leaf.shape)) for leaf in leaves]
    return repr(rebuilt(structure, shapes))


class _Shape:
    """Prints as a shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def __repr__(self) -> str:
        return "x".join(map(str, self._shape)) or "scalar"


def _counts(parameters: Any, counted: set[int]) -> tuple[int, int]:
    own = shared = 0
    parameter: Parameter
    for parameter in parameters:
        if id(parameter) in counted:
            shared += parameter.size
        else:
            counted.add(id(parameter))
            own += parameter.size
    return own, shared


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [_HEADINGS, *rows]) for i in range(len(_HEADINGS))]
    listed = []
    for row in [_HEADINGS, *rows]:
        cells = [row[i].ljust(widths[i]) if i < 2 else row[i].rjust(widths[i]) for i in range(len(row))]
        listed.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, listed))
    return [listed[0], rule, *listed[1:], rule]
