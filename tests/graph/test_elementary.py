"""Elementary functions for kernels: near the true value everywhere, right at the edges, and vectorised."""

from __future__ import annotations

import functools
import math
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import types

from tests.rules.test_machine_code import in_loops
from windlass_graph.kernels import bits, elementary
from windlass_proto import kernel_cache

F4 = npt.NDArray[np.float32]
F8 = npt.NDArray[np.float64]


def sigmoid(x: F8) -> F8:
    z = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, z, 1) / (1 + z))


def softplus(x: F8) -> F8:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def erf(x: F8) -> F8:
    return np.array([math.erf(each) for each in x])


TRUE: dict[str, Callable[[F8], F8]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "erf": erf,
}
ULPS_MAX = {
    "exp": 1.1, "expm1": 1.8, "log": 1.0, "log1p": 1.6, "tanh": 2.5, "sigmoid": 2.5, "softplus": 2.2, "erf": 2.6,
}  # fmt: skip


@functools.cache
def loop(name: str, dtype: str = "float32") -> tuple[Any, str]:
    """A function in a loop, and the loop's assembly, which can only be had before another kernel is compiled."""
    function, kind = getattr(elementary, f"{name}_{dtype}"), getattr(types, dtype)

    def each(x: Any, out: Any) -> None:
        for i in range(x.size):
            bits.store(out, i, function(bits.load(x, i)))

    kernel: Any = kernel_cache.compiled_uncached(each, [types.void(kind[::1], kind[::1])])
    assembly: str = kernel.inspect_asm(kernel.signatures[0])
    return kernel, assembly.split("func_end0:", maxsplit=1)[0]  # behind it: what Python calls


@functools.cache
def arguments() -> F4:
    """Every magnitude of both signs, and densely where the functions bend."""
    patterns = np.arange(0, 1 << 32, 60_013, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = [np.linspace(a, b, 40_000).astype(np.float32) for a, b in ((-1, 1), (-20, 20), (-110, -80), (80, 90))]
    edges = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    return np.concatenate([patterns, *dense, edges])


def values(name: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.empty_like(x)
    loop(name, x.dtype.name)[0](x, out)
    return out


@pytest.mark.parametrize("name", TRUE)
def test_values_are_within_the_stated_units_in_the_last_place(name: str) -> None:
    x = arguments()
    with np.errstate(all="ignore"):
        true = TRUE[name](x.astype(np.float64))
        rounded = true.astype(np.float32)
    found = values(name, x)
    assert np.array_equal(np.isnan(found), np.isnan(rounded))
    finite = np.isfinite(rounded)
    assert np.array_equal(found[~finite & ~np.isnan(rounded)], rounded[~finite & ~np.isnan(rounded)])
    off = np.abs(found[finite].astype(np.float64) - true[finite]) / np.spacing(np.abs(rounded[finite]))
    worst = int(off.argmax())
    assert off[worst] <= ULPS_MAX[name], f"{name}({x[finite][worst]!r})"


@pytest.mark.parametrize("name", TRUE)
def test_doubles_are_libms(name: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 1001), [0.0, np.inf, -np.inf, np.nan]])
    with np.errstate(all="ignore"):
        assert np.allclose(values(name, x), TRUE[name](x), rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86-64 assembly")
@pytest.mark.parametrize("name", TRUE)
def test_loops_hold_packed_instructions_and_no_call(name: str) -> None:
    assembly = loop(name)[1]
    assert in_loops(assembly, "v?mulps")
    assert in_loops(assembly, "v?addps")
    assert not re.search(r"\bcallq?\b", assembly)
    assert not re.search(r"\bvfn?m(add|sub)", assembly)


def test_a_loop_that_calls_is_seen() -> None:
    assert re.search(r"\bcallq?\b", loop("tanh", "float64")[1])


def test_the_engine_is_imported_without_numba() -> None:
    code = "import sys, windlass_graph; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
