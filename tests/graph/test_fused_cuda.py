"""The CUDA C of fused programs gives what their loops on the CPU give: on the host's compiler, and NVRTC takes it."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.graph.fused_cases import FLOATS, each_op, interpreted, names, operands_of
from tests.graph.test_fused_kernels import CLOSE, SHAPES, chain, space_of
from tests.host_device import COMPILER
from tests.rules import nvrtc
from windlass_graph import fused_cuda
from windlass_graph.fused import Program, Space
from windlass_graph.fused_kernels import FusedKernel
from windlass_graph.scalar_code import DTYPES

SHIM = """\
#include <cmath>
#define __global__
#define __device__
struct Index { unsigned int x; };
static Index blockIdx, threadIdx, blockDim, gridDim;
extern "C" void be(unsigned int block, unsigned int thread, unsigned int threads, unsigned int blocks)
{
    blockIdx.x = block; threadIdx.x = thread; blockDim.x = threads; gridDim.x = blocks;
}
namespace program {
using namespace std;
"""
BLOCKS, THREADS = 2, 3
# -fwrapv: integers wrap around on a device; -ffp-contract=off: what --fmad=false is to NVRTC.
FLAGS = ("-std=c++17", "-O1", "-fwrapv", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unused-value")
ELEMENTS = {"float64": ctypes.c_double, "int64": ctypes.c_longlong}


def op_programs() -> dict[str, tuple[Program, list[float]]]:
    return {dtype: each_op(dtype, names(dtype)) for dtype in DTYPES}


def chains() -> list[tuple[Program, tuple[tuple[int, ...], ...]]]:
    pairs = [shapes[:2] for shapes in SHAPES]
    return [(chain(space_of(*pair).pattern), pair) for pair in pairs]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """All programs of this module, compiled for the host at once."""
    programs = dict.fromkeys([each for each, _ in (*op_programs().values(), *chains())])
    source: Path = tmp_path_factory.mktemp("fused") / "programs.cpp"
    text = SHIM + fused_cuda.PRELUDE + "".join(map(fused_cuda.kernel_text, programs)) + "}\n"
    source.write_text(text, encoding="utf-8")
    built = source.with_suffix(".so")
    done = subprocess.run(
        [COMPILER, *FLAGS, "-o", str(built), str(source)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(built))


def on_host(
    library: ctypes.CDLL, program: Program, space: Space, ins: Any, constants: Any, shape: tuple[int, ...]
) -> list[npt.NDArray[Any]]:
    """Every thread's part, one after another."""
    outs = [np.full(shape, 7, dtype) for dtype in program.output_dtypes]
    held = [np.ascontiguousarray(x) for x in ins]
    geometry = [ctypes.c_longlong(int(number)) for number in fused_cuda.geometry(space)]
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (*held, *outs)]
    numbers = [ELEMENTS[kind](value) for kind, value in zip(program.constants, constants, strict=True)]
    kernel = getattr(library, fused_cuda.entry(program))
    for block in range(BLOCKS):
        for thread in range(THREADS):
            library.be(block, thread, THREADS, BLOCKS)
            kernel(*geometry, *addresses, *numbers)
    return outs


@pytest.mark.needs_debian("g++", COMPILER)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_is_numpys_in_cuda_c(dtype: str, library: ctypes.CDLL) -> None:
    program, constants = op_programs()[dtype]
    x, y = operands_of(dtype)
    ins = [y > 0, x, y]
    found = on_host(library, program, space_of(x.shape, x.shape, x.shape), ins, constants, x.shape)
    for name, one, meant in zip(names(dtype), found, interpreted(program, ins, constants), strict=True):
        where: Any = y >= 0 if name == "power" and "int" in dtype else slice(None)
        if dtype in FLOATS or one.dtype.name in FLOATS:
            rtol, atol = CLOSE.get(one.dtype.name, (0, 0))
            np.testing.assert_allclose(one[where], meant[where], rtol=rtol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(one[where], meant[where], err_msg=name)


@pytest.mark.needs_debian("g++", COMPILER)
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_cuda_c_broadcasts_as_the_loops_do(number: int, library: ctypes.CDLL) -> None:
    program, shapes = chains()[number]
    rng = np.random.default_rng(5)
    ins = [np.asarray(rng.normal(size=shape), np.float32) for shape in shapes]
    whole = np.broadcast_shapes(*shapes)
    out = np.empty(whole, np.float32)
    FusedKernel(program, space_of(*shapes)).run(np, ins, [out], [0.5])
    (found,) = on_host(library, program, space_of(*shapes), ins, [0.5], whole)
    np.testing.assert_allclose(found, out, rtol=1e-6)


def test_nvrtc_takes_every_op_in_every_dtype() -> None:
    if nvrtc.library() is None:
        pytest.skip("needs NVRTC: `pip install nvidia-cuda-nvrtc-cu12`, which `make test-all` does")
    architecture = min(each for each in nvrtc.architectures() if each >= 70)
    for program, _ in op_programs().values():
        assert fused_cuda.entry(program) in nvrtc.compiled(fused_cuda.source(program), architecture)
