"""What codecs do to learning: two workers learn the real digits, each gradient through a codec, as a cluster would.

In one process and without links: the kernels, the feedback and the rule are those of a cluster, which
`tests/cluster/test_codecs.py` compares with this arithmetic.
"""

from __future__ import annotations

import functools
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from windlass.datasets import load_digits
from windlass_proto import memory
from windlass_proto.codec_specs import (
    BFloat16,
    CodecSpec,
    Dithering,
    Float16,
    Int8,
    OneBit,
    RandomK,
    TopK,
    TwoBit,
)
from windlass_proto.codecs.registry import build
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.memory import BufferPool
from windlass_proto.rule_specs import SGD, RuleSpec
from windlass_rules import registry
from windlass_server.shown_weights import ShownWeights

DIGITS = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "digits.py"))
WORKERS = 2
EPOCHS = 25
BATCH = 32
RULE = SGD(lr=0.2)
POOL = BufferPool(1 << 30)

Vector = np.ndarray[Any, Any]


class Tensor:
    """One parameter on a server, and what each worker keeps back of its gradients."""

    def __init__(self, first: Vector, rule: RuleSpec, codec: CodecSpec | None, down: CodecSpec | None) -> None:
        self.kernels = registry.build(rule, "float32")
        self.rule = rule
        self.codec = build(codec) if codec is not None else None
        self.weights = memory.aligned_zeros(first.size, np.float32)
        self.weights[:] = first.reshape(-1)
        self.shape = first.shape
        self.slots = tuple(memory.aligned_zeros(first.size, np.float32) for _ in self.kernels.slots)
        self.errors = [memory.aligned_zeros(first.size, np.float32) for _ in range(WORKERS)]
        self.nbytes = self.nbytes_down = 0
        (self.block,) = GroupLayout(0, "float32", (TensorSpec("w", first.shape),), 1 << 17, 2).blocks
        self.shown = ShownWeights(self.block, build(down), [0], POOL) if down is not None else None
        if self.shown is not None:
            self.shown.begin_anew(0, 1, self._present())

    def _present(self) -> Vector:
        """The weights as a server holds them, padding included."""
        return np.pad(self.weights, (0, self.block.segments[0].end - self.weights.size))

    def read(self, step: int) -> Vector:
        """What workers hold after `step` steps; each reads every one."""
        if self.shown is None:
            return self.weights.reshape(self.shape)
        before = self.shown.number
        self.shown.step(0, 1)
        self.shown.show(self._present(), 0, 1, [step], lossy=True)
        self.nbytes_down += WORKERS * self.shown.showing(before, 0, 1).nbytes
        return self.shown.values[: self.weights.size].reshape(self.shape)

    def travel(self, gradient: Vector, worker: int, seed: int) -> Vector:
        values = np.ascontiguousarray(gradient).reshape(-1)
        if self.codec is None:
            return values
        wire = memory.aligned_zeros(self.codec.wire_bytes(values.size), np.uint8).view(np.uint8)
        found = memory.aligned_zeros(values.size, np.float32)
        error = self.errors[worker] if self.codec.spec.feedback else None
        self.codec.encode(values, wire, error, seed)
        self.codec.decode_untrusted(wire, found)
        self.nbytes += wire.nbytes
        return found

    def step(self, gradients: list[Vector], step: int) -> None:
        mean = memory.aligned_zeros(self.weights.size, np.float32)
        mean[:] = sum(gradients) / np.float32(len(gradients))
        self.kernels.update(self.weights, self.slots, 0, mean, 1.0, self.kernels.scalars(self.rule, step))


@functools.cache
def learned(codec: CodecSpec | None, down: CodecSpec | None = None) -> tuple[float, float, float]:
    """Test accuracy of what workers hold after training; bytes of gradients and of weights as shares of float32's."""
    x, y = load_digits()
    test = np.arange(len(x)) % 5 == 0
    train_x, train_y = x[~test], y[~test]
    tensors = {name: Tensor(first, RULE, codec, down) for name, first in DIGITS["initial"](0).items()}
    random, step = np.random.default_rng(0), 0
    for _ in range(EPOCHS):
        order = random.permutation(len(train_x))
        for at in range(0, len(order) - WORKERS * BATCH + 1, WORKERS * BATCH):
            step += 1
            params = {name: tensor.read(step - 1) for name, tensor in tensors.items()}
            rows = [order[at + w * BATCH : at + (w + 1) * BATCH] for w in range(WORKERS)]
            found = [DIGITS["loss_and_grads"](params, train_x[r], train_y[r])[1] for r in rows]
            for name, tensor in tensors.items():
                sent = [tensor.travel(grads[name], w, step * WORKERS + w) for w, grads in enumerate(found)]
                tensor.step(sent, step)
    params = {name: tensor.read(step) for name, tensor in tensors.items()}
    accuracy = (DIGITS["forward"](params, x[test])[1].argmax(axis=1) == y[test]).mean()
    raw = 4 * step * WORKERS * sum(tensor.weights.size for tensor in tensors.values())
    up, back = (sum(getattr(tensor, name) for tensor in tensors.values()) for name in ("nbytes", "nbytes_down"))
    return float(accuracy), up / raw, back / raw


# Of float32's bytes, at most: small tensors pay for a whole 64 bytes of scales.
CODECS: dict[CodecSpec, float] = {
    Float16(): 0.5,
    BFloat16(): 0.5,
    Int8(): 0.28,
    OneBit(block=64): 0.06,
    TwoBit(threshold=0.05): 0.07,
    TopK(ratio=0.02): 0.05,
    RandomK(ratio=0.1): 0.12,
    Dithering(bits=4): 0.15,
    Dithering(bits=4, natural=True): 0.15,
}


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_learning_with_a_codec_is_as_good_as_without_to_one_percent(codec: CodecSpec) -> None:
    baseline, *_ = learned(None)
    accuracy, share, _ = learned(codec)
    assert baseline >= 0.96
    assert accuracy >= baseline - 0.01
    assert share <= CODECS[codec]


# As above; small tensors travel whole, and each tensor has 64 bytes of head.
DOWN: dict[CodecSpec, float] = {
    Int8(): 0.27,
    OneBit(block=64): 0.065,
    TwoBit(threshold=0.005): 0.075,
    TopK(ratio=0.05): 0.12,
    RandomK(ratio=0.1): 0.12,
    Dithering(bits=4): 0.145,
}


@pytest.mark.parametrize("codec", DOWN, ids=repr)
def test_learning_from_deltas_of_weights_is_as_good_as_from_weights_to_one_percent(codec: CodecSpec) -> None:
    baseline, *_ = learned(None)
    accuracy, _, share = learned(None, codec)
    assert accuracy >= baseline - 0.01
    assert share <= DOWN[codec]


def test_learning_with_one_bit_both_ways_is_as_good_to_one_percent() -> None:
    baseline, *_ = learned(None)
    accuracy, up, down = learned(OneBit(block=64), OneBit(block=64))
    assert accuracy >= baseline - 0.01
    assert up + down <= 0.12
