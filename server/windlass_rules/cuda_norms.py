"""The CUDA twins of what takes norms: sums of squares of gradients, and the kernels with which LAMB and LARS measure.

    of each CHUNK of a segment LANES float64 partial sums, by a thread for each lane; then each lane's sum over the
    chunks, one after the other, by a thread for each lane again

So no thread waits for another, and the order is that of `norms`: the same bits as on any CPU. What is left, LANES
numbers for each sum of a segment, is folded on the host.

Invariant: a thread visits the elements of its lane of its chunk and no others, so a kernel that writes slots while it
measures writes each element once.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from windlass_proto.errors import InvariantError
from windlass_rules.cuda_loops import ElementLoop
from windlass_rules.cuda_source import (
    THREADS,
    CudaSource,
    Field,
    identifier,
    program,
    step_fields,
    with_prelude,
)
from windlass_rules.norms import CHUNK, LANES
from windlass_rules.rule import Variant

_TILE: Final = THREADS // LANES * CHUNK  # so that every thread has a lane
_LANES_FIELD: Final[Field] = ("lanes", "double *", "u8")

_KERNEL: Final = """
extern "C" __global__ void {entry}(const Run *runs, u32 count, const Source *sources)
{{
    const Run &run = run_of(runs, count, blockIdx.x);
    const u64 chunk_begin = (blockIdx.x - run.tile) * {tile} + threadIdx.x / {lanes} * {chunk};
    const u32 lane_of = threadIdx.x % {lanes};
    if (chunk_begin >= run.size)
        return;
{names}    double of_squares[{sums}][{chunk} / {lanes}];
    for (u32 k = 0; k < {chunk} / {lanes}; ++k) {{
        const u64 i = chunk_begin + lane_of + k * {lanes};
        double squared[{sums}] = {{}};
        if (i < run.size) {{
{body}        }}
        for (u32 s = 0; s < {sums}; ++s)
            of_squares[s][k] = squared[s] * squared[s];
    }}
    for (u32 s = 0; s < {sums}; ++s) {{
        for (u32 half = {chunk} / {lanes} / 2; half > 0; half /= 2)
            for (u32 k = 0; k < half; ++k)
                of_squares[s][k] = of_squares[s][k] + of_squares[s][half + k];
        run.lanes[(chunk_begin / {chunk} * {sums} + s) * {lanes} + lane_of] = of_squares[s][0];
    }}
}}
"""


def lanes_of(elements: int, sums: int) -> int:
    """How many float64 a run of so many elements fills before they are added up."""
    return -(-elements // CHUNK) * sums * LANES


@functools.cache
def squares_source(dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `norms.squares`, up to the sum over chunks.

    Runs have fields `first`, `sources`, `gscale` and `lanes`, where `lanes_of` numbers are written.
    """
    fields: list[Field] = [("first", "u32", "u4"), ("sources", "u32", "u4"), ("gscale", "real", "real"), _LANES_FIELD]
    return _measuring(f"squares_{dtype.name}", dtype, fields, [], [], ["(gscale * g_i)"])


@functools.cache
def measure_source(variant: Variant, dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `variant.measure`, up to the sums over chunks; runs have `step_fields`, and `lanes`.

    Raises:
        UsageError: the kernel has a form that has no twin.
    """
    if variant.measure is None:
        raise InvariantError("a rule takes no norms of its own", variant=variant.name)
    loop = ElementLoop(variant.measure)
    names = ["real *__restrict__ w = run.w;", *loop.names]
    fields = [*step_fields(variant), _LANES_FIELD]
    return _measuring(f"measure_{identifier(variant)}_{dtype.name}", dtype, fields, names, loop.body, loop.squares)


@functools.cache
def lane_sums_source() -> CudaSource:
    """Lanes of a segment, one chunk after the other: element i of a run is the sum of its lanes i, i + size, ...

    Runs have fields `lanes`, `chunks` and `total`.
    """
    fields: list[Field] = [("lanes", "const double *", "u8"), ("chunks", "u64", "u8"), ("total", "double *", "u8")]
    body = [
        "double total = 0.0;",
        "for (u64 chunk = 0; chunk < run.chunks; ++chunk)",
        "    total = total + run.lanes[chunk * run.size + i];",
        "run.total[i] = total;",
    ]
    return program("lane_sums", np.dtype(np.float64), fields, [], body)


def _measuring(
    entry: str, dtype: np.dtype[Any], fields: list[Field], names: list[str], body: list[str], squares: list[str]
) -> CudaSource:
    names = [*names, "const real gscale = run.gscale;"]
    body = ["const real g_i = gradient(sources + run.first, run.sources, i);", *body]
    body += [f"squared[{s}] = (double){value};" for s, value in enumerate(squares)]
    kernel = _KERNEL.format(
        entry=entry,
        tile=_TILE,
        chunk=CHUNK,
        lanes=LANES,
        sums=len(squares),
        names="".join(f"    {line}\n" for line in names),
        body="".join(f"            {line}\n" for line in body),
    )
    return with_prelude(entry, dtype, fields, kernel, _TILE)
