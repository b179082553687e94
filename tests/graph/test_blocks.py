"""Blocks: names, registration, deferred shapes, hooks, what they print, and files of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import nn
from windlass_proto import tensor_file
from windlass_proto.errors import UsageError


class Net(nn.HybridBlock):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.HybridSequential(nn.Dense(8, activation="relu"), nn.Dropout(0.5))
        self.out = nn.Dense(3)
        self.scale = nn.Parameter((1,), init=wl.init.One())

    def forward(self, x: Any) -> Any:
        return self.out(self.features(x)) * self.scale.data()


def ready(seed: int = 0) -> Net:
    net = Net()
    net.initialize(seed=seed)
    return net


X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def test_names_are_paths_of_attributes_and_do_not_depend_on_other_nets() -> None:
    names = ["scale", "features.0.weight", "features.0.bias", "out.weight", "out.bias"]
    assert list(Net().collect_params()) == names == list(Net().collect_params())


def test_patterns_select_parameters() -> None:
    net = Net()
    assert list(net.collect_params("*.bias")) == ["features.0.bias", "out.bias"]
    assert list(net.collect_params("scale", "out.*")) == ["scale", "out.weight", "out.bias"]
    with pytest.raises(UsageError, match=r"fits no parameter .*pattern=\.\*bias.*fnmatch"):
        net.collect_params(".*bias")


def test_shapes_are_told_by_the_first_forward() -> None:
    net = Net()
    weight = net.features[0].weight
    assert weight.shape == (8, None)
    net.initialize()
    assert weight.is_deferred
    with pytest.raises(UsageError, match=r"waits for its shape .*features\.0\.weight"):
        weight.data()
    assert net(X).shape == (5, 3)
    assert weight.shape == (8, 4)
    assert weight.data().shape == (8, 4)
    assert not weight.is_deferred


def test_shapes_are_told_without_computing() -> None:
    net = ready()
    net.infer_shape(wl.sym.Variable("x", (7, 6), "float32"))
    assert net.features[0].weight.data().shape == (8, 6)


def test_a_net_that_was_not_initialised_says_so() -> None:
    with pytest.raises(UsageError, match=r"not initialised .*Call initialize\(\)"):
        Net()(X)


def test_inputs_of_another_size_name_the_op_and_both_shapes() -> None:
    net = ready()
    net(X)
    with pytest.raises(UsageError, match=r"fully_connected.*7 features for a weight of \(8, 4\)"):
        net(np.zeros((2, 7), np.float32))


def test_a_plain_block_with_own_unknown_shapes_says_what_to_do() -> None:
    class Plain(nn.Block):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter((3, None))

        def forward(self, x: Any) -> Any:
            return wl.F.matmul(x, self.weight.data(), transpose_y=True)

    net = Plain()
    net.initialize()
    with pytest.raises(UsageError, match=r"plain block cannot tell .*HybridBlock"):
        net(X)


def test_children_are_replaced_and_deleted_by_attribute() -> None:
    net = ready()
    net(X)
    net.out = nn.Dense(2)
    net.out.initialize()
    assert net(X).shape == (5, 2)
    del net.scale
    assert "scale" not in net.collect_params()
    with pytest.raises(UsageError, match=r"super\(\)\.__init__"):
        nn.Block.__new__(nn.Block).child = nn.Dense(1)


def test_a_shared_parameter_has_its_first_name_alone() -> None:
    class Tied(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Dense(4, use_bias=False)
            self.two = nn.Dense(4, use_bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Any) -> Any:
            return self.two(self.one(x))

    net = Tied()
    net.initialize()
    for hybrid in (False, True):
        net.hybridize(hybrid)
        with wl.autograd.record():
            total = net(X).sum()
        total.backward()
        weight = net.one.weight.data().numpy()
        by_weight = (np.ones((5, 4)) @ weight).T @ X + np.ones((4, 5)) @ (X @ weight.T)
        np.testing.assert_allclose(net.one.weight.grad().numpy(), by_weight, rtol=1e-5, atol=1e-5)
    assert list(net.collect_params()) == ["one.weight"]


def test_hooks_see_inputs_and_outputs_until_they_are_detached() -> None:
    net, seen = ready(), []
    before = net.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    after = net.out.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    net(X)
    assert seen == [(5, 8), (5, 3)]
    before.detach()
    after.detach()
    net(X)
    assert len(seen) == 2


def test_apply_reaches_children_before_their_parents() -> None:
    names: list[str] = []
    ready().apply(lambda block: names.append(type(block).__name__))
    assert names.index("Dense") < names.index("HybridSequential") < names.index("Net")
    assert names[-1] == "Net"


def test_attributes_of_all_parameters_are_set_at_once() -> None:
    net = ready()
    net.setattr("grad_req", "add")
    net.setattr("lr_mult", 0.5)
    for _ in range(2):
        with wl.autograd.record(train_mode=False):
            total = net(X).sum()
        total.backward()
    once = net.collect_params()["out.bias"].grad().numpy()
    np.testing.assert_allclose(once, [10, 10, 10])
    net.zero_grad()
    assert not net.collect_params()["out.bias"].grad().numpy().any()
    assert {parameter.lr_mult for parameter in net.collect_params().values()} == {0.5}
    with pytest.raises(UsageError, match=r"no such attribute to set .*Did you mean grad_req"):
        net.setattr("grad_rec", "add")


def test_cast_keeps_the_values_in_another_dtype() -> None:
    net = ready()
    before = net(X).numpy()
    after = net.cast("float64")(X.astype(np.float64))
    assert after.dtype == np.float64
    np.testing.assert_allclose(after.numpy(), before, rtol=1e-5)


def test_copies_on_several_devices_are_equal_and_used_where_the_inputs_lie() -> None:
    net = Net()
    net.initialize(device=["cpu:0", "cpu:1"])
    here, there = wl.nd.array(X), wl.nd.array(X, device="cpu:1")
    np.testing.assert_array_equal(net(here).numpy(), net(there).numpy())
    assert str(net(there).device) == "cpu:1"
    weight = net.out.weight
    assert [str(each.device) for each in weight.list_data()] == ["cpu:0", "cpu:1"]
    assert len(weight.list_grad()) == 2
    with pytest.raises(UsageError, match=r"several devices .*Say which"):
        weight.data()
    with pytest.raises(UsageError, match=r"does not lie on this device .*device=cpu:2, on=cpu:0, cpu:1"):
        net(wl.nd.array(X, device="cpu:2"))
    with pytest.raises(UsageError, match="on each device once"):
        net.initialize(device=["cpu:0", "cpu:0"], force=True)


def test_values_are_set_on_every_device() -> None:
    parameter = nn.Parameter((2, None))
    with pytest.raises(UsageError, match="not initialised"):
        parameter.set_data(np.zeros((2, 3)))
    parameter.initialize(device=["cpu:0", "cpu:1"])
    parameter.set_data(np.ones((2, 3)))
    kept = parameter.data("cpu:1")
    parameter.set_data(np.full((2, 3), 2.0))
    assert kept.numpy().tolist() == [[2, 2, 2], [2, 2, 2]]
    with pytest.raises(UsageError, match=r"another shape .*expected=\(2, 3\), got=\(3,\)"):
        parameter.set_data(np.zeros(3))


def test_values_drawn_again_are_written_where_the_old_ones_lay() -> None:
    parameter = nn.Parameter((2, 3))
    parameter.initialize("ones")
    kept = parameter.data()
    parameter.initialize("zeros")
    assert kept.numpy().all()
    parameter.initialize("zeros", force=True)
    assert parameter.data() is kept
    assert not kept.numpy().any()
    parameter.initialize("ones", device="cpu:1", force=True)
    assert [str(device) for device in parameter.list_devices()] == ["cpu:1"]


def test_moving_averages_of_several_devices_are_saved_as_their_mean(tmp_path: Path) -> None:
    net = nn.BatchNorm(momentum=0.0)
    net.initialize(device=["cpu:0", "cpu:1"])
    with wl.autograd.train_mode():
        for device, value in (("cpu:0", 1.0), ("cpu:1", 4.0)):
            net(wl.nd.full((3, 2), value, device=device))
    net.save_parameters(tmp_path / "net.safetensors")
    assert tensor_file.load(tmp_path / "net.safetensors")["running_mean"].tolist() == [2.5, 2.5]


def test_a_parameter_in_place_of_its_values_is_refused_in_words() -> None:
    class Scaled(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter((4,), init="ones")

        def forward(self, x: Any) -> Any:
            return x * self.scale

    net = Scaled()
    net.initialize()
    for hybrid in (False, True):
        net.hybridize(hybrid)
        with pytest.raises(UsageError, match=r"a parameter is no operand.*parameter=scale.*parameter\.data\(\)"):
            net(X)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.HybridSequential(nn.Dense), r"a child is a block .*got=Dense.*Make one"),  # type: ignore[arg-type]
        (lambda: nn.Sequential(abs), r"a child is a block .*nn\.Lambda"),  # type: ignore[arg-type]
        (lambda: ready(-1), "a seed is 0 to"),
    ],
)
def test_wrong_parts_of_a_net_are_refused_in_words(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_a_list_hides_no_blocks() -> None:
    class Hiding(nn.Block):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = [3, 4]
            self.layers = [nn.Dense(size) for size in self.sizes]

    with pytest.raises(UsageError, match=r"hides blocks .*block=Hiding, attribute=layers"):
        Hiding()


def test_a_constant_is_saved_and_never_learned() -> None:
    class Shifted(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Constant([1.0, 2.0])

        def forward(self, x: Any) -> Any:
            return x + self.shift.data()

    net = Shifted()
    net.initialize()
    for hybrid in (False, True):
        net.hybridize(hybrid)
        assert net(np.zeros((1, 2), np.float32)).numpy().tolist() == [[1, 2]]
    assert net.shift.grad_req == "null"
    with pytest.raises(UsageError, match="no gradient reaches"):
        net.shift.grad_req = "write"


SUMMARY = """\
input: 5x4
block                               output shape  parameters  shared
--------------------------------------------------------------------
net (Net)                           5x3                    1
features (HybridSequential)         5x8                    0
features.0 (Dense)                  5x8                   40
features.0.activation (Activation)  5x8                    0
features.1 (Dropout)                5x8                    0
out (Dense)                         5x3                   27
--------------------------------------------------------------------
parameters: 68
learned: 68, fixed: 0
bytes: 272
"""


def test_a_summary_shows_blocks_shapes_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    ready().summary(X)
    assert capsys.readouterr().out == SUMMARY


def test_a_summary_counts_what_is_shared_once_and_leaves_a_compiled_net_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    net = nn.HybridSequential(nn.Dense(4), nn.Dense(4, use_bias=False))
    net[1].weight = net[0].weight
    net.initialize()
    net.hybridize()
    net.summary(X)
    printed = capsys.readouterr().out
    assert "1 (Dense)               5x4                    0      16" in printed
    assert "parameters: 20" in printed
    assert net.is_hybridized


def test_a_net_prints_its_blocks() -> None:
    net = ready()
    net(X)
    assert repr(net) == (
        "Net(\n"
        "  (features): HybridSequential(\n"
        "    (0): Dense(4 -> 8, relu)\n"
        "    (1): Dropout(0.5)\n"
        "  )\n"
        "  (out): Dense(8 -> 3)\n"
        ")"
    )
    assert repr(net.out.weight) == "<Parameter out.weight float32(3, 8)>"


def test_parameters_come_back_from_a_file(tmp_path: Path) -> None:
    net, other = ready(1), ready(2)
    expected = net(X).numpy()
    net.save_parameters(tmp_path / "net.safetensors")
    other.load_parameters(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(other(X).numpy(), expected)
    bare = Net()
    bare.load_parameters(str(tmp_path / "net.safetensors"), device="cpu:1")
    np.testing.assert_array_equal(bare(wl.nd.array(X, device="cpu:1")).numpy(), expected)


def test_a_deferred_net_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="waits for its shape"):
        ready().save_parameters(tmp_path / "net.safetensors")


def file_of(folder: Path, **changed: Any) -> Path:
    """A file of a net's parameters with some changed; None leaves one out."""
    net = ready()
    net(X)
    arrays = {name: parameter.data().numpy() for name, parameter in net.collect_params().items()}
    arrays |= {name.replace("__", "."): values for name, values in changed.items()}
    path = folder / "changed.safetensors"
    tensor_file.write(path, {name: values for name, values in arrays.items() if values is not None})
    return path


WRONG = [
    ({"out__bias": None}, "lacks parameters .*names=out.bias.*allow_missing"),
    ({"out__bais": np.zeros(3, np.float32)}, "names that no parameter has .*names=out.bais.*ignore_extra"),
    ({"out__bias": np.zeros(4, np.float32)}, r"another shape .*parameter=out.bias, expected=\(3,\), got=\(4,\)"),
    ({"out__bias": np.zeros(3)}, "another dtype .*parameter=out.bias, expected=float32, got=float64.*cast_dtype"),
]


@pytest.mark.parametrize(("changed", "words"), WRONG, ids=["missing", "extra", "shape", "dtype"])
def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    net = ready(3)
    before = net(X).numpy()
    with pytest.raises(UsageError, match=words):
        net.load_parameters(file_of(tmp_path, **changed))
    np.testing.assert_array_equal(net(X).numpy(), before)


def test_names_that_differ_by_a_slip_are_pointed_out(tmp_path: Path) -> None:
    path = file_of(tmp_path, out__bias=None, out__bais=np.zeros(3, np.float32))
    with pytest.raises(UsageError, match=r"Is out\.bias called out\.bais on the other side"):
        ready().load_parameters(path)


def test_what_does_not_fit_can_be_allowed(tmp_path: Path) -> None:
    net = ready(4)
    net(X)
    kept = net.collect_params()["out.bias"].data().numpy()
    net.load_parameters(file_of(tmp_path, out__bias=None, more=np.zeros(2)), allow_missing=True, ignore_extra=True)
    np.testing.assert_array_equal(net.collect_params()["out.bias"].data().numpy(), kept)
    net.load_parameters(file_of(tmp_path, out__bias=np.full(3, 2.0)), cast_dtype=True)
    assert net.collect_params()["out.bias"].data().numpy().tolist() == [2, 2, 2]
    with pytest.raises(UsageError, match="no file of arrays"):
        net.load_parameters(tmp_path / "absent.safetensors")


def test_chains_are_indexed_and_sliced() -> None:
    net = nn.Sequential(nn.Dense(2), nn.Lambda(lambda x: x * 2), nn.Lambda("relu"))
    assert len(net) == 3
    assert isinstance(net[0], nn.Dense)
    assert [type(block).__name__ for block in net[1:]] == ["Lambda", "Lambda"]
    net.initialize()
    assert (net(X).numpy() >= 0).all()


def test_branches_are_joined_along_an_axis() -> None:
    net = nn.HybridConcurrent(nn.Identity(), nn.HybridLambda(lambda x: x + 1), axis=1)
    for hybrid in (False, True):
        net.hybridize(hybrid)
        np.testing.assert_array_equal(net(X).numpy(), np.concatenate([X, X + 1], axis=1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", np.maximum(X, 0)),
        ("sigmoid", 1 / (1 + np.exp(-X))),
        ("softsign", X / (1 + np.abs(X))),
        ("softplus", np.log1p(np.exp(X))),
        ("silu", X / (1 + np.exp(-X))),
        ("elu", np.where(X > 0, X, np.expm1(X))),
        ("selu", 1.0507009873554805 * np.where(X > 0, X, 1.6732632423543772 * np.expm1(X))),
        ("mish", X * np.tanh(np.log1p(np.exp(X)))),
    ],
)
def test_activations_are_what_their_papers_say(name: str, expected: Any) -> None:
    block = nn.Activation(name)
    for hybrid in (False, True):
        block.hybridize(hybrid)
        np.testing.assert_allclose(block(X).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_activation_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean relu"):
        nn.Activation("rely")


def test_prelu_learns_a_slope_for_each_channel() -> None:
    x = -np.ones((2, 3, 4), np.float32)
    block = nn.PReLU(3)
    block.initialize()
    block.alpha.set_data(np.array([0.5, 1, 2]))
    with wl.autograd.record():
        out = block(x)
    np.testing.assert_array_equal(out.numpy()[0, :, 0], [-0.5, -1, -2])
    out.backward()
    np.testing.assert_array_equal(block.alpha.grad().numpy(), [-8, -8, -8])


def test_dropout_along_axes_drops_whole_channels() -> None:
    wl.nd.seed(3)
    block = nn.Dropout(0.5, axes=(2,))
    with wl.autograd.train_mode():
        out = block(np.ones((8, 8, 5), np.float32)).numpy()
    assert set(np.unique(out)) == {0, 2}
    assert (out == out[:, :, :1]).all()
    np.testing.assert_array_equal(block(X.reshape(5, 4, 1)).numpy(), X.reshape(5, 4, 1))
