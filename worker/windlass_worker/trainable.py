"""What a trainer steps: a model's parameters by name, each with its copies on this worker's devices.

Invariant: the copies of a parameter hold the same values between steps; the first one is the one that rules update, the
others follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from windlass_graph.array import Array
from windlass_proto.errors import UsageError


@dataclass(frozen=True, slots=True)
class Trainable:
    """One parameter: its copies, and what a rule's numbers are multiplied by."""

    name: str
    copies: tuple[Array, ...]
    lr_mult: float = 1.0
    decay_mult: float = 1.0

    @property
    def first(self) -> Array:
        return self.copies[0]

    @property
    def is_fresh(self) -> bool:
        """Whether every copy has a gradient that no step has used."""
        return all(copy.grad_is_fresh for copy in self.copies)

    def use_gradient(self, scale: float = 1.0) -> Any:
        """The memory of the gradient summed over the copies, times `scale`, in the first one's; it is used now."""
        assert self.first.grad is not None, "trainable arrays have gradients"
        total = self.first.grad.memory
        for copy in self.copies[1:]:
            assert copy.grad is not None, "trainable arrays have gradients"
            total += _readable(copy.grad, self.first)
        if scale != 1.0:
            total *= total.dtype.type(scale)
        for copy in self.copies:
            copy.grad_is_fresh = False
        return total

    def share(self) -> None:
        """Give the first copy's values to the others, and forget gradients that add up."""
        for copy in self.copies[1:]:
            copy.memory[...] = _readable(self.first, copy)
        for copy in self.copies:
            if copy.grad_req == "add" and copy.grad is not None:
                copy.grad.memory[...] = 0


def _readable(array: Array, by: Array) -> Any:
    """Its memory where the device of `by` reads it: CPU devices read each other's."""
    return array.memory if array.device.kind == by.device.kind == "cpu" else array.to(by.device).memory


def trainables(parameters: Mapping[str, Any]) -> list[Trainable] | None:
    """Those of `parameters` that have gradients, by name; None while one of them waits for its shape.

    Args:
        parameters: name -> `wl.nn.Parameter`, or an array with a gradient.

    Raises:
        UsageError: nothing is to be trained, or a parameter was not initialised.
    """
    found = []
    for name, parameter in sorted(parameters.items()):
        if isinstance(parameter, Array):
            if parameter.grad is not None:
                found.append(Trainable(name, (parameter,)))
            continue
        if parameter.grad_req == "null":
            continue
        if parameter.is_deferred:
            return None
        found.append(Trainable(name, tuple(parameter.list_data()), parameter.lr_mult, parameter.decay_mult))
    if not found:
        raise UsageError(
            "nothing is to be trained", next_move="Pass net.collect_params(), or arrays with attach_grad()."
        )
    return found
