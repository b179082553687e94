"""Fused programs for tests, and what they mean: an interpretation in NumPy, one instruction at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_graph.fused import Instruction, Pattern, Program
from windlass_graph.scalar_code import SCALARS, types_of

Arrays = list[npt.NDArray[Any]]

CONSTANTS = {"leaky_relu": (0.1,), "elu": (1.5,), "hard_sigmoid": (0.2, 0.5), "clip": (-1, 2)}
"""What the ops that take constants are given."""

FLOATS = ("float16", "float32", "float64")


def names(dtype: str) -> list[str]:
    """The ops that a dtype has; NumPy refuses to subtract booleans, and has no sign of them."""
    refused = {"cast"} | (
        {"subtract", "negative", "sign", "power", "mod", "floor_divide"} if dtype == "bool" else set()
    )
    return [name for name in SCALARS if name not in refused]


def each_op(dtype: str, chosen: Sequence[str]) -> tuple[Program, list[float]]:
    """One program that answers every chosen op of (condition, x, y), and its constants."""
    values = [value for name in chosen for value in CONSTANTS.get(name, ())]
    inputs, place, instructions = ("bool", dtype, dtype), 3, []
    for name in chosen:
        scalar = SCALARS[name]
        arrays = (0, 1, 2) if scalar.inputs == 3 else (1, 2)[: scalar.inputs]
        at, result = types_of(name, [inputs[i] for i in arrays])
        constants = tuple(range(place, place + scalar.constants))
        place += scalar.constants
        instructions.append(Instruction(name, arrays + constants, at, result))
    begin = 3 + len(values)
    outputs = tuple(range(begin, begin + len(chosen)))
    kinds = tuple("int64" if isinstance(value, int) else "float64" for value in values)
    return Program(inputs, kinds, tuple(instructions), outputs, Pattern(True, (True, True, True))), values


def held(dtype: str) -> str:
    """The dtype in which a value of a program is held while it is computed."""
    return "float32" if dtype == "float16" else dtype


def interpreted(program: Program, ins: Sequence[npt.NDArray[Any]], constants: Sequence[float]) -> Arrays:
    """The program's outputs, not broadcast to the whole shape."""
    values: list[Any] = [x.astype(held(x.dtype.name)) for x in ins]
    values += [np.dtype(kind).type(value) for kind, value in zip(program.constants, constants, strict=True)]
    with np.errstate(all="ignore"):
        for each in program.instructions:
            operands = [np.asarray(values[operand]).astype(held(each.at)) for operand in each.operands]
            if each.name == "where":
                operands[0] = np.asarray(values[each.operands[0]]).astype(bool)
            if each.name == "cast":
                values.append(operands[0].astype(each.dtype).astype(held(each.dtype)))
                continue
            if each.name == "power" and each.at not in FLOATS:  # NumPy has no negative powers of integers
                operands[1] = np.where(operands[1] < 0, 0, operands[1])
            shape = np.broadcast_shapes(*(operand.shape for operand in operands))
            out = np.empty(shape, held(each.dtype))
            if each.dtype == "bool" and each.at == "uint8":
                wide: Any = np.empty(shape, "bool" if SCALARS[each.name].kind in ("compare", "test") else "uint8")
                SCALARS[each.name].numpy(np, operands, wide)
                out = wide.astype(bool)
            else:
                SCALARS[each.name].numpy(np, operands, out)
            values.append(out)
        dtypes = program.output_dtypes
        return [values[output].astype(dtype) for output, dtype in zip(program.outputs, dtypes, strict=True)]


def operands_of(dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Pairs of every special value with every other, then random ones."""
    rng = np.random.default_rng(7)
    if dtype in FLOATS:
        largest = float(np.finfo(dtype).max)
        tiny = float(np.finfo(dtype).smallest_subnormal)
        special: Any = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, np.inf, -np.inf, np.nan, largest, -largest, tiny]
        x, y = (rng.normal(0, 3, 2000).astype(dtype) for _ in range(2))
    else:
        low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        special = sorted({low, high, 0, 1, min(high, 2), min(high, 7), max(low, -1), max(low, -3)})
        x, y = (rng.integers(max(low, -50), min(high, 50) + 1, 2000).astype(dtype) for _ in range(2))
    grid_x, grid_y = np.meshgrid(np.array(special, dtype), np.array(special, dtype))
    return np.concatenate([grid_x.ravel(), x]), np.concatenate([grid_y.ravel(), y])
