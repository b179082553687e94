"""Functions with a gradient of the user's own, on both fronts.

    class Straight(wl.autograd.Function):
        def forward(self, x):
            return wl.nd.round(x)

        def backward(self, grad):
            return grad

    y = Straight()(x)

Invariant: `forward` and `backward` see arrays, off every tape, whatever front calls; each call has what it saved to
itself. Such a node is like any other to passes and plans, but it is Python, which no graph file holds.

Prior art: MXNet's autograd.Function.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from windlass_graph import modes
from windlass_graph.array import Array, Recorded
from windlass_graph.build import make
from windlass_graph.device import CPU, Device
from windlass_graph.node import NO_LABELS, Value
from windlass_graph.op import Backward, Missing, Op
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType
from windlass_proto.errors import UsageError

_NO_SECOND = Missing("a custom function gives its gradient as arrays, which cannot be differentiated")


class Function:
    """Derive from it and write `forward` and `backward`; see the module."""

    saved: tuple[Array, ...] = ()

    def forward(self, *inputs: Array) -> Any:
        """The output, or a tuple of outputs."""
        raise NotImplementedError

    def backward(self, *grads: Array) -> Any:
        """The gradient of each input, a tuple if there are several, from those of the outputs."""
        raise NotImplementedError

    def output_types(self, *inputs: TensorType) -> Sequence[TensorType]:
        """Types of the outputs, asked where symbols call: one output like the first input, unless overridden."""
        return inputs[:1]

    def save(self, *arrays: Array) -> None:
        """Keep what `backward` needs, as `self.saved`."""
        self.saved = arrays

    def __call__(self, *operands: Any) -> Any:
        """Apply it to arrays, or to symbols.

        Raises:
            UsageError: an operand is neither, or what is returned does not have the type it must have.
        """
        call = copy.copy(self)
        if all(isinstance(operand, Array) for operand in operands):
            return call._on_arrays(operands)
        if all(isinstance(operand, Symbol) for operand in operands):
            return call._on_symbols(operands)
        raise UsageError(
            f"{type(self).__name__} takes arrays, or symbols",
            next_move="Make arrays with wl.nd.array(...).",
            got=[type(operand).__name__ for operand in operands],
        )

    def _on_arrays(self, arrays: Sequence[Array]) -> Any:
        found = self._checked("forward", arrays)
        device = found[0].device
        if modes.is_recording() and any(array.value is not None for array in arrays):
            inputs = tuple(array.value or array.as_constant() for array in arrays)
            types, memory = tuple(out.type for out in found), tuple(out.memory for out in found)
            node = Recorded(self._op(len(arrays), types), inputs, {}, "", "", types, NO_LABELS, memory, device)
            found = tuple(Array(each, device, Value(node, i)) for i, each in enumerate(memory))
        return found[0] if len(found) == 1 else found

    def _on_symbols(self, symbols: Sequence[Symbol]) -> Any:
        types = tuple(self.output_types(*(symbol.type for symbol in symbols)))
        node = make(self._op(len(symbols), types), [symbol.value for symbol in symbols], {})
        found = tuple(Symbol([Value(node, i)]) for i in range(len(types)))
        return found[0] if len(found) == 1 else found

    def _op(self, inputs: int, types: Sequence[TensorType]) -> Op:
        return Op(
            type(self).__name__,
            tuple(f"input{i}" for i in range(inputs)),
            lambda attrs, ins: tuple(self.output_types(*ins)),  # noqa: ARG005 - the op table's signature
            lambda xp, attrs, ins, outs, run: self._run("forward", xp, ins, outs),  # noqa: ARG005
            self._rule,
            visible=len(types),
            random=True,  # two calls are never one node
        )

    def _checked(self, method: str, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """What `forward` or `backward` returns, off every tape."""
        with modes.modes(recording=False):
            found = getattr(self, method)(*(array.detach() for array in inputs))
        listed = tuple(found) if isinstance(found, tuple | list) else (found,)
        for each in listed:
            if not isinstance(each, Array):
                raise UsageError(
                    f"{type(self).__name__}.{method} returned what is no array",
                    next_move="Return wl.nd arrays.",
                    got=type(each).__name__,
                )
        return listed

    def _run(self, method: str, xp: Any, ins: Sequence[Any], outs: Sequence[Any]) -> None:
        device = CPU if xp is np else Device("gpu", ins[0].device.id)
        found = self._checked(method, [Array(memory, device) for memory in ins])
        shapes = [tuple(out.shape) for out in outs]
        if [out.shape for out in found] != shapes:
            raise UsageError(
                f"{type(self).__name__}.{method} returned other shapes than it must",
                next_move="Override output_types, or mend it.",
                expected=shapes,
                got=[out.shape for out in found],
            )
        for out, memory in zip(found, outs, strict=True):
            memory[...] = out.memory

    def _rule(self, backward: Backward, index: int) -> Any:
        grads = backward.shared(self._gradients)
        if grads[index].shape != backward.ins[index].shape:
            raise UsageError(
                f"{type(self).__name__}.backward returned a gradient of another shape than its input",
                input=backward.ins[index].shape,
                gradient=grads[index].shape,
            )
        return grads[index]

    def _gradients(self, backward: Backward) -> tuple[Any, ...]:
        """One gradient an input, in the front that asks."""
        if isinstance(backward.ins[0], Symbol):
            return self._symbolic_gradients(backward)
        if modes.is_recording():
            raise UsageError(
                f"{type(self).__name__} has no gradient of its gradient: {_NO_SECOND.why}",
                next_move="Write it with ops, or leave create_graph off.",
            )
        found = self._checked("backward", backward.grads)
        if len(found) != len(backward.ins):
            raise UsageError(
                f"{type(self).__name__}.backward returns one gradient an input",
                inputs=len(backward.ins),
                gradients=len(found),
            )
        return found

    def _symbolic_gradients(self, backward: Backward) -> tuple[Symbol, ...]:
        """A node that runs `backward` when its turn comes: after the forward node, whose outputs it takes."""
        types = tuple(symbol.type for symbol in backward.ins)
        grads = len(backward.grads)
        op = Op(
            f"{type(self).__name__}_gradient",
            tuple(f"input{i}" for i in range(2 * grads)),
            lambda attrs, ins: types,  # noqa: ARG005 - the op table's signature
            lambda xp, attrs, ins, outs, run: self._run("backward", xp, ins[:grads], outs),  # noqa: ARG005
            _NO_SECOND,
            visible=len(types),
            random=True,
        )
        inputs = [*(symbol.value for symbol in backward.grads), *(symbol.value for symbol in backward.outs)]
        node = make(op, inputs, {})
        return tuple(Symbol([Value(node, i)]) for i in range(len(types)))
