"""CuPy's device over a stand-in for CuPy: the results of host memory, tables of lists that grow, errors in words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass_rules
from tests.host_device import COMPILER
from tests.rules import host_cuda
from tests.rules.test_cuda_memory import Held, script, spec_of
from windlass_proto.errors import InvariantError, UnavailableError, UsageError
from windlass_proto.rule_specs import Adam
from windlass_rules import device as devices
from windlass_rules.cuda_source import CudaSource, fill_source
from windlass_rules.cupy_device import CupyDevice, open_device
from windlass_server.device_memory import ParameterDevice

pytestmark = pytest.mark.needs_debian("g++", COMPILER)
RULE = Adam(lr=0.1)
FLOAT32 = np.dtype(np.float32)


@pytest.fixture(scope="module")
def cupy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return host_cuda.module(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def device(cupy: Any) -> CupyDevice:
    return CupyDevice(cupy, 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_group_in_its_memory_is_one_in_host_memory(device: CupyDevice, seed: int) -> None:
    parameters = ParameterDevice(device)
    memory = parameters.memory_for(spec_of(RULE, "float32"), windlass_rules.build(RULE, FLOAT32))
    host, there = Held(RULE, "float32"), Held(RULE, "float32", memory)
    for held in (host, there):
        script(held, seed, steps=8)
    assert there.said == host.said
    assert there.state() == host.state()
    assert parameters.gradients.bytes_lent == 0


def test_lists_longer_than_the_table_make_it_grow_and_none_overwrites_what_is_under_way(device: CupyDevice) -> None:
    program, lane = fill_source(FLOAT32), device.lane()
    vector = devices.empty(device, 16_000, FLOAT32)
    values = np.arange(16_000, dtype=np.float32)
    for count in (1, 500, 500, 3000, 1, 16_000):  # records of 32 bytes; a table begins with 256 KiB
        runs = [(1, vector.address + 4 * i, values[i]) for i in range(count)]
        lane.launch(devices.launch_of(program, runs, []))
    found = np.zeros_like(values)
    lane.download(vector.address, found)
    lane.finish()
    assert np.array_equal(found, values)


def test_memory_that_there_is_not_is_said_in_words(tmp_path: Path) -> None:
    small = CupyDevice(host_cuda.module(tmp_path, memory_bytes=1 << 20), 0)
    with pytest.raises(UnavailableError, match=r"not so much memory left .*device=gpu:0.*bytes_asked=2097152"):
        small.allocate(2 << 20)


def test_a_kernel_that_does_not_compile_is_our_own_bug(device: CupyDevice) -> None:
    with pytest.raises(InvariantError, match=r"did not compile .*kernel=refused"):
        device.prepare(CudaSource("refused", "", FLOAT32, FLOAT32))


def test_devices_are_opened_by_their_number(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert (open_device("gpu").name, open_device("gpu:0").model) == ("gpu:0", "A stand-in")
    with pytest.raises(UsageError, match=r"no such device .*device=gpu:1, devices=1"):
        open_device("gpu:1")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UsageError, match=r"needs CuPy .*pip install 'windlass\[gpu\]'"):
        open_device("gpu:0")


def test_memory_is_given_back_with_its_last_reference(device: CupyDevice) -> None:
    held = device.allocate(64)
    memory = held._memory
    before = sys.getrefcount(memory)
    vector = devices.DeviceVector(held, held.address, 16, FLOAT32)[2:5]
    del held
    assert sys.getrefcount(memory) == before
    del vector
    assert sys.getrefcount(memory) == before - 1
