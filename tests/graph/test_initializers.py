"""First values: by seed, name and initializer alone; of the moments their papers say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import nn
from windlass_graph.initializers import drawn
from windlass_proto.errors import UsageError


def values(init: Any, *shape: int, name: str = "weight", seed: int = 0) -> Any:
    return drawn(init, name, shape, "float32", seed)


def test_values_depend_on_seed_name_and_initializer_alone() -> None:
    same = values(wl.init.Xavier(), 20, 30)
    np.testing.assert_array_equal(same, values(wl.init.Xavier(), 20, 30))
    others = [
        values(wl.init.Xavier(), 20, 30, seed=1),
        values(wl.init.Xavier(), 20, 30, name="other"),
        values(wl.init.Xavier(seed=1), 20, 30),
    ]
    assert all(not np.array_equal(same, other) for other in others)


def test_neither_order_nor_devices_nor_other_layers_change_a_value() -> None:
    def weight(first: bool, devices: list[str]) -> Any:
        net = nn.HybridSequential(nn.Dense(4, in_units=3), nn.Dense(2, in_units=4))
        if first:
            net[1].weight.name = "1.weight"
            net[1].weight.initialize()
        net.initialize(device=devices, seed=0)
        return net[1].weight.list_data()[-1].numpy()

    np.testing.assert_array_equal(weight(False, ["cpu:0"]), weight(True, ["cpu:0", "cpu:1"]))


def test_the_seed_of_the_thread_is_taken_unless_one_is_given() -> None:
    def weight(**given: Any) -> Any:
        net = nn.Dense(4, in_units=3)
        net.initialize(**given)
        return net.weight.data().numpy()

    wl.nd.seed(7)
    np.testing.assert_array_equal(weight(), weight(seed=7))
    assert not np.array_equal(weight(), weight(seed=8))


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        (wl.init.Normal(0.3), 0.3),
        (wl.init.Uniform(-1, 1), 2 / math.sqrt(12)),
        (wl.init.Xavier(), math.sqrt(2 / (200 + 300))),
        (wl.init.Xavier("gaussian", "in", 2.0), math.sqrt(2 / 300)),
        (wl.init.Xavier(factor_type="out"), math.sqrt(1 / 200)),
        (wl.init.MSRA("in", slope=0.0), math.sqrt(2 / 300)),
        (wl.init.MSRA("out", slope=0.25), math.sqrt(2 / (1 + 0.0625) / 200)),
    ],
    ids=str,
)
def test_the_deviation_is_the_one_that_was_derived(init: Any, deviation: float) -> None:
    found = values(init, 200, 300)
    assert found.std() == pytest.approx(deviation, rel=0.02)
    assert abs(found.mean()) < 4 * deviation / math.sqrt(found.size)


def test_kernels_count_into_fans() -> None:
    assert values(wl.init.Xavier(), 64, 32, 3, 3).std() == pytest.approx(math.sqrt(2 / (9 * (64 + 32))), rel=0.02)
    with pytest.raises(UsageError, match=r"two axes or more .*parameter=weight"):
        values(wl.init.Xavier(), 5)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 3, 3)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, ...]) -> None:
    matrix = values(wl.init.Orthogonal(2.0), *shape).reshape(shape[0], -1)
    product = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(4), atol=1e-5)


def test_bilinear_kernels_interpolate() -> None:
    kernel = values(wl.init.Bilinear(), 2, 2, 4, 4)
    ramp = [0.25, 0.75, 0.75, 0.25]
    np.testing.assert_allclose(kernel[1, 0], np.outer(ramp, ramp))


def test_a_bias_of_a_recurrent_layer_opens_its_forget_gates() -> None:
    assert values(wl.init.LSTMBias(2.0), 8).tolist() == [0, 0, 2, 2, 0, 0, 0, 0]
    with pytest.raises(UsageError, match="four gates"):
        values(wl.init.LSTMBias(), 6)


def test_constants_and_names() -> None:
    assert values(wl.init.Zeros(), 2).tolist() == [0, 0]
    assert values(wl.init.One(), 2).tolist() == [1, 1]
    assert values(wl.init.Constant(3.5), 2).tolist() == [3.5, 3.5]
    net = nn.Dense(2, in_units=2, bias_initializer="ones")
    net.initialize("zeros")
    assert net.weight.data().numpy().tolist() == [[0, 0], [0, 0]]
    assert net.collect_params()["bias"].data().numpy().tolist() == [1, 1]


def test_mixed_takes_the_first_pattern_that_fits() -> None:
    init = wl.init.Mixed({"*.gate": wl.init.One(), "out.*": wl.init.Constant(2.0)})
    assert values(init, 1, name="out.gate").tolist() == [1]
    assert values(init, 1, name="out.weight").tolist() == [2]
    with pytest.raises(UsageError, match=r"no pattern of Mixed fits .*features\.0"):
        values(init, 1, name="features.0")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: wl.init.Xavier("gausian"), "no rnd_type.*Did you mean gaussian"),
        (lambda: wl.init.Xavier(magnitude=0), "magnitude is a number above 0"),
        (lambda: wl.init.Xavier(seed=-1), "a seed is"),
        (lambda: wl.init.Mixed({}), "at least one pattern"),
        (lambda: nn.Parameter((1,), init="zeroes"), "no initializer 'zeroes'.*Did you mean zeros"),
        (lambda: nn.Parameter((1,), init=wl.init.Zeros), "the class; call it"),
        (lambda: nn.Parameter((1,), init=3), "no initializer .*got=int"),
    ],
)
def test_a_wrong_initializer_is_refused_in_words(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_an_initializer_of_ones_own_must_give_the_shape() -> None:
    class Wrong:
        def draw(self, name: str, shape: tuple[int, ...], random: np.random.Generator) -> Any:
            return np.zeros(3)

    with pytest.raises(UsageError, match=r"another shape .*expected=\(2,\), got=\(3,\)"):
        values(Wrong(), 2)
