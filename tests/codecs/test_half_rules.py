"""Every dense rule runs on the float32 masters of half tensors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rules.conftest import SPECS
from windlass_proto.consistency import Consistency
from windlass_proto.frames import Op
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.memory import BufferPool
from windlass_proto.rule_specs import RuleSpec
from windlass_rules import build
from windlass_server.dense import DenseGroup
from windlass_server.dense_memory import Gradient
from windlass_server.node import ServerNode
from windlass_server.share_events import Source


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_rule_updates_float32_masters_of_halves(spec: RuleSpec) -> None:
    layout = GroupLayout(1, "float16", (TensorSpec("w", (100,)),), 1024, 1)
    node = ServerNode(BufferPool(1 << 24))
    node.own(range(1), 1)
    group = node.declare(GroupSpec(1, layout, spec, True, Consistency.parse("asp")))
    assert isinstance(group, DenseGroup)
    block = layout.blocks[0]
    arrays = group.shares[block.vshard].arrays[0]
    assert {vector.dtype for vector in (arrays.weights, *arrays.slots)} == {np.dtype(np.float32)}
    sent = np.random.default_rng(0).normal(size=block.elements).astype(np.float16)
    values = group.wire.values_untrusted(sent.view(np.uint8), None, Gradient(Op.PUSH, block, 0, 1, 0, False))
    assert values is not None
    assert values.array.tolist() == sent.tolist()
    assert values.buffer is not None
    kernels = build(spec, "float32")
    if any(slot.per.name == "WORKER" for slot in kernels.slots):
        return  # its copies of weights are float32 as well; the kernel needs a worker to compare with
    expected = np.zeros(block.elements, np.float32)
    slots = tuple(np.full(block.elements, slot.fill, np.float32) for slot in kernels.slots)
    scalars = kernels.scalars(spec, 1)
    kernels.update(expected, slots, 0, sent.astype(np.float32), 1.0, scalars)
    source = Source(values, 0, 1.0)
    group.memory.update(arrays.weights, arrays.slots, 0, block.elements, (source,), 0, 1.0, scalars, None)
    answer = np.zeros(2 * block.elements, np.uint8)
    group.wire.encode(arrays.weights, answer, block, 0, 1)
    assert np.array_equal(arrays.weights, expected)
    assert answer.view(np.float16).tolist() == expected.astype(np.float16).tolist()
    values.buffer.release()
