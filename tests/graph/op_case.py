"""One op, tried: inputs, what it must give by NumPy, and by which inputs its gradient is checked.

Each family keeps its list `CASES` in a module of `tests/graph/cases`; `test_ops.py` runs all of them on both fronts and
refuses an op of the table that no case tries.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_graph import autograd
from windlass_graph.array import Array, array_of
from windlass_graph.compile import compiled
from windlass_graph.device import CPU, Device
from windlass_graph.functions import function
from windlass_graph.graph import Graph
from windlass_graph.symbol import Variable
from windlass_graph.tensor_type import type_of
from windlass_proto.errors import UsageError

Values = npt.NDArray[Any]
STEP = 1e-6


@dataclass(frozen=True, slots=True)
class OpCase:
    """One op with one set of inputs.

    Args:
        op: its name.
        ins: inputs as NumPy arrays; floats are float64, so that finite differences are sharp.
        expected: by plain NumPy, the visible outputs (an array, or a tuple of them), from the inputs and attributes;
            None for what cannot be said (random ops have tests of their own).
        attrs: its attributes.
        by: indices of the inputs by which it is differentiated; empty if its gradient is flat or missing.
        second: whether the gradient is differentiated again.
        own_gradient: the gradient is not the derivative of the output by design (fused losses): tests elsewhere.
    """

    op: str
    ins: Sequence[Values]
    expected: Callable[..., Any] | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    by: Sequence[int] = ()
    second: bool = True
    own_gradient: bool = False

    def __str__(self) -> str:
        shapes = "-".join("x".join(map(str, each.shape)) or "scalar" for each in self.ins)
        return f"{self.op}-{shapes}" + "".join(f"-{key}={value}" for key, value in self.attrs.items())


def case_modules() -> list[str]:
    """Names of the modules of `tests.graph.cases`."""
    from tests.graph import cases

    return [module.name for module in pkgutil.iter_modules(cases.__path__)]


def every_case() -> list[OpCase]:
    found: list[OpCase] = []
    for module in case_modules():
        found += importlib.import_module(f"tests.graph.cases.{module}").CASES
    return found


def drawn(*shape: int, low: float = -1.0, high: float = 1.0, seed: int = 0) -> Values:
    """float64 numbers, no two alike and none near 0, so that no kink is within a finite difference."""
    random = np.random.default_rng((seed, *shape))
    size = int(np.prod(shape, dtype=int))
    spaced = low + (high - low) * (random.permutation(size) + 0.5 + 0.2 * random.random(size)) / max(size, 1)
    spaced = np.where(np.abs(spaced) < 1e-3, 1e-3, spaced)
    return spaced.reshape(shape)


def outputs(case: OpCase, operands: Sequence[Any]) -> tuple[Any, ...]:
    found = function(case.op)(*operands, **case.attrs)
    return found if isinstance(found, tuple) else (found,)


def weighed(case: OpCase, operands: Sequence[Any], weights: Sequence[Values]) -> Any:
    """One number: the sum of all float outputs, each element weighed."""
    total: Any = None
    for out, weight in zip(outputs(case, operands), weights, strict=True):
        term = (out * array_of(weight, device=out.device)).sum()
        total = term if total is None else total + term
    return total


def weights_for(case: OpCase) -> list[Values]:
    shapes = [out.shape for out in outputs(case, [array_of(each) for each in case.ins])]
    return [drawn(*shape, seed=9 + i) if shape else np.array(0.7) for i, shape in enumerate(shapes)]


def gradients(
    case: OpCase, ins: Sequence[Values], weights: Sequence[Values], device: str | Device = "cpu:0"
) -> list[Array]:
    """By autograd, of `weighed`, by the inputs of `case.by`."""
    operands = [array_of(each, device=device) for each in ins]
    for index in case.by:
        operands[index].attach_grad()
    with autograd.record():
        total = weighed(case, operands, weights)
        found: list[Array] = autograd.grad(total, [operands[i] for i in case.by])
    return found


def second_gradients(case: OpCase, weights: Sequence[Values], device: str | Device = "cpu:0") -> list[Array]:
    """By autograd, of the squares of what `gradients` gives, summed."""
    operands = [array_of(each, device=device) for each in case.ins]
    for index in case.by:
        operands[index].attach_grad()
    with autograd.record():
        total = weighed(case, operands, weights)
        first = autograd.grad(total, [operands[i] for i in case.by], create_graph=True)
        squares = (first[0] * first[0]).sum()
        for each in first[1:]:
            squares = squares + (each * each).sum()
    try:
        squares.backward()
    except UsageError as error:  # a gradient of straight pieces: that of the gradient is zero
        if not str(error).startswith("no differentiable path"):
            raise
    return [grad for index in case.by if (grad := operands[index].grad) is not None]


def planned(case: OpCase, device: Device = CPU) -> list[Any]:
    """The visible outputs by a compiled graph: the device's own arrays."""
    names = [f"in{i}" for i in range(len(case.ins))]
    symbols = outputs(case, [Variable(name) for name in names])
    known = {name: type_of(each) for name, each in zip(names, case.ins, strict=True)}
    program = compiled(Graph([symbol.value for symbol in symbols]), known, device=device)
    feeds = {name: device.xp.asarray(each, order="C") for name, each in zip(names, case.ins, strict=True)}
    return program.run(feeds)


def differences(number: Callable[[Sequence[Values]], float], ins: Sequence[Values], index: int) -> Values:
    """The gradient of `number(ins)` by one input, by central differences."""
    moved = [np.array(each, order="C") for each in ins]
    flat = moved[index].reshape(-1)
    found = np.empty(flat.size)
    for i in range(flat.size):
        kept = flat[i]
        flat[i] = kept + STEP
        above = number(moved)
        flat[i] = kept - STEP
        below = number(moved)
        flat[i] = kept
        found[i] = (above - below) / (2 * STEP)
    return found.reshape(moved[index].shape)
