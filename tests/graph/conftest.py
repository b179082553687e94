"""The devices on which the engine's tests run."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import pytest

from tests.graph import cupy_stand_in
from tests.host_device import COMPILER
from windlass_graph.device import Device

STAND_IN = Device("gpu", 15)
"""Of a number that no machine has: what the arenas keep for it is never handed to a GPU."""


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    """The modules of CuPy's stand-in; one set, as kernels are kept by the module that compiled them."""
    return cupy_stand_in.modules(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(
    params=["cpu:1", pytest.param("stand-in", marks=pytest.mark.needs_debian("g++", COMPILER)), "gpu:0"],
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, stand_in: dict[str, ModuleType]) -> Device:
    """A second device of the processor, CuPy's stand-in, and the first GPU where there is one."""
    if request.param == "cpu:1":
        return Device("cpu", 1)
    if request.param == "stand-in":
        for name, module in stand_in.items():
            monkeypatch.setitem(sys.modules, name, module)
        return STAND_IN
    try:
        with warnings.catch_warnings(action="ignore"):  # of CuPy's import, about libraries that it does not find
            import cupy
        cupy.zeros(1)
    except (ImportError, RuntimeError) as missing:
        pytest.skip(f"needs a GPU: {missing}")
    return Device("gpu", 0)
