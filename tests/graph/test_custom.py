"""Functions with gradients of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph.array import Array
from windlass_graph.cached_graph import CachedGraph
from windlass_proto.errors import UsageError


class Straight(wl.autograd.Function):
    """Rounds; its gradient passes as if it did not."""

    def forward(self, *inputs: Array) -> Any:
        return wl.nd.round(inputs[0])

    def backward(self, *grads: Array) -> Any:
        return grads[0]


class Product(wl.autograd.Function):
    """x * y and x + y, with gradients from what was saved."""

    def forward(self, *inputs: Array) -> Any:
        self.save(*inputs)
        return inputs[0] * inputs[1], inputs[0] + inputs[1]

    def backward(self, *grads: Array) -> Any:
        x, y = self.saved
        return grads[0] * y + grads[1], grads[0] * x + grads[1]

    def output_types(self, *inputs: Any) -> Any:
        return inputs


def leaf(*values: float) -> Array:
    found = wl.nd.array(np.array(values))
    found.attach_grad()
    return found


def test_a_straight_through_gradient_passes_what_rounding_would_stop() -> None:
    x = leaf(0.4, 1.6)
    with wl.autograd.record():
        y = (Straight()(x) * 3).sum()
    y.backward()
    assert y.item() == 6
    np.testing.assert_array_equal(x.grad, [3, 3])


@pytest.mark.parametrize("cached", [False, True], ids=["at once", "compiled"])
def test_two_calls_of_one_function_keep_what_each_saved(cached: bool) -> None:
    x, y = leaf(2.0, 3.0), leaf(5.0, 7.0)
    function = Product()

    def total(inputs: Any) -> Any:
        product, added = function(inputs[0], inputs[1])
        again, _ = function(product, added)
        return [again]

    graph = CachedGraph(total)
    with wl.autograd.record():
        out = (graph([x, y], {})[0] if cached else total([x, y]))[0].sum()
    out.backward()
    xs, ys = x.numpy(), y.numpy()
    np.testing.assert_allclose(out.item(), np.sum(xs * ys * (xs + ys)))
    np.testing.assert_allclose(np.array(x.grad), ys * (xs + ys) + xs * ys)
    np.testing.assert_allclose(np.array(y.grad), xs * (xs + ys) + xs * ys)


def test_what_it_returns_is_checked_in_words() -> None:
    class Wrong(Straight):
        def forward(self, *inputs: Array) -> Any:
            return np.zeros(2)

    with pytest.raises(UsageError, match=r"Wrong\.forward returned what is no array.*ndarray"):
        Wrong()(leaf(1.0, 2.0))

    class Short(Straight):
        def backward(self, *grads: Array) -> Any:
            return wl.nd.zeros((1,))

    x = leaf(1.0, 2.0)
    with wl.autograd.record():
        y = Short()(x).sum()
    with pytest.raises(UsageError, match="another shape than its input"):
        y.backward()
    with pytest.raises(UsageError, match="takes arrays, or symbols"):
        Straight()(1.0)


def test_a_gradient_of_its_gradient_is_refused() -> None:
    x = leaf(1.5)
    with wl.autograd.record():
        y = Straight()(x).sum()
        with pytest.raises(UsageError, match="no gradient of its gradient"):
            wl.autograd.grad(y, x, create_graph=True)
