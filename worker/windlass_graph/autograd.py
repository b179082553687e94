"""Recording and differentiating what arrays compute: `wl.autograd`.

    x.attach_grad()
    with autograd.record():
        loss = ((x - 1) ** 2).sum()
    loss.backward()          # x.grad

Invariant: a tape is walked by `gradient.reverse`, as a graph of symbols is. Rules compute with recording off, unless
`create_graph=True` asks for gradients that can be differentiated again.

Prior art: MXNet's autograd package, whose names these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from windlass_graph.array import Array, Recorded, array_of
from windlass_graph.custom import Function
from windlass_graph.device import Device
from windlass_graph.gradient import reverse
from windlass_graph.modes import is_recording, is_training, modes
from windlass_graph.node import Node, Value, alternating, topological
from windlass_proto.errors import UsageError

__all__ = [
    "Function",
    "backward",
    "grad",
    "is_recording",
    "is_training",
    "pause",
    "predict_mode",
    "record",
    "train_mode",
]


def record(train_mode: bool = True) -> AbstractContextManager[None]:
    """Inside, ops on arrays are recorded, in training mode unless it is said otherwise."""
    return modes(recording=True, training=train_mode)


def pause(train_mode: bool = False) -> AbstractContextManager[None]:
    """Inside, nothing is recorded."""
    return modes(recording=False, training=train_mode)


def train_mode() -> AbstractContextManager[None]:
    """Inside, dropout drops and batch norm uses the batch; recording stays as it is."""
    return modes(training=True)


def predict_mode() -> AbstractContextManager[None]:
    """Inside, nothing is dropped and batch norm uses what it has learned; recording stays as it is."""
    return modes(training=False)


def backward(
    heads: Sequence[Array],
    head_grads: Sequence[Any] | None = None,
    *,
    retain_graph: bool = False,
    train_mode: bool = True,
    final: Callable[[Array], None] | None = None,
) -> None:
    """Differentiate the sum of `heads`, each weighed by its head gradient (ones), by every array with a gradient.

    Args:
        heads: arrays that a tape led to.
        head_grads: one for each head, of its shape; None is ones.
        retain_graph: keep the tape for another call. Otherwise the heads forget it.
        train_mode: the mode in which gradients are computed.
        final: told of each array as soon as its `grad` is complete, so that it can leave while the rest is computed.

    Raises:
        UsageError: a head is on no tape, a path has no gradient, or no path leads to an array with one.
    """
    seeds = _seeds(heads, head_grads)
    order = _walk(heads)
    leaves = {Value(node, 0): node.leaf for node in order if isinstance(node, Recorded) and node.leaf is not None}
    kept = {value: leaf for value, leaf in leaves.items() if leaf.grad is not None}

    def complete(value: Value, gradient: Any) -> None:
        kept[value].take_gradient(gradient)
        if final is not None:
            final(kept[value])

    with modes(recording=False, training=train_mode):
        found = reverse(order, seeds, kept, _operand, complete, lambda value: kept[value].gradient_memory())
    if not found:
        raise UsageError(
            "no differentiable path leads from the heads to an array with a gradient",
            next_move="Look for argmax, comparisons, block_grad or pause() on the way.",
            heads=[str(head.type) for head in heads],
        )
    if not retain_graph:
        for head in heads:
            head.value = None


def grad(
    heads: Array | Sequence[Array],
    variables: Array | Sequence[Array],
    head_grads: Sequence[Any] | None = None,
    *,
    create_graph: bool = False,
    train_mode: bool = True,
) -> Any:
    """Gradients of the heads' sum by `variables`, returned and not kept.

    Args:
        create_graph: record how they are computed, so that they can be differentiated again.

    Returns:
        A list of arrays; one array if `variables` is one.

    Raises:
        UsageError: a variable is on no tape, or no differentiable path leads from a head to it.
    """
    listed = [variables] if isinstance(variables, Array) else list(variables)
    outer = [heads] if isinstance(heads, Array) else list(heads)
    for variable in listed:
        if variable.value is None:
            raise UsageError("this variable is on no tape", next_move="Call attach_grad() before record().")
    seeds = _seeds(outer, head_grads)
    order = topological(seeds)
    wanted = [variable.value for variable in listed if variable.value is not None]
    with modes(recording=create_graph, training=train_mode):
        found = reverse(order, seeds, wanted, _operand)
    for index, value in enumerate(wanted):
        if value not in found:
            raise UsageError(
                f"no differentiable path leads from the heads to variable {index}",
                next_move="Look for argmax, comparisons, block_grad or pause() on the way.",
                variable=listed[index].type,
            )
    results = [found[value] for value in wanted]
    return results[0] if isinstance(variables, Array) else results


def _walk(heads: Sequence[Array]) -> list[Node]:
    """The nodes that the heads need; those of several devices take turns, so that each gradient is early on all."""
    by_device: dict[Device, list[Value]] = {}
    for head in heads:
        assert head.value is not None, "heads without a value were refused"
        by_device.setdefault(head.device, []).append(head.value)
    orders = [topological(values) for values in by_device.values()]
    return orders[0] if len(orders) == 1 else alternating(orders)


def _operand(value: Value) -> Array:
    node = value.node
    assert isinstance(node, Recorded), "a tape's nodes are recorded ones"
    if node.leaf is not None:
        leaf: Array = node.leaf
        return leaf
    return Array(node.memory[value.output], node.device, value)


def _seeds(heads: Sequence[Array], head_grads: Sequence[Any] | None) -> dict[Value, Any]:
    given = list(head_grads) if head_grads is not None else [None] * len(heads)
    if len(given) != len(heads):
        raise UsageError("each head needs a head gradient or None", heads=len(heads), head_grads=len(given))
    seeds: dict[Value, Any] = {}
    for head, grad in zip(heads, given, strict=True):
        if head.value is None:
            raise UsageError(
                "this array is on no tape",
                next_move="Compute it inside autograd.record() from arrays with attach_grad(); a tape is walked once, "
                "unless retain_graph=True.",
                array=head.type,
            )
        seed = Array(head.device.xp.ones_like(head.memory), head.device) if grad is None else grad
        seed = seed if isinstance(seed, Array) else array_of(seed, head.dtype, head.device)
        if seed.shape != head.shape:
            raise UsageError("a head gradient has its head's shape", head=head.shape, head_grad=seed.shape)
        seeds[head.value] = seeds[head.value] + seed if head.value in seeds else seed
    return seeds
