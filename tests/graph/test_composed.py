"""Functions of several ops, on both fronts, against NumPy; their gradients are those of the ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.graph.op_case import differences, drawn
from windlass_proto.errors import UsageError

X = drawn(4, 6)
CASES: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
    "stack": (lambda f, x: f.stack(x, x * 2, axis=1), np.stack([X, X * 2], axis=1)),
    "split": (lambda f, x: f.split(x, 3, axis=1)[1], X[:, 2:4]),
    "logsumexp": (lambda f, x: f.logsumexp(x * 900, axis=1), (X * 900).max(axis=1)),
    "variance": (lambda f, x: f.variance(x, axis=0), X.var(axis=0)),
    "std": (lambda f, x: f.std(x, axis=1, keepdims=True), X.std(axis=1, keepdims=True)),
    "norm": (lambda f, x: f.norm(x), np.sqrt((X * X).sum())),
    "topk": (lambda f, x: f.topk(x, 2)[0], -np.sort(-X, axis=1)[:, :2]),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_numpy_gives_on_both_fronts(name: str) -> None:
    compute, wanted = CASES[name]
    np.testing.assert_allclose(np.asarray(compute(wl.nd, wl.nd.array(X))), wanted, rtol=1e-6)
    symbol = compute(wl.sym, wl.sym.Variable("x", X.shape, "float64"))
    np.testing.assert_allclose(symbol.eval(x=X)[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    compute, _ = CASES[name]
    scale = 1 / 900 if name == "logsumexp" else 1.0  # its peak would hide what the other elements do

    def total(values: Any) -> Any:
        x = values if isinstance(values, wl.nd.Array) else wl.nd.array(values)
        out = compute(wl.nd, x * scale)
        return (out * out).sum()

    x = wl.nd.array(X)
    x.attach_grad()
    with wl.autograd.record():
        loss = total(x)
    loss.backward()
    wanted = differences(lambda ins: float(total(ins[0])), [X], 0)
    np.testing.assert_allclose(np.array(x.grad), wanted, rtol=1e-5, atol=1e-7)


def test_parts_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(UsageError, match=r"equal parts.*size=6, parts=4"):
        wl.nd.split(wl.nd.array(X), 4, axis=1)
