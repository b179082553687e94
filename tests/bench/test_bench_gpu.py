"""The case of kernels on a GPU: it measures on whatever device it is given, and says so where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.case import SMOKE
from benchmarks.cases import gpu
from tests.host_device import COMPILER, HostDevice
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import SGD, Adam
from windlass_rules.device import Device


@pytest.mark.needs_debian("g++", COMPILER)
def test_rules_are_measured_against_the_floor_of_their_device(tmp_path: Path) -> None:
    device = HostDevice(tmp_path)
    rows = list(gpu.gpu_kernels(SMOKE, lambda _: device, [("sgd", SGD(lr=0.1)), ("adam", Adam())]))
    ours = {row.contender: row for row in rows if row.contender.startswith("windlass")}
    assert set(ours) == {"windlass sgd", "windlass adam"}
    for row in ours.values():
        assert row.figures["gb_per_s"] > 0
        assert row.ratios["same streams"] > 0
    (torch,) = (row for row in rows if row.contender.startswith("torch"))
    assert torch.not_measured in ("PyTorch is not installed beside windlass", "PyTorch sees no CUDA device", None)


def test_without_a_device_nothing_is_measured_and_the_reason_is_given() -> None:
    def none(name: str) -> Device:
        raise UsageError("there is no such device", device=name)

    (row,) = gpu.gpu_kernels(SMOKE, none)
    assert row.not_measured == "no device: there is no such device"
