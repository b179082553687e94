"""Reverse-mode differentiation: one walk for both fronts.

    grads = reverse(order, seeds, wanted, operand)

Invariant: each node's rule is asked once, after the gradients of all its outputs are summed, in the order of the seeds'
graph reversed; only paths that lead to a wanted value are walked. The results are operands of the front that asks, so a
gradient of symbols is a graph again, and one of recorded arrays can be recorded.

Source: Griewank and Walther, Evaluating Derivatives, 2nd ed., section 3.2 (reverse propagation).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from windlass_graph.functions import function
from windlass_graph.node import Node, Value
from windlass_graph.op import Backward, Flat, Missing, Rule
from windlass_proto.errors import UsageError


def reverse(
    order: Sequence[Node],
    seeds: Mapping[Value, Any],
    wanted: Iterable[Value],
    operand: Callable[[Value], Any],
    final: Callable[[Value, Any], None] | None = None,
    target: Callable[[Value], Any] | None = None,
) -> dict[Value, Any]:
    """Gradients of the seeds' sum by `wanted` values.

    Args:
        order: all nodes that the seeds need, each after its inputs.
        seeds: the gradient of some outer function by these values.
        wanted: by which to differentiate.
        operand: stands for a value in the front that asks.
        final: told of each wanted value as soon as its gradient is complete.
        target: memory in which the gradient of a wanted value may be left, or None.

    Returns:
        The gradient of each wanted value that a differentiable path reaches.

    Raises:
        UsageError: a path needs a gradient that its op lacks.
    """
    asked = set(wanted)
    needed = leading_to(order, asked)
    told: set[Value] = set()
    uses = _uses(order, asked, needed) if final is not None else {}

    def tell(value: Value, grad: Any) -> None:
        if final is not None and value in asked and value not in told:
            told.add(value)
            final(value, grad)

    grads: dict[Value, Any] = {value: seed for value, seed in seeds.items() if value in needed}
    for node in reversed(order):
        values = [Value(node, index) for index in range(len(node.types))]
        found = [value for value in values if value in grads]
        if not found:
            continue
        for value in found:
            tell(value, grads[value])
        if node.inputs and any(value in needed for value in node.inputs):
            early = {i: value for i, value in enumerate(node.inputs) if uses.get(value) == 1}
            lent = functools.partial(_lent, early, target)
            _through(node, values, grads, needed, operand, (functools.partial(_tell_early, early, tell), lent))
        for value in found:
            if value not in asked:
                del grads[value]
    return {value: grads[value] for value in asked if value in grads}


def _tell_early(early: Mapping[int, Value], tell: Callable[[Value, Any], None], index: int, grad: Any) -> None:
    if index in early:
        tell(early[index], grad)


def _lent(early: Mapping[int, Value], target: Callable[[Value], Any] | None, index: int) -> Any:
    return target(early[index]) if target is not None and index in early else None


def _uses(order: Sequence[Node], asked: set[Value], needed: set[Value]) -> dict[Value, int]:
    """How many gradients each asked value will be given."""
    found: dict[Value, int] = dict.fromkeys(asked, 0)
    for node in order:
        if node.inputs and any(Value(node, i) in needed for i in range(len(node.types))):
            for index, value in enumerate(node.inputs):
                if value in found and not is_flat(node, index):
                    found[value] += 1
    return found


def leading_to(order: Iterable[Node], wanted: set[Value]) -> set[Value]:
    """The values that depend on a wanted one along a path on which gradients flow, and the wanted ones."""
    reached = set(wanted)
    for node in order:
        if any(value in reached and not is_flat(node, index) for index, value in enumerate(node.inputs)):
            reached.update(Value(node, index) for index in range(len(node.types)))
    return reached


def is_flat(node: Node, index: int) -> bool:
    """Whether no gradient flows to this input."""
    gradient = node.op.gradient
    if isinstance(gradient, Flat):
        return True
    return isinstance(gradient, Sequence) and isinstance(gradient[index], Flat)


def _through(
    node: Node,
    values: list[Value],
    grads: dict[Value, Any],
    needed: set[Value],
    operand: Callable[[Value], Any],
    outlets: tuple[Callable[[int, Any], None], Callable[[int], Any]],
) -> None:
    """Add to the gradients of a node's inputs what comes through it."""
    backward = Backward(
        node.attrs,
        [operand(value) for value in node.inputs],
        [operand(value) for value in values],
        [grads.get(value) for value in values],
    )
    backward.announce, backward.target = outlets
    backward.grads = [
        function("zeros_like")(backward.outs[index]) if grad is None and index < node.op.visible else grad
        for index, grad in enumerate(backward.grads)
    ]
    for index, value in enumerate(node.inputs):
        if value not in needed or is_flat(node, index):
            continue
        grad = _ruled(node, index)(backward)
        if node.op.elementwise:
            grad = unbroadcast(grad, backward.ins[index])
        grads[value] = grad if value not in grads else grads[value] + grad


def _ruled(node: Node, index: int) -> Rule:
    gradient = node.op.gradient
    rule = gradient[index] if isinstance(gradient, Sequence) else gradient
    if isinstance(rule, Missing):
        raise UsageError(
            f"{node.op.name} {node.name!r} has no gradient by its input {index}: {rule.why}",
            next_move="Stop the gradient before it with block_grad, or write that part with other ops.",
            **({"made_at": node.where} if node.where else {}),
        )
    assert not isinstance(rule, Flat), "flat paths are not walked"
    if isinstance(gradient, Sequence):
        found: Rule = rule  # type: ignore[assignment]
        return found
    return lambda backward: gradient(backward, index)  # type: ignore[operator]


def unbroadcast(grad: Any, like: Any) -> Any:
    """`grad` summed over the axes along which `like` was broadcast."""
    if grad.type.has_shape and like.type.has_shape and grad.type.shape == like.type.shape:
        return grad
    return function("sum_to_like")(grad, like)
