"""Fused kernels on the CPU: a program written out as a Python function, which Numba compiles.

The function's loop works in tiles of `TILE` elements. What a tile computes goes to an array on the stack first and to
the output after the tile: the compiler then knows that no store changes what is loaded, without comparing addresses as
the kernel starts, so loops with many arrays are vectorised, and writing an output over an input is as fast as writing
it elsewhere (twice as fast as with those comparisons, which fail there). The detour costs 1 to 3 percent.

This module imports Numba: import it where a kernel is compiled. `_FILES` are the sources that machine code depends on;
their digest is in the kernel's name, because Numba's cache looks at this file alone.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
import types as python_types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import types

from windlass_graph import scalar_code
from windlass_graph.fused import Instruction, Program
from windlass_graph.kernels import bits, division, elementary, halves, tiles
from windlass_proto import kernel_cache

TILE: Final = 512

_TYPES: Final = {
    "uint8": types.uint8, "int32": types.int32, "int64": types.int64, "float32": types.float32,
    "float64": types.float64, "bool": types.boolean, "float16": types.uint16,
}  # fmt: skip
_CASTS: Final = {"uint8": "u8", "int32": "i32", "int64": "i64", "float32": "f32", "float64": "f64", "bool": "b1",
                 "float16": "f32"}  # fmt: skip

_TYPED: Final = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "softplus", "erf", "rest", "floor_divide")
"""Functions with one form for each float type, of that name and the type's."""

_NAMES: Final[dict[str, Any]] = {
    "u8": types.uint8, "i32": types.int32, "i64": types.int64, "f32": types.float32, "f64": types.float64, "b1": bool,
    "range": range, "min": min,
    **{name: getattr(bits, name) for name in ("select", "load", "store", "floor", "ceil", "trunc", "rint", "sqrt",
                                              "magnitude")},
    **{name: getattr(tiles, name) for name in ("tile", "keep", "kept")},
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh",
                                              "hypot")},
    **{name: getattr(division, name) for name in ("power", "integer_power", "integer_remainder",
                                                  "integer_floor_divide")},
    **{f"{name}_{dtype}": getattr(division if name in ("rest", "floor_divide") else elementary, f"{name}_{dtype}")
       for name in _TYPED for dtype in ("float32", "float64")},
    "float_of_half": halves.float_of_half, "half_of_float": halves.half_of_float, "TILE": TILE,
}  # fmt: skip

_FILES: Final = tuple(
    Path(module.__file__) for module in (scalar_code, bits, division, elementary, halves, tiles) if module.__file__
)


def compiled(program: Program) -> Callable[..., Any]:
    """The kernel of a program: `kernel(geometry, *inputs, *outputs, *constants)`.

    `geometry` is the number of elements where the pattern is flat, else an int64 array of the three sizes and two steps
    for each input. Arrays are 1-D and contiguous; float16 comes as uint16.
    """
    variant = f"{program.digest}_{_sources_digest()}"
    return kernel_cache.compiled(function(program), [signature(program)], np.dtype(program.output_dtypes[0]), variant)


def function(program: Program) -> Callable[..., Any]:
    """What `source` says, for Numba: it is said to stand in this file, because Numba's cache asks where it stands."""
    module = compile(ast.parse(source(program)), __file__, "exec")
    (code,) = (each for each in module.co_consts if isinstance(each, python_types.CodeType))
    return python_types.FunctionType(code, {**_NAMES, "__name__": __name__})


def signature(program: Program) -> Any:
    """Numba's type of the kernel."""
    geometry = types.intp if program.pattern.flat else types.Array(types.int64, 1, "C", readonly=True)
    inputs = [types.Array(_TYPES[dtype], 1, "C", readonly=True) for dtype in program.inputs]
    outputs = [types.Array(_TYPES[dtype], 1, "C") for dtype in program.output_dtypes]
    nothing: Any = types.void
    return nothing(geometry, *inputs, *outputs, *(_TYPES[dtype] for dtype in program.constants))


def source(program: Program) -> str:
    """The kernel as Python, for Numba alone: what it calls are names of `_NAMES`."""
    moving = program.pattern.moves
    inputs, outputs = range(len(program.inputs)), range(len(program.outputs))
    arrays = [f"x{i}" for i in inputs] + [f"o{i}" for i in outputs] + [f"c{i}" for i in range(len(program.constants))]
    flat = program.pattern.flat
    row = [f"tile{i} = tile(o{i}, {TILE})" for i in outputs] if flat else []
    loads = [_loaded(dtype, f"load(x{i}, at{i}{' + first + k' * moving[i]})") for i, dtype in enumerate(program.inputs)]
    row += [f"v{i} = {loads[i]}" for i in inputs if not moving[i]]
    row += ["for first in range(0, inner, TILE):", "    size = min(TILE, inner - first)", "    for k in range(size):"]
    row += [f"        v{i} = {loads[i]}" for i in inputs if moving[i]]
    row += [f"        {line}" for line in _computed(program)]
    row += [f"        keep(tile{i}, k, {_stored(program, i)})" for i in outputs]
    for i in outputs:
        row += ["    for k in range(size):", f"        store(o{i}, to + first + k, kept(tile{i}, k))"]
    if flat:
        body = ["to = 0", *(f"at{i} = 0" for i in inputs), *row]
        return _function(f"fused(inner, {', '.join(arrays)})", body)
    body = ["outer = geometry[0]", "middle = geometry[1]", "inner = geometry[2]"]
    body += [f"step{i} = geometry[{3 + 2 * i}]" for i in inputs] + [
        f"stride{i} = geometry[{4 + 2 * i}]" for i in inputs
    ]
    body += [f"tile{i} = tile(o{i}, {TILE})" for i in outputs]
    body += ["for i in range(outer):", "    for j in range(middle):", "        to = (i * middle + j) * inner"]
    body += [f"        at{i} = i * step{i} + j * stride{i}" for i in inputs]
    return _function(f"fused(geometry, {', '.join(arrays)})", [*body, *(f"        {line}" for line in row)])


def _function(head: str, body: list[str]) -> str:
    return "\n".join([f"def {head}:", *(f"    {line}" for line in body), ""])


def _loaded(dtype: str, load: str) -> str:
    return f"float_of_half({load})" if dtype == "float16" else load


def _stored(program: Program, output: int) -> str:
    value, dtype = program.outputs[output], program.output_dtypes[output]
    name = _name(program, value)
    return f"half_of_float({name})" if dtype == "float16" else name


def _name(program: Program, value: int) -> str:
    constants = len(program.inputs)
    return f"c{value - constants}" if constants <= value < program.results_begin else f"v{value}"


def _computed(program: Program) -> list[str]:
    """One line for each instruction."""
    lines = []
    for number, each in enumerate(program.instructions, program.results_begin):
        operands = [_operand(program, each, place) for place in range(len(each.operands))]
        lines.append(f"v{number} = {_expression(each, operands)}")
    return lines


def _operand(program: Program, each: Instruction, place: int) -> str:
    """An operand in the type in which the instruction takes it."""
    value = each.operands[place]
    name, held = _name(program, value), program.dtypes[value]
    wanted = "bool" if each.name == "where" and place == 0 else each.at
    return name if _CASTS[held] == _CASTS[wanted] else _cast(name, held, wanted)


def _cast(name: str, held: str, wanted: str) -> str:
    # A float below zero has no byte in LLVM; NumPy takes the low byte of the integer.
    between = "i32" if wanted == "uint8" and held.startswith("float") else ""
    return f"{_CASTS[wanted]}({between}({name}))" if between else f"{_CASTS[wanted]}({name})"


def _expression(each: Instruction, operands: list[str]) -> str:
    dtype = "float32" if each.at == "float16" else each.at
    text = scalar_code.SCALARS[each.name].expression(each.at).format(*operands)
    text = re.sub(r"\bT\(", f"{_CASTS[each.at]}(", text)
    text = re.sub(rf"\b({'|'.join(_TYPED)})\(", rf"\1_{dtype}(", text)
    if each.name == "cast":
        text = _cast(text, each.at, each.dtype)
        return f"float_of_half(half_of_float({text}))" if each.dtype == "float16" else text
    return f"{_CASTS[each.dtype]}({text})"


def _sources_digest() -> str:
    digest = hashlib.blake2b(digest_size=4)
    for path in _FILES:
        digest.update(path.read_bytes())
    return digest.hexdigest()
