"""The CUDA twin of an update rule, written out from the Python function that Numba compiles.

A rule has one source, its kernel. `cuda_loops` reads its loop and says the same in CUDA C, operation by operation, so
a twin cannot drift from its rule, and a rule that keeps to the form has its twin for nothing. A kernel of another form
has none, and `update_source` says so. Programs that take norms are in `cuda_norms`.

One launch works on a list of runs (weights, slots, gradients, and the step's numbers, each run with its own), so a
block list costs one launch however many tensors it has. A run is cut into tiles of `TILE_ELEMENTS`; a thread block
takes one tile and finds its run by halving. Where a run has several gradients they are summed in the order given, as
`windlass_rules.reduce` does it, without a pass of its own.

Invariant: with `OPTIONS` every operation is IEEE and rounded once, nothing fused, reordered or flushed to zero, so the
bits are those of the Numba twin on any CPU (NaN for NaN; their payloads differ). `min` and `max` are Python's: the
first argument stays unless the second is beyond it.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from windlass_rules.cuda_loops import ElementLoop
from windlass_rules.rule import Variant

TILE_ELEMENTS: Final = 2048
THREADS: Final = 256
OPTIONS: Final = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""For NVRTC. None of them may be left out: fused products would change the last bit."""

_REALS: Final = {"float32": "float", "float64": "double"}
_PATTERNS: Final = {"float32": ("u32", "0x7f800000u"), "float64": ("u64", "0x7ff0000000000000ull")}
_SOURCE_FIELDS: Final = (("at", "u8"), ("weight", "real"))

_PRELUDE: Final = """\
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef {real} real;

struct Source {{ const real *at; real weight; }};

struct Run {{
    u64 tile;  // tiles of the runs before this one
    u64 size;
{fields}}};

static_assert(sizeof(Source) == {source_bytes} && sizeof(Run) == {run_bytes}, "the host packs these otherwise");

static __device__ inline real lesser(real a, real b) {{ return b < a ? b : a; }}
static __device__ inline real greater(real a, real b) {{ return b > a ? b : a; }}

// The gradient of element i: as it came, or the sum of several in their order.
static __device__ inline real gradient(const Source *sources, u32 count, u64 i)
{{
    if (count == 1)
        return sources[0].at[i];
    real total = sources[0].weight * sources[0].at[i];
    for (u32 s = 1; s < count; ++s)
        total = total + sources[s].weight * sources[s].at[i];
    return total;
}}

// The run that a tile belongs to: the last that begins with it or before it.
static __device__ inline const Run &run_of(const Run *runs, u32 count, u64 tile)
{{
    u32 low = 0;
    for (u32 high = count; high - low > 1;) {{
        const u32 middle = low + (high - low) / 2;
        if (runs[middle].tile <= tile)
            low = middle;
        else
            high = middle;
    }}
    return runs[low];
}}
"""

_KERNEL: Final = """
extern "C" __global__ void {entry}(const Run *runs, u32 count, const Source *sources)
{{
    const Run &run = run_of(runs, count, blockIdx.x);
    const u64 tile_begin = (blockIdx.x - run.tile) * {tile};
    const u64 tile_end = tile_begin + {tile} < run.size ? tile_begin + {tile} : run.size;
{names}    for (u64 i = tile_begin + threadIdx.x; i < tile_end; i += {threads}) {{
{body}    }}
}}
"""


Field = tuple[str, str, str]
"""Of a run's record: its name, its type in C, and in NumPy, where "real" is the program's own."""


@dataclass(frozen=True, slots=True)
class CudaSource:
    """A program of one kernel, `entry(const Run *runs, u32 count, const Source *sources)`.

    `run` and `source` are the NumPy types of the records that it reads; a thread block takes `tile` elements of a run.
    """

    entry: str
    text: str
    run: np.dtype[Any]
    source: np.dtype[Any]
    tile: int = TILE_ELEMENTS

    @property
    def digest(self) -> str:
        """Of the text, so that a record of a test can say which text was tested."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@functools.cache
def update_source(variant: Variant, dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `variant.kernel`, for runs with `step_fields`.

    Raises:
        UsageError: the kernel has a form that has no twin.
    """
    loop = ElementLoop(variant.kernel)
    names = ["real *__restrict__ w = run.w;", *loop.names, "const real gscale = run.gscale;"]
    body = ["const real g_i = gradient(sources + run.first, run.sources, i);", *loop.body]
    return program(f"update_{identifier(variant)}_{dtype.name}", dtype, step_fields(variant), names, body)


def step_fields(variant: Variant) -> list[Field]:
    """Of a run that takes a step: `w`, `slot0` ..., `first`, `sources`, `gscale`, `number0` ...

    `number0` ... are `RuleKernels.scalars`; sources [first, first + sources) are the run's gradients.
    """
    kernels = [variant.kernel] if variant.measure is None else [variant.kernel, variant.measure]
    numbers = max(ElementLoop(kernel).numbers for kernel in kernels)
    return [
        ("w", "real *", "u8"),
        *((f"slot{k}", "real *", "u8") for k in range(len(variant.slots))),
        ("first", "u32", "u4"),
        ("sources", "u32", "u4"),
        ("gscale", "real", "real"),
        *((f"number{k}", "real", "real") for k in range(numbers)),
    ]


def identifier(variant: Variant) -> str:
    """The variant's name in C."""
    return "".join(letter if letter.isalnum() else "_" for letter in variant.name)


@functools.cache
def fill_source(dtype: np.dtype[Any]) -> CudaSource:
    """Every element of a run becomes `value`; runs have fields `w` and `value`."""
    fields = [("w", "real *", "u8"), ("value", "real", "real")]
    return program(f"fill_{dtype.name}", dtype, fields, [], ["run.w[i] = run.value;"])


@functools.cache
def finite_source(dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `reduce.all_finite`: `*found` becomes 1 where an element of the run at `at` is infinite or a NaN."""
    pattern, exponent = _PATTERNS[dtype.name]
    fields = [("at", f"const {pattern} *", "u8"), ("found", "u32 *", "u8")]
    body = [f"if ((run.at[i] & {exponent}) == {exponent})", "    *run.found = 1;"]
    return program(f"find_not_finite_{dtype.name}", dtype, fields, [], body)


def program(
    entry: str, dtype: np.dtype[Any], fields: list[Field], names: list[str], body: list[str], functions: str = ""
) -> CudaSource:
    """`body` for each element i of each run, after `names`; it may call `functions`."""
    kernel = _KERNEL.format(
        entry=entry,
        tile=TILE_ELEMENTS,
        threads=THREADS,
        names="".join(f"    {line}\n" for line in names),
        body="".join(f"        {line}\n" for line in body),
    )
    return with_prelude(entry, dtype, fields, f"\n{functions}{kernel}" if functions else kernel)


def with_prelude(
    entry: str, dtype: np.dtype[Any], fields: list[Field], kernel: str, tile: int = TILE_ELEMENTS
) -> CudaSource:
    """The program of `kernel`, whose runs have `fields` after their tile and their size."""

    def record(kinds: Any) -> np.dtype[Any]:
        return np.dtype([(name, dtype if kind == "real" else kind) for name, kind in kinds], align=True)

    run = record([("tile", "u8"), ("size", "u8"), *((name, kind) for name, _, kind in fields)])
    source = record(_SOURCE_FIELDS)
    prelude = _PRELUDE.format(
        real=_REALS[dtype.name],
        fields="".join(f"    {c_type}{'' if c_type.endswith('*') else ' '}{name};\n" for name, c_type, _ in fields),
        source_bytes=source.itemsize,
        run_bytes=run.itemsize,
    )
    return CudaSource(entry, prelude + kernel, run, source, tile)
