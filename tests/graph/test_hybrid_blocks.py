"""Blocks that are compiled: once a signature, equal to what they compute at once, or refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import nn
from windlass_proto.errors import UsageError

F = wl.F
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


class TwoHeads(nn.HybridBlock):
    """Nested arguments and results, and Python's control flow over what is no value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Dense(6, activation="tanh")
        self.left = nn.Dense(2)
        self.right = nn.Dense(3)

    def forward(self, x: Any, state: list[Any], mask: Any = None, twice: bool = False) -> Any:
        h = self.body(x) + state[0]
        if mask is not None:
            h = h * mask
        if twice:
            h = h * 2
        return self.left(h), [self.right(h), h]


def test_a_compiled_block_gives_what_it_computes_at_once() -> None:
    net = TwoHeads()
    net.initialize()
    state = [np.ones((5, 6), np.float32)]
    mask = np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6)
    calls: list[tuple[Any, dict[str, Any]]] = [
        ((X, state), {}),
        ((X, state, mask), {}),
        ((X, state), {"mask": mask, "twice": True}),
    ]
    at_once = [net(*args, **kwargs) for args, kwargs in calls]
    net.hybridize()
    for (args, kwargs), (left, [right, hidden]) in zip(calls, at_once, strict=True):
        for _ in range(2):
            out, [other, inner] = net(*args, **kwargs)
            np.testing.assert_allclose(out.numpy(), left.numpy(), rtol=1e-6)
            np.testing.assert_allclose(other.numpy(), right.numpy(), rtol=1e-6)
            np.testing.assert_allclose(inner.numpy(), hidden.numpy(), rtol=1e-6)


def gradients(net: nn.HybridBlock, *inputs: Any) -> dict[str, Any]:
    with wl.autograd.record(train_mode=False):
        out = net(*inputs)
        total = (out * out).sum()
    total.backward()
    return {name: parameter.grad().numpy() for name, parameter in net.collect_params().items()}


def test_gradients_of_a_compiled_block_are_those_of_the_tape() -> None:
    net = nn.HybridSequential(nn.Dense(8, activation="sigmoid"), nn.Dropout(0.4), nn.Dense(3))
    net.initialize()
    at_once = gradients(net, X)
    net.hybridize()
    for name, gradient in gradients(net, X).items():
        np.testing.assert_allclose(gradient, at_once[name], rtol=1e-5, atol=1e-6)


def test_gradients_through_a_block_are_those_of_finite_differences() -> None:
    net = nn.HybridSequential(nn.Dense(3, activation="tanh", dtype="float64"), nn.Dense(2, dtype="float64"))
    net.initialize(wl.init.Normal(0.5))
    x = X.astype(np.float64)
    for hybrid in (False, True):
        net.hybridize(hybrid)
        found = gradients(net, x)
        for name, parameter in net.collect_params().items():
            memory = parameter.data().memory.reshape(-1)
            for i in range(memory.size):
                kept = memory[i]
                sums = []
                for step in (1e-6, -1e-6):
                    memory[i] = kept + step
                    sums.append(float(np.square(net(x).numpy()).sum()))
                memory[i] = kept
                assert found[name].reshape(-1)[i] == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-5, abs=1e-6)


def test_forward_is_traced_once_for_each_signature() -> None:
    traced: list[Any] = []

    class Counted(nn.HybridBlock):
        def forward(self, x: Any) -> Any:
            traced.append(x.shape)
            return x * 2

    net = Counted()
    net.hybridize()
    for size in (3, 5, 3, 5):
        np.testing.assert_array_equal(net(np.ones(size, np.float32)).numpy(), 2 * np.ones(size))
    assert traced == [(3,), (5,)]


def test_a_deferred_block_is_compiled_at_its_first_call() -> None:
    net = nn.HybridSequential(nn.Dense(8), nn.Dense(3))
    net.initialize()
    net.hybridize()
    assert net(X).shape == (5, 3)
    assert net[0].weight.shape == (8, 4)


def test_a_block_that_changes_is_compiled_again() -> None:
    inner = nn.HybridSequential(nn.Dense(8, activation="relu"))
    net = nn.HybridSequential(inner, nn.Dense(3))
    net.initialize()
    net.hybridize()
    net(X)
    inner.add(nn.Dense(8))
    inner[1].initialize()
    inner[1].weight.set_data(np.zeros((8, 8)))
    np.testing.assert_array_equal(net(X).numpy(), np.broadcast_to(net[1].bias.data().numpy(), (5, 3)))


def test_a_branch_on_a_value_is_refused_when_it_is_traced_alone() -> None:
    class Branching(nn.HybridBlock):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    net = Branching()
    assert net(X).shape == (5, 4)
    net.hybridize()
    with pytest.raises(UsageError, match=r"a branch needs a value.*F\.where.*") as raised:
        net(X)
    assert "test_hybrid_blocks.py" in str(raised.value)
    net.hybridize(False)
    assert net(X).shape == (5, 4)


def test_what_a_block_does_not_hold_cannot_be_traced() -> None:
    outside = nn.Dense(2)
    outside.initialize()

    class Borrowing(nn.HybridBlock):
        def forward(self, x: Any) -> Any:
            return outside(x)

    net = Borrowing()
    assert net(X).shape == (5, 2)
    net.hybridize()
    with pytest.raises(UsageError, match=r"a parameter that it does not hold .*Borrowing"):
        net(X)


def test_a_hybrid_block_refuses_children_that_cannot_be_traced() -> None:
    with pytest.raises(UsageError, match=r"holds hybrid blocks alone .*0: Lambda"):
        nn.HybridSequential(nn.Lambda("relu"))  # type: ignore[arg-type]


def test_a_plain_block_compiles_the_hybrid_ones_below_it() -> None:
    class Plain(nn.Block):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Dense(4)

        def forward(self, x: Any) -> Any:
            y = self.dense(x)
            return y if float(y.sum()) > 0 else -y

    net = Plain()
    net.initialize()
    at_once = net(X).numpy()
    net.hybridize()
    assert net.dense.is_hybridized
    np.testing.assert_allclose(net(X).numpy(), at_once, rtol=1e-6)


def test_a_block_of_symbols_is_a_symbol() -> None:
    net = nn.HybridSequential(nn.Dense(8), nn.Dense(3))
    net.initialize()
    net(X)
    graph = net.traced(X)
    assert [node.name for node in graph.arguments] == ["data0", "0.weight", "0.bias", "1.weight", "1.bias"]


def test_learning_lowers_a_loss_at_once_and_compiled_alike() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    loss = wl.loss.SoftmaxCrossEntropy()
    finals = []
    for hybrid in (False, True):
        net = nn.HybridSequential(nn.Dense(16, activation="relu"), nn.Dense(3))
        net.initialize(seed=5)
        net(X)
        net.hybridize(hybrid)
        trainer = wl.Trainer(net.collect_params(), wl.optim.SGD(lr=0.5))
        for _ in range(40):
            with wl.autograd.record():
                losses = loss(net(X), labels)
            losses.backward()
            trainer.step(len(X))
        finals.append(float(losses.mean()))
    assert finals[0] < 0.05
    assert finals[1] == pytest.approx(finals[0], rel=1e-3)
