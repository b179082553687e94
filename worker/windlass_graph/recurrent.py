"""Recurrent layers in stacks and in both directions, composed of the ops `rnn`, `lstm` and `gru`.

They work on symbols and on arrays. Of two directions the second takes the steps from the last to the first; what both
give is joined along the units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from windlass_graph import functions
from windlass_proto.errors import UsageError

WEIGHTS_A_DIRECTION = 4


def recurrent(
    kind: str,
    x: Any,
    weights: Sequence[Any],
    *,
    units: int,
    bidirectional: bool = False,
    between: Callable[[Any], Any] | None = None,
    states: Sequence[Any] = (),
    **attrs: Any,
) -> tuple[Any, list[Any]]:
    """A stack of layers over `x` (steps, batch, features).

    Args:
        kind: "rnn", "lstm" or "gru".
        weights: of each layer, of each of its directions: i2h_weight, h2h_weight, i2h_bias, h2h_bias.
        units: of each direction.
        bidirectional: whether a layer has two directions.
        between: applied to what a layer hands to the next, such as dropout.
        states: before the first step, of each layer and direction h, of an lstm h and c; none are zeros.
        attrs: further ones of the op, such as `activation`.

    Returns:
        What the last layer gives, `(steps, batch, units * directions)`, and the states after the last step, in the
        order of `states`.

    Raises:
        UsageError: weights or states are not as many as layers and directions need.
    """
    directions = 2 if bidirectional else 1
    held = 2 if kind == "lstm" else 1
    layers, left = divmod(len(weights), WEIGHTS_A_DIRECTION * directions)
    if left or not layers or len(states) not in (0, layers * directions * held):
        raise UsageError(
            "weights and states do not make whole layers",
            next_move=f"Give {WEIGHTS_A_DIRECTION} weights for each layer and direction; states for all or for none.",
            weights=len(weights),
            states=len(states),
            directions=directions,
        )
    last: list[Any] = []
    for layer in range(layers):
        given = between(x) if layer and between is not None else x
        outs = []
        for direction in range(directions):
            at = layer * directions + direction
            own = weights[at * WEIGHTS_A_DIRECTION : (at + 1) * WEIGHTS_A_DIRECTION]
            before = states[at * held : (at + 1) * held] if states else ()
            reverse = direction == 1
            found = functions.function(kind)(
                given, *own, *before, units=units, reverse=reverse, use_state=bool(before), **attrs
            )
            out, *cells = found if kind == "lstm" else (found,)
            outs.append(out)
            last += [_last_step(out, reverse=reverse), *cells]
        x = functions.concat(*outs, axis=2) if bidirectional else outs[0]
    return x, last


def _last_step(out: Any, *, reverse: bool) -> Any:
    """h after the last step that was taken."""
    begin, end = (0, 1) if reverse else (-1, None)
    return functions.squeeze(functions.slice_axis(out, axis=0, begin=begin, end=end), axis=0)
