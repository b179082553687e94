"""The CUDA twins of rules on rows: the bits of the compiled ones, for rows that are named and for no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.rules.conftest import ROW_SPECS, SPECS
from tests.rules.test_cuda_kernels import same
from tests.rules.test_row_rules import Rows
from windlass_proto.errors import UsageError
from windlass_proto.ids import NONE
from windlass_proto.rule_specs import RuleSpec
from windlass_rules import device as devices
from windlass_rules.cuda_rows import step_source
from windlass_rules.device import Device, DeviceVector
from windlass_rules.registry import RULE_MODULES
from windlass_rules.rows import RowRule, build_rows
from windlass_rules.rule import Per, Slot, Variant

Vector = npt.NDArray[Any]


def by_variant() -> list[RuleSpec]:
    """Every rule that steps rows of tables, each kernel once, the one with most terms."""
    found = {}
    for spec in (*SPECS, *ROW_SPECS):
        variant = RULE_MODULES[type(spec)].variant(spec)
        if all(slot.per is not Per.WORKER for slot in variant.slots):
            found[variant.name] = spec
    return list(found.values())


class RowsThere:
    """The rows of `Rows` on a device."""

    def __init__(self, device: Device, rows: Rows) -> None:
        self.device = device
        self.rows = rows
        self.there = [self._up(array) for array in (rows.w, *rows.slots)]

    def _up(self, array: Vector) -> DeviceVector:
        vector = devices.empty(self.device, array.size, array.dtype)
        lane = self.device.lane()
        lane.upload(vector.address, array)
        lane.finish()
        return vector

    def step(self, rule: RowRule, scalars: Vector, gscale: float) -> None:
        rows = self.rows
        numbers, gradient = self._up(rows.numbers), self._up(rows.g)
        size = rows.numbers.size if rule.variant.by_row else rows.g.size
        at = [vector.address for vector in self.there]
        run = (size, *at, numbers.address, rows.dim, gradient.address, gscale, *scalars)
        lane = self.device.lane()
        lane.launch(devices.launch_of(step_source(rule.variant, rule.dtype), [run], []))
        lane.finish()

    def down(self) -> list[Vector]:
        found = [np.zeros(vector.size, vector.dtype) for vector in self.there]
        lane = self.device.lane()
        for vector, out in zip(self.there, found, strict=True):
            lane.download(vector.address, out)
        lane.finish()
        return found


@pytest.mark.parametrize("spec", by_variant(), ids=str)
def test_rows_that_are_named_get_the_bits_of_the_compiled_rule(spec: RuleSpec, dtype: str, device: Device) -> None:
    rule = build_rows(spec, dtype)
    for dim in (1, 3, 16, 37):
        rows = Rows(rule, dim, rows=200, seed=dim)
        rows.numbers[5] = NONE
        rows.g[2 * dim] = np.nan
        rows.g[4 * dim] = np.inf
        rows.w[:: 7 * dim] = 0.0
        there = RowsThere(device, rows)
        for step in (1, 2, 7):
            scalars = rule.scalars(spec, step)
            with np.errstate(all="ignore"):
                rows.update(spec, step)
            there.step(rule, scalars, 0.25)
            assert all(map(same, there.down(), (rows.w, *rows.slots)))
        rows.numbers[:] = np.random.default_rng(dim).permutation(rows.numbers)


def test_a_kernel_of_rows_of_another_form_has_no_twin() -> None:
    def sums_up(w: Any, slots: Any, dim: int, g: Any, gscale: float, scalars: Any) -> None:
        rows = g.size // dim
        for r in range(rows):
            wr = w[r * dim : (r + 1) * dim]
            for j in range(dim):
                wr[j] += gscale

    def writes_twice(w: Any, slots: Any, dim: int, g: Any, gscale: float, scalars: Any) -> None:
        rows = g.size // dim
        for r in range(rows):
            wr = w[r * dim : (r + 1) * dim]
            for j in range(dim):
                wr[j] = gscale
            for j in range(dim):
                wr[j] = wr[j] + gscale

    def writes_nothing(w: Any, slots: Any, dim: int, g: Any, gscale: float, scalars: Any) -> None:
        """Rows."""

    for kernel, form in ((sums_up, r"wr\[j\] \+="), (writes_twice, "for j in"), (writes_nothing, "def")):
        variant = Variant(kernel.__name__, (Slot("n", 0.0, Per.ROW),), kernel, lambda *_: (), by_row=True)
        with pytest.raises(UsageError, match=rf"no kernel for a device .*{form}"):
            step_source(variant, np.dtype("float32"))
