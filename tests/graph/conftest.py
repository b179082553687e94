"""The devices on which the engine's tests run."""

from __future__ import annotations

import sys
import warnings

import pytest

from tests.graph import cupy_stand_in
from windlass_graph.device import Device

STAND_IN = Device("gpu", 15)
"""Of a number that no machine has: what the arenas keep for it is never handed to a GPU."""


@pytest.fixture(params=["cpu:1", "stand-in", "gpu:0"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A second device of the processor, CuPy's stand-in, and the first GPU where there is one."""
    if request.param == "cpu:1":
        return Device("cpu", 1)
    if request.param == "stand-in":
        for name, module in cupy_stand_in.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        return STAND_IN
    try:
        with warnings.catch_warnings(action="ignore"):  # of CuPy's import, about libraries that it does not find
            import cupy
        cupy.zeros(1)
    except (ImportError, RuntimeError) as missing:
        pytest.skip(f"needs a GPU: {missing}")
    return Device("gpu", 0)
