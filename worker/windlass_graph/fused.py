"""What a fused kernel computes: a straight line of scalar instructions over a broadcast iteration space.

Invariant: immutable and hashable, and free of sizes: a `Program` is the key under which machine code is found, and one
kernel serves every shape that broadcasts alike. Numbers that are attributes (a slope, a bound) are constants given when
it runs, so a changed one compiles nothing.

Values are numbered: the inputs, behind them the constants, behind those the results of the instructions in order.

The iteration space is the output's shape with axes merged wherever all inputs allow it, at most three: outer, middle,
inner. Along the inner one an input either moves by one element or stands still, which is part of the program because it
decides the code; steps along the other two are given when it runs. Where one axis is left the kernel is one plain loop.

Outputs are whole: each has the full shape. An output may be written over an input of that shape: a kernel reads a tile
of all inputs before it writes that tile of any output.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from windlass_graph.scalar_code import DTYPES, SCALARS
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

AXES_MAX: Final = 3
CONSTANTS: Final = ("float64", "int64")
"""Types in which constants are given; an instruction takes them in its own."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One op on earlier values.

    Args:
        name: its entry in `SCALARS`.
        operands: numbers of values.
        at: the dtype in which it takes its operands.
        dtype: that of its result.
    """

    name: str
    operands: tuple[int, ...]
    at: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """How inputs move: `flat` where one axis is left, and for each input whether it moves along the inner axis."""

    flat: bool
    moves: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A fused group.

    Args:
        inputs: dtypes of the arrays it reads.
        constants: types of the numbers it is given, of `CONSTANTS`.
        instructions: in order.
        outputs: numbers of the values it writes, each to an array of its own.
        pattern: how the inputs broadcast.

    Raises:
        UsageError: an instruction names no op, an operand is not computed before it, or a dtype has no kernels.
    """

    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    pattern: Pattern

    def __post_init__(self) -> None:
        wrong = [dtype for dtype in (*self.inputs, *(i.dtype for i in self.instructions)) if dtype not in DTYPES]
        if wrong:
            raise UsageError("no fused kernel computes in this dtype", dtype=wrong[0], next_move=f"Use {DTYPES}.")
        if len(self.pattern.moves) != len(self.inputs) or set(self.constants) - set(CONSTANTS) or not self.outputs:
            raise UsageError(
                "a fused program has a pattern entry for each input, constants of known types and an output",
                inputs=self.inputs, constants=self.constants, outputs=self.outputs, pattern=self.pattern,
            )  # fmt: skip
        for number, each in enumerate(self.instructions, self.results_begin):
            self._check(each, number)
        if not all(0 <= output < len(self.dtypes) for output in self.outputs):
            raise UsageError("an output is no value of the program", outputs=self.outputs, values=len(self.dtypes))

    def _check(self, each: Instruction, number: int) -> None:
        scalar = SCALARS.get(each.name)
        if scalar is None:
            raise UsageError(f"there is no elementwise op {each.name!r}", next_move=did_you_mean(each.name, SCALARS))
        if len(each.operands) != scalar.inputs + scalar.constants:
            raise UsageError(
                f"{each.name} has another number of operands", given=len(each.operands),
                takes=scalar.inputs + scalar.constants,
            )  # fmt: skip
        if not all(0 <= operand < number for operand in each.operands):
            raise UsageError("an operand is not computed before its use", instruction=each, value=number)

    @property
    def results_begin(self) -> int:
        """The number of the first instruction's result."""
        return len(self.inputs) + len(self.constants)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of every value."""
        return (*self.inputs, *self.constants, *(each.dtype for each in self.instructions))

    @property
    def output_dtypes(self) -> tuple[str, ...]:
        return tuple(self.dtypes[output] for output in self.outputs)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ between programs."""
        return hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Space:
    """An iteration space: its pattern, its sizes, and by how many elements each input steps along outer and middle."""

    pattern: Pattern
    sizes: tuple[int, int, int]
    steps: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return math.prod(self.sizes)


def collapse(out_shape: Sequence[int], in_shapes: Sequence[Sequence[int]]) -> Space | None:
    """The iteration space of an output of `out_shape` from contiguous inputs that broadcast to it; None if merging
    leaves more than `AXES_MAX` axes."""
    axes: list[tuple[int, tuple[bool, ...]]] = []  # size, and for each input whether it moves along it
    for depth, size in enumerate(out_shape):
        moves = tuple(_moves(shape, depth - len(out_shape)) for shape in in_shapes)
        if size == 1:
            continue
        if axes and axes[-1][1] == moves:
            axes[-1] = (axes[-1][0] * size, moves)
        else:
            axes.append((size, moves))
    if len(axes) > AXES_MAX:
        return None
    still = (False,) * len(in_shapes)
    flat = len(axes) <= 1
    padded = [(1, still)] * (AXES_MAX - len(axes)) + axes
    sizes = (padded[0][0], padded[1][0], padded[2][0])
    steps = []
    for one in range(len(in_shapes)):
        outer, middle, inner = (moves[one] for _, moves in padded)
        step_middle = sizes[2] if inner else 1
        step_outer = step_middle * (sizes[1] if middle else 1)
        steps.append((step_outer if outer else 0, step_middle if middle else 0))
    return Space(Pattern(flat, padded[2][1]), sizes, tuple(steps))


def _moves(shape: Sequence[int], axis: int) -> bool:
    """Whether an input moves along an axis, counted from the last: it has it, and longer than one."""
    return -axis <= len(shape) and shape[axis] != 1
