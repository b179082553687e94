"""What `cupy` is to kernels of ours, with NumPy's arrays: RawKernel compiles CUDA C by a C++ compiler for the host.

Each block and thread is taken one after the other; arguments are checked as CuPy hands them over, by their own types.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.host_device import COMPILER

SHIM = """\
#include <cmath>
#define __global__
#define __device__
namespace { struct Index { unsigned int x; }; Index blockIdx, threadIdx, blockDim, gridDim; }
"""
DRIVER = """
extern "C" void on_host(unsigned int blocks, unsigned int threads, void **arguments)
{{
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            {name}({arguments});
}}
"""
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wno-unused-variable", "-Werror")
SCALARS = {"i64": np.int64, "int": np.int32}


class RawKernel:
    """One kernel, compiled into `folder` at once."""

    def __init__(self, folder: Path, code: str, name: str, options: tuple[str, ...]) -> None:
        assert "--fmad=false" in options
        found = re.search(rf"void {name}\(([^)]*)\)", code)
        assert found is not None
        self._types = [one.strip().rsplit(" ", 1)[0] for one in found[1].replace("*", "* ").split(",")]
        read = ", ".join(
            f"({kind})arguments[{i}]" if kind.endswith("*") else f"*({kind} *)arguments[{i}]"
            for i, kind in enumerate(self._types)
        )
        source = folder / f"{name}{len(list(folder.iterdir()))}.cpp"
        source.write_text(SHIM + code + DRIVER.format(name=name, arguments=read), encoding="utf-8")
        built = source.with_suffix(".so")
        done = subprocess.run(
            [COMPILER, *FLAGS, "-o", str(built), str(source)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        self._function = ctypes.CDLL(str(built)).on_host
        self.real = np.dtype(np.float32 if "typedef float real" in code else np.float64)

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        assert len(arguments) == len(self._types)
        places = []
        for kind, given in zip(self._types, arguments, strict=True):
            if kind.endswith("*"):
                assert given.flags.c_contiguous
                element = kind.removeprefix("const ").rstrip("* ")
                assert given.dtype == {"int": np.int32, "double": np.float64, "real": self.real}[element]
                places.append(given.ctypes.data)
            else:
                assert type(given) is SCALARS[kind]
                places.append(np.asarray(given).ctypes.data)
        # The scalars' memory must outlive the call.
        held = [np.array(given) if np.isscalar(given) else given for given in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(one.ctypes.data for one in held))
        self._function(ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), pointers)


class Module(SimpleNamespace):
    """Told apart by identity, as modules are."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def module(folder: Path) -> Any:
    """NumPy's functions, and RawKernel. It is another module than NumPy, so ops take it for a device's."""
    found = Module(**{name: getattr(np, name) for name in np.__all__})
    found.RawKernel = lambda code, name, options: RawKernel(folder, code, name, options)
    return found
