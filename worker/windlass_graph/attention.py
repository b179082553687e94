"""Attention of several heads, composed of ops: it works on symbols and on arrays.

Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.2. Here each head's part of the projections is
a block of rows of one weight.
"""

from __future__ import annotations

from typing import Any

from windlass_graph import functions


def multi_head_attention(
    queries: Any, keys: Any, values: Any, projections: Any, *, heads: int, causal: bool = False, mask: Any = None
) -> Any:
    """Attention of `heads` heads at once.

    Args:
        queries, keys, values: `(batch, steps, features)`; of keys and values the steps are the same.
        projections: weight and bias of the queries', keys', values' and output's projection, eight operands in this
            order; weights are `(units, features)`, and units a multiple of `heads`.
        heads: how many.
        causal: no step sees a later one.
        mask: 1 where a query may see a key, 0 where not; it broadcasts to `(batch, heads, queries, keys)`.

    Returns:
        `(batch, steps of queries, units of the output's projection)`.
    """
    parts = [
        split_heads(_projected(source, *projections[2 * k : 2 * k + 2]), heads)
        for k, source in enumerate((queries, keys, values))
    ]
    masks = () if mask is None else (mask,)
    out = functions.attention(*parts, *masks, causal=causal, use_mask=mask is not None)
    return _projected(join_heads(out), *projections[6:])


def split_heads(x: Any, heads: int) -> Any:
    """`(batch, steps, units)` as `(batch, heads, steps, units // heads)`."""
    return functions.transpose(functions.reshape(x, shape=(0, 0, heads, -1)), axes=(0, 2, 1, 3))


def join_heads(x: Any) -> Any:
    """The inverse of `split_heads`."""
    return functions.reshape(functions.transpose(x, axes=(0, 2, 1, 3)), shape=(0, 0, -1))


def _projected(x: Any, weight: Any, bias: Any) -> Any:
    return functions.matmul(x, weight, transpose_y=True) + bias
