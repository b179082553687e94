"""Layers by hand in NumPy, their shapes told by the first forward, at once and compiled alike, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import nn
from windlass_proto.errors import UsageError

RANDOM = np.random.default_rng(0)
STEPS = RANDOM.normal(size=(5, 2, 3)).astype(np.float32)


def drawn(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype(np.float32)


LAYERS: list[tuple[Callable[[], nn.HybridBlock], tuple[int, ...], tuple[int, ...]]] = [
    (lambda: nn.Conv1D(4, 3, strides=2, padding=1), (2, 3, 7), (2, 4, 4)),
    (lambda: nn.Conv2D(4, (3, 1), dilation=2, activation="relu"), (2, 3, 7, 5), (2, 4, 3, 5)),
    (lambda: nn.Conv2D(6, 3, groups=3, use_bias=False), (2, 3, 5, 5), (2, 6, 3, 3)),
    (lambda: nn.Conv3D(2, 2), (1, 3, 3, 4, 3), (1, 2, 2, 3, 2)),
    (lambda: nn.Conv1DTranspose(4, 3, strides=2), (2, 3, 4), (2, 4, 9)),
    (lambda: nn.Conv2DTranspose(4, 3, 2, 1, 1), (2, 3, 4, 3), (2, 4, 8, 6)),
    (lambda: nn.Conv3DTranspose(2, 2, groups=1), (1, 3, 2, 2, 2), (1, 2, 3, 3, 3)),
    (nn.MaxPool1D, (2, 3, 6), (2, 3, 3)),
    (lambda: nn.MaxPool2D(3, 2, 1), (2, 3, 5, 5), (2, 3, 3, 3)),
    (lambda: nn.MaxPool3D(2), (1, 2, 4, 4, 4), (1, 2, 2, 2, 2)),
    (lambda: nn.AvgPool1D(2), (2, 3, 6), (2, 3, 3)),
    (lambda: nn.AvgPool2D((2, 3), padding=(0, 1), count_include_pad=False), (2, 3, 4, 7), (2, 3, 2, 3)),
    (lambda: nn.AvgPool3D(2, 1), (1, 2, 3, 3, 3), (1, 2, 2, 2, 2)),
    (nn.GlobalMaxPool, (2, 3, 4, 5), (2, 3, 1, 1)),
    (nn.GlobalAvgPool, (2, 3, 4), (2, 3, 1)),
    (nn.BatchNorm, (4, 3, 2, 2), (4, 3, 2, 2)),
    (nn.LayerNorm, (4, 3), (4, 3)),
    (lambda: nn.GroupNorm(2), (2, 4, 3), (2, 4, 3)),
    (nn.InstanceNorm, (2, 3, 4, 2), (2, 3, 4, 2)),
    (lambda: nn.RNN(4, activation="tanh"), (5, 2, 3), (5, 2, 4)),
    (lambda: nn.LSTM(4, 2, "NTC", bidirectional=True), (2, 5, 3), (2, 5, 8)),
    (lambda: nn.GRU(4, 2), (5, 2, 3), (5, 2, 4)),
    (lambda: nn.MultiHeadAttention(8, 2), (2, 5, 3), (2, 5, 8)),
    (lambda: nn.TransformerEncoderBlock(8, 2), (2, 5, 8), (2, 5, 8)),
    (lambda: nn.TransformerEncoderBlock(8, 4, 6, activation="gelu", pre_norm=True), (2, 5, 8), (2, 5, 8)),
    (lambda: nn.PositionalEncoding(6, 10), (2, 5, 6), (2, 5, 6)),
    (lambda: nn.PReLU(3), (2, 3, 4), (2, 3, 4)),
    (lambda: nn.HybridSequential(nn.ELU(0.5), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()), (2, 3), (2, 3)),
    (lambda: nn.HybridSequential(nn.Swish(1.5), nn.LeakyReLU(0.2), nn.Flatten()), (2, 3, 2), (2, 6)),
]
NAMES = [f"{type(make()).__name__}-{'x'.join(map(str, given))}" for make, given, _ in LAYERS]


def of_loss(layer: nn.HybridBlock, x: Any, weights: Any) -> tuple[Any, dict[str, Any], Any]:
    """The output, the gradients by parameters, the gradient by the input."""
    operand = wl.nd.array(x)
    operand.attach_grad()
    with wl.autograd.record():
        out = layer(operand)
        total = (out * weights).sum()
    kept = out.numpy()
    total.backward()
    learned = {n: p.grad().numpy() for n, p in layer.collect_params().items() if p.grad_req != "null"}
    assert operand.grad is not None
    return kept, learned, operand.grad.numpy()


@pytest.mark.parametrize(("make", "given", "expected"), LAYERS, ids=NAMES)
def test_a_layer_is_alike_at_once_and_compiled(
    make: Callable[[], nn.HybridBlock], given: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x, weights = drawn(*given), drawn(*expected)
    layers = [make(), make()]
    for layer, hybrid in zip(layers, (False, True), strict=True):
        layer.initialize(seed=1)
        layer.hybridize(hybrid)
    assert layers[0](x).shape == expected
    assert "?" not in repr(layers[0])
    (out, grads, by_x), (again, others, by_x_again) = (of_loss(layer, x, weights) for layer in layers)
    np.testing.assert_allclose(again, out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_x_again, by_x, rtol=1e-4, atol=1e-5)
    for name, gradient in grads.items():
        np.testing.assert_allclose(others[name], gradient, rtol=1e-4, atol=1e-4)
    for one, other in zip(*(layer.collect_params().values() for layer in layers), strict=True):
        np.testing.assert_allclose(other.data().numpy(), one.data().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.HybridSequential(nn.Conv2D(2, 2, activation="tanh"), nn.AvgPool2D(2, 1), nn.Dense(2)),
        lambda: nn.HybridSequential(nn.BatchNorm(), nn.GlobalAvgPool(), nn.Dense(2)),
        lambda: nn.HybridSequential(nn.GroupNorm(2), nn.Flatten(), nn.LayerNorm()),
    ],
)
def test_gradients_through_layers_are_those_of_finite_differences(make: Callable[[], nn.HybridBlock]) -> None:
    net, x = make(), RANDOM.normal(size=(2, 2, 3, 3))
    net.cast("float64").initialize(wl.init.Normal(0.5))
    net(x)
    for hybrid in (False, True):
        net.hybridize(hybrid)
        _out, grads, _ = of_loss(net, x, weights := np.cos(np.arange(net(x).size)).reshape(net(x).shape))
        for name in grads:
            memory = net.collect_params()[name].data().memory.reshape(-1)
            for i in range(0, memory.size, 3):
                kept, sums = memory[i], []
                for step in (1e-6, -1e-6):
                    memory[i] = kept + step
                    with wl.autograd.train_mode():
                        sums.append(float((net(x).numpy() * weights).sum()))
                memory[i] = kept
                slope = (sums[0] - sums[1]) / 2e-6
                assert grads[name].reshape(-1)[i] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_moving_averages_follow_the_batches_at_once_and_compiled() -> None:
    x = drawn(8, 3, 2, 2) * 2 + 1
    mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    for hybrid in (False, True):
        for record in (False, True):
            layer = nn.BatchNorm(momentum=0.8)
            layer.initialize()
            layer.hybridize(hybrid)
            with wl.autograd.record() if record else wl.autograd.train_mode():
                out = layer(x)
            np.testing.assert_allclose(out.numpy().mean(axis=(0, 2, 3)), 0, atol=1e-5)
            np.testing.assert_allclose(layer.running_mean.data().numpy(), 0.2 * mean, rtol=1e-5)
            np.testing.assert_allclose(layer.running_var.data().numpy(), 0.8 + 0.2 * variance, rtol=1e-5)
            moved = layer.running_mean.data().numpy()
            deviation = np.sqrt(0.8 + 0.2 * variance + 1e-5)
            expected = (x - 0.2 * mean[:, None, None]) / deviation[:, None, None]
            np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(layer.running_mean.data().numpy(), moved)


def test_batch_norm_by_global_statistics_leaves_them() -> None:
    layer = nn.BatchNorm(use_global_stats=True, scale=False)
    layer.initialize()
    x = drawn(4, 3)
    with wl.autograd.record():
        out = layer(x)
    np.testing.assert_allclose(out.numpy(), x / np.sqrt(1 + 1e-5), rtol=1e-5)
    out.backward()
    assert layer.gamma.grad_req == "null"
    np.testing.assert_allclose(layer.beta.grad().numpy(), [4, 4, 4])


CELLS = [(nn.RNNCell, nn.RNN, {"activation": "tanh"}), (nn.LSTMCell, nn.LSTM, {}), (nn.GRUCell, nn.GRU, {})]


@pytest.mark.parametrize(("cell_type", "layer_type", "options"), CELLS, ids=["rnn", "lstm", "gru"])
def test_a_cell_unrolled_is_a_layer(cell_type: Any, layer_type: Any, options: dict[str, Any]) -> None:
    cell, layer = cell_type(4), layer_type(4, **options)
    cell.initialize(wl.init.Normal(0.5))
    layer.initialize()
    outs, states = cell.unroll(5, wl.nd.array(STEPS), layout="TNC")
    layer(STEPS)
    for name, parameter in cell.collect_params().items():
        parameter.set_data(parameter.data().numpy() + 0.1)
        layer.collect_params()[f"l0_{name}"].set_data(parameter.data())
    outs, states = cell.unroll(5, wl.nd.array(STEPS), layout="TNC")
    found, last = layer(STEPS, layer.begin_state(2))
    np.testing.assert_allclose(outs.numpy(), found.numpy(), rtol=1e-4, atol=1e-5)
    for one, other in zip(states, last, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy()[0], rtol=1e-4, atol=1e-5)
    listed, _ = cell.unroll(5, [wl.nd.array(x) for x in STEPS], cell.begin_state(2))
    np.testing.assert_allclose(listed[-1].numpy(), outs.numpy()[-1], rtol=1e-5)


def test_a_sequence_in_two_parts_with_states_is_the_whole() -> None:
    layer = nn.LSTM(4, 2)
    layer.initialize()
    whole = layer(STEPS).numpy()
    for hybrid in (False, True):
        layer.hybridize(hybrid)
        first, states = layer(STEPS[:3], layer.begin_state(2))
        second, _ = layer(STEPS[3:], states)
        np.testing.assert_allclose(np.concatenate([first.numpy(), second.numpy()]), whole, rtol=1e-5, atol=1e-6)


def test_one_state_may_be_given_alone() -> None:
    layer = nn.GRU(4)
    layer.initialize()
    _, state = layer(STEPS, wl.nd.zeros((1, 2, 4)))
    assert state.shape == (1, 2, 4)
    lstm = nn.LSTM(4)
    lstm.initialize()
    with pytest.raises(UsageError, match=r"LSTM has 2 states .*got=1"):
        lstm(STEPS, wl.nd.zeros((1, 2, 4)))


def test_dropout_between_recurrent_layers_acts_in_training_alone() -> None:
    layer = nn.LSTM(4, 2, dropout=0.5)
    layer.initialize()
    plain = layer(STEPS).numpy()
    np.testing.assert_array_equal(layer(STEPS).numpy(), plain)
    with wl.autograd.train_mode():
        assert not np.allclose(layer(STEPS).numpy(), plain)


def test_attention_is_that_of_the_paper() -> None:
    layer = nn.MultiHeadAttention(4, 2)
    layer.initialize(wl.init.Normal(0.5))
    x, source = drawn(2, 3, 4), drawn(2, 5, 4)
    mask = (RANDOM.random((2, 1, 3, 5)) > 0.3).astype(np.float32)
    mask[..., 0] = 1
    parameters = {name: p for name, p in layer.collect_params().items() if name.endswith("bias")}
    layer(x)
    for parameter in parameters.values():
        parameter.set_data(drawn(4))

    def projected(name: str, given: Any) -> Any:
        weight, bias = (layer.collect_params()[f"{name}.{part}"].data().numpy() for part in ("weight", "bias"))
        return given @ weight.T + bias

    q, k, v = projected("query", x), projected("key", source), projected("value", source)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        scores = q[..., head] @ k[..., head].swapaxes(1, 2) / np.sqrt(2)
        p = np.exp(scores) * mask[:, 0]
        heads.append(p / p.sum(axis=-1, keepdims=True) @ v[..., head])
    expected = projected("out", np.concatenate(heads, axis=-1))
    for hybrid in (False, True):
        layer.hybridize(hybrid)
        np.testing.assert_allclose(layer(x, source, mask=mask).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_sees_no_later_step() -> None:
    block = nn.HybridSequential(nn.PositionalEncoding(8))
    decoder = nn.TransformerDecoderBlock(8, 2, pre_norm=True)
    decoder.initialize()
    block.initialize()
    x, source = block(drawn(1, 6, 8)), wl.nd.array(drawn(1, 4, 8))
    full = decoder(x, source).numpy()
    np.testing.assert_allclose(decoder(x[:, :3], source).numpy(), full[:, :3], rtol=1e-4, atol=1e-5)
    assert nn.TransformerDecoderBlock(8, 2).pre_norm is False


def test_positions_are_sines_and_cosines() -> None:
    layer = nn.PositionalEncoding(6, max_length=4)
    layer.initialize()
    found = layer(np.zeros((1, 4, 6), np.float32)).numpy()[0]
    for t, i in np.ndindex(4, 3):
        angle = t / 10000 ** (2 * i / 6)
        assert found[t, 2 * i : 2 * i + 2] == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-6)
    with pytest.raises(UsageError, match=r"longer than its positions .*steps=5, max_length=4"):
        layer(np.zeros((1, 5, 6), np.float32))


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.Dense(0), "units is a whole number above 0"),
    (lambda: nn.Dropout(1.0), "0 <= rate < 1"),
    (lambda: nn.Conv2D(4, (3, 3, 3)), "kernel_size is one whole number, or one for each axis"),
    (lambda: nn.Conv2D(4, 3, groups=2, in_channels=3), "channels come in groups"),
    (lambda: nn.LSTM(4, layout="NCT"), "no layout.*Did you mean TNC"),
    (lambda: nn.RNN(4, activation="rely"), "Did you mean relu"),
    (lambda: nn.MultiHeadAttention(6, 4), "units are shared by the heads"),
    (lambda: nn.GELU("erv"), "Did you mean erf"),
    (lambda: nn.LSTMCell(3).unroll(4, [1, 2]), "another number of steps"),
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_a_wrong_layer_is_refused_in_words(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_nodes_of_a_trace_carry_the_paths_of_their_blocks() -> None:
    net = nn.HybridSequential(nn.Conv2D(2, 3, activation="relu"), nn.BatchNorm(), nn.Flatten(), nn.Dense(2))
    net.initialize()
    graph = net.traced(drawn(1, 1, 4, 4))
    ops = [node.name for node in graph.nodes if not node.is_variable]
    assert ops == ["0.convolution0", "0.activation.relu0", "1.batch_norm0", "2.flatten0", "3.fully_connected0"]
    assert [node.name for node in graph.auxiliaries] == ["1.running_mean", "1.running_var"]
    with pytest.raises(UsageError, match=r"convolution"):
        net(drawn(1, 2, 4, 4))


def test_ctc_pads_labels_below_zero_and_takes_the_last_class_as_blank() -> None:
    scores = drawn(2, 4, 3)
    labels = np.array([[0, -1], [1, 0]])
    loss = wl.loss.CTC()
    p = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    expected = []
    for sample, spelled in zip(p, ([0], [1, 0]), strict=True):
        total = 0.0
        for path in np.ndindex(*[3] * 4):
            merged = [c for i, c in enumerate(path) if c != 2 and (i == 0 or path[i - 1] != c)]
            total += float(np.prod(sample[range(4), path])) if merged == spelled else 0.0
        expected.append(-np.log(total))
    for hybrid in (False, True):
        loss.hybridize(hybrid)
        np.testing.assert_allclose(loss(scores, labels).numpy(), expected, rtol=1e-4)
    turned = wl.loss.CTC("TNC")(scores.transpose(1, 0, 2), labels, np.array([4, 4]), np.array([1, 2]))
    np.testing.assert_allclose(turned.numpy(), expected, rtol=1e-4)
