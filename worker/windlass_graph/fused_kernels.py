"""Machine code of fused programs, compiled at first use and kept; and how a program is run on arrays.

Invariant: one kernel for a program, a process and a kind of device, however many nodes and shapes use it. The table
belongs to this module and is guarded by its lock, which is held while compiling; beyond `KERNELS_MAX` the kernel that
was asked for longest ago is forgotten, and found again in the cache on disk. Numba and CuPy are imported with the first
kernel.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from windlass_graph.fused import Program, Space
from windlass_proto.errors import UsageError

KERNELS_MAX: Final = 2048
"""Of either kind. A model has tens; one takes about 100 KB."""

_LOCK: Final = threading.Lock()
_LOOPS: Final[OrderedDict[Program, Callable[..., Any]]] = OrderedDict()
_LAUNCHES: Final[OrderedDict[Program, Callable[..., Any]]] = OrderedDict()


def loop(program: Program) -> Callable[..., Any]:
    """The program's kernel for NumPy arrays: see `fused_loops.compiled`."""
    from windlass_graph import fused_loops

    return _kept(_LOOPS, program, fused_loops.compiled)


def launch(program: Program) -> Callable[..., Any]:
    """The program's kernel for CuPy arrays: see `fused_cuda.compiled`."""
    from windlass_graph import fused_cuda

    return _kept(_LAUNCHES, program, fused_cuda.compiled)


def _kept(
    table: OrderedDict[Program, Callable[..., Any]], program: Program, make: Callable[[Program], Callable[..., Any]]
) -> Callable[..., Any]:
    with _LOCK:
        found = table.get(program)
        if found is None:
            found = table[program] = make(program)
            if len(table) > KERNELS_MAX:
                table.popitem(last=False)
        else:
            table.move_to_end(program)
        return found


class FusedKernel:
    """A program on one iteration space: compiled at its first run, cheap to call again.

    Owned by the node or plan that made it; runs may overlap in threads.

    Args:
        program: what is computed.
        space: of the pattern that the program was made for.
    """

    __slots__ = ("_geometry", "_halves", "_loop", "program", "space")

    def __init__(self, program: Program, space: Space) -> None:
        if space.pattern != program.pattern:
            raise UsageError("the arrays broadcast otherwise than the program", program=program.pattern,
                             arrays=space.pattern)  # fmt: skip
        self.program = program
        self.space = space
        steps = [step for both in space.steps for step in both]
        self._geometry: Any = space.size if program.pattern.flat else np.array([*space.sizes, *steps], np.int64)
        self._loop: Callable[..., Any] | None = None
        arrays = (*program.inputs, *program.output_dtypes)
        self._halves = tuple(i for i, dtype in enumerate(arrays) if dtype == "float16")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FusedKernel) and (self.program, self.space) == (other.program, other.space)

    def __hash__(self) -> int:
        return hash((self.program, self.space))

    def run(self, xp: Any, ins: Sequence[Any], outs: Sequence[Any], constants: Sequence[float] = ()) -> None:
        """Write every output in full.

        Args:
            xp: numpy or cupy, whose arrays these are.
            ins: contiguous arrays of the program's dtypes and the space's shapes.
            outs: contiguous arrays of the whole shape; one may be an input of that shape.
            constants: numbers, as many as the program has.
        """
        if self._loop is None:
            self._loop = loop(self.program) if xp is np else launch(self.program)
        if xp is not np:
            self._loop(self.space, ins, outs, constants)
            return
        arrays = [array if array.ndim == 1 else array.reshape(-1) for array in (*ins, *outs)]
        for half in self._halves:
            arrays[half] = arrays[half].view(np.uint16)
        self._loop(self._geometry, *arrays, *constants)
