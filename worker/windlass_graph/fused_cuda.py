"""Fused kernels on a GPU: a program written out as CUDA C, which NVRTC compiles.

One thread computes an element after another, a grid apart. All inputs of an element are read before any output of it
is written, so an output may be written over an input. The expressions are those of the CPU's kernels; functions such
as exp are CUDA's own, so results differ in the last places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from windlass_graph.fused import Instruction, Program, Space
from windlass_graph.scalar_code import SCALARS

THREADS: Final = 256
BLOCKS_MAX: Final = 4096
OPTIONS: Final = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""For NVRTC: products and sums are rounded one by one, as on the CPU."""

_TYPES: Final = {"uint8": "u8", "int32": "i32", "int64": "i64", "float32": "f32", "float64": "f64", "bool": "b1",
                 "float16": "f32"}  # fmt: skip
_SPACE: Final = ("outer", "middle", "inner")
_LOOP: Final = """\
    const i64 grid = gridDim.x * (i64)blockDim.x;
    for (i64 to = blockIdx.x * (i64)blockDim.x + threadIdx.x; to < total; to += grid) {
"""

PRELUDE: Final = """\
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;
typedef bool b1;

template <typename T> __device__ inline T select(bool condition, T one, T other) { return condition ? one : other; }
template <typename T> __device__ inline T magnitude(T x) { return fabs(x); }
template <typename T> __device__ inline T power(T a, T b) { return pow(a, b); }
template <typename T> __device__ inline T sigmoid(T x)
{
    const T z = exp(-fabs(x));
    return (x < T(0) ? z : T(1)) / (T(1) + z);
}
template <typename T> __device__ inline T softplus(T x)
{
    return (x < T(0) ? T(0) : x) + log1p(exp(-fabs(x)));
}
template <typename T> __device__ inline T rest(T a, T b)
{
    const T left = fmod(a, b);
    if (left == T(0))
        return copysign(T(0), b);
    return (left < T(0)) != (b < T(0)) ? left + b : left;
}
template <typename T> __device__ inline T floor_divide(T a, T b)
{
    const T rest = fmod(a, b);
    T whole = (a - rest) / b;
    if (b == T(0))
        return a / b;
    if (rest != T(0) && (rest < T(0)) != (b < T(0)))
        whole = whole - T(1);
    if (whole == T(0))
        return copysign(T(0), a / b);
    const T near = floor(whole);
    return whole - near > T(0.5) ? near + T(1) : near;
}
__device__ inline i64 integer_floor_divide(i64 a, i64 b)
{
    if (b == 0)
        return 0;
    if (b == -1)
        return (i64)(0 - (unsigned long long)a);
    const i64 whole = a / b;
    return a % b != 0 && (a % b < 0) != (b < 0) ? whole - 1 : whole;
}
__device__ inline i64 integer_remainder(i64 a, i64 b)
{
    if (b == 0 || b == -1)
        return 0;
    const i64 rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
__device__ inline i64 integer_power(i64 base, i64 exponent)
{
    if (exponent < 0)
        return base == 1 ? 1 : base == -1 ? 1 - 2 * (exponent & 1) : 0;
    unsigned long long factor = base, product = 1;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1)
            product *= factor;
        factor *= factor;
    }
    return (i64)product;
}

union Word { f32 real; u32 bits; };
__device__ inline f32 float_of_half(u16 half)
{
    Word word;
    word.bits = (half & 0x7fffu) << 13;
    word.real = word.real * 5.192296858534828e33f;  // 2^112
    if ((half & 0x7c00u) == 0x7c00u)
        word.bits = (half & 0x7fffu) << 13 | 0x7f800000u;
    word.bits |= (half & 0x8000u) << 16;
    return word.real;
}
__device__ inline u16 half_of_float(f32 value)
{
    Word word;
    word.real = value;
    const u32 sign = word.bits >> 16 & 0x8000u, size = word.bits & 0x7fffffffu;
    if (size > 0x7f800000u)
        return u16(sign | 0x7e00u);
    if (size >= 0x47800000u)
        return u16(sign | 0x7c00u);
    if (size >= 0x38800000u)
        return u16(sign | ((size + 0xfffu + (size >> 13 & 1u)) >> 13) - (112u << 10));
    word.bits = size;
    word.real = word.real + 0.5f;
    return u16(sign | word.bits - 0x3f000000u);
}
"""


def compiled(program: Program) -> Callable[..., Any]:
    """The kernel of a program: `kernel(space, ins, outs, constants)` on CuPy arrays, on the current stream."""
    import cupy

    kernel = cupy.RawKernel(source(program), entry(program), options=OPTIONS)

    def run(space: Space, ins: Sequence[Any], outs: Sequence[Any], constants: Sequence[float]) -> None:
        if not space.size:
            return
        blocks = min(-(-space.size // THREADS), BLOCKS_MAX)
        numbers = [np.dtype(kind).type(number) for kind, number in zip(program.constants, constants, strict=True)]
        kernel((blocks,), (THREADS,), (*geometry(space), *ins, *outs, *numbers))

    return run


def entry(program: Program) -> str:
    """The kernel's name in its source."""
    return f"fused_{program.digest}"


def geometry(space: Space) -> tuple[Any, ...]:
    """The kernel's first arguments."""
    steps = [step for both in space.steps for step in both]
    return tuple(map(np.int64, [space.size] if space.pattern.flat else [*space.sizes, *steps]))


def source(program: Program) -> str:
    """CUDA C of one kernel with its prelude."""
    return PRELUDE + kernel_text(program)


def kernel_text(program: Program) -> str:
    """CUDA C of one kernel."""
    inputs, flat = range(len(program.inputs)), program.pattern.flat
    sizes = ["i64 total"] if flat else [f"i64 {name}" for name in _SPACE]
    sizes += [] if flat else [f"i64 step{i}, i64 stride{i}" for i in inputs]
    arrays = [f"const {_held(dtype)} *x{i}" for i, dtype in enumerate(program.inputs)]
    arrays += [f"{_held(dtype)} *o{i}" for i, dtype in enumerate(program.output_dtypes)]
    arrays += [f"{_TYPES[dtype]} c{i}" for i, dtype in enumerate(program.constants)]
    body = [] if flat else ["const i64 k = to % inner, row = to / inner, j = row % middle, i = row / middle;"]
    body += [f"const {_TYPES[dtype]} v{i} = {_loaded(program, i)};" for i, dtype in enumerate(program.inputs)]
    for number, each in enumerate(program.instructions, program.results_begin):
        body.append(f"const {_TYPES[each.dtype]} v{number} = {_expression(program, each)};")
    body += [f"o{i}[to] = {_stored(program, i)};" for i in range(len(program.outputs))]
    head = f'extern "C" __global__ void {entry(program)}({", ".join([*sizes, *arrays])})\n{{\n'
    total = "" if flat else "    const i64 total = outer * middle * inner;\n"
    return f"{head}{total}{_LOOP}" + "".join(f"        {line}\n" for line in body) + "    }\n}\n"


def _held(dtype: str) -> str:
    """The type of an array's elements."""
    return "u16" if dtype == "float16" else _TYPES[dtype]


def _loaded(program: Program, i: int) -> str:
    moving = program.pattern.moves[i]
    if program.pattern.flat:
        at = "to" if moving else "0"
    else:
        at = f"i * step{i} + j * stride{i}" + (" + k" if moving else "")
    return f"float_of_half(x{i}[{at}])" if program.inputs[i] == "float16" else f"x{i}[{at}]"


def _stored(program: Program, output: int) -> str:
    name = _name(program, program.outputs[output])
    return f"half_of_float({name})" if program.output_dtypes[output] == "float16" else name


def _name(program: Program, value: int) -> str:
    constants = len(program.inputs)
    return f"c{value - constants}" if constants <= value < program.results_begin else f"v{value}"


def _expression(program: Program, each: Instruction) -> str:
    operands = []
    for place, value in enumerate(each.operands):
        wanted = "bool" if each.name == "where" and place == 0 else each.at
        operands.append(_cast(_name(program, value), program.dtypes[value], wanted))
    text = SCALARS[each.name].expression(each.at).format(*operands)
    text = re.sub(r"\bT\(", f"{_TYPES[each.at]}(", text)
    if each.name == "cast":
        text = _cast(text, each.at, each.dtype)
        return f"float_of_half(half_of_float({text}))" if each.dtype == "float16" else text
    return f"{_TYPES[each.dtype]}({text})"


def _cast(name: str, held: str, wanted: str) -> str:
    """A float below zero has no byte in C; NumPy takes the low byte of the integer."""
    inner = f"i32({name})" if wanted == "uint8" and held.startswith("float") else name
    return f"{_TYPES[wanted]}({inner})"
