"""Encoded gradients that no worker would send: the link ends, the weights stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.served import STORE, TABLE, Served, frame, push_entry
from windlass_proto import keys
from windlass_proto.codec_specs import CodecSpec, Int8, TopK
from windlass_proto.codecs.registry import build
from windlass_proto.consistency import Consistency
from windlass_proto.frames import Op
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.rule_specs import SGD
from windlass_proto.transfer_specs import Transfer

ELEMENTS = 1024


def encoded(spec: CodecSpec) -> np.ndarray:
    wire = np.zeros(build(spec).room(ELEMENTS), np.uint8)
    build(spec).encode(np.ones(ELEMENTS, np.float32), wire[: build(spec).wire_bytes(ELEMENTS)])
    return wire


def with_scale(scale: float) -> bytes:
    wire = encoded(Int8())
    wire[:4].view(np.float32)[0] = scale
    return wire.tobytes()


def with_place(place: int) -> bytes:
    wire = encoded(TopK())
    wire[4:8].view(np.uint32)[0] = place
    return wire.tobytes()


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        (Int8(), encoded(Int8()).tobytes()[:-64]),
        (Int8(), encoded(Int8()).tobytes() + bytes(64)),
        (Int8(), np.ones(ELEMENTS, np.float32).tobytes()),
        (Int8(), with_scale(-1.0)),
        (Int8(), with_scale(float("inf"))),
        (TopK(), with_place(0)),
        (TopK(), with_place(ELEMENTS)),
        (TopK(), with_place(0xFFFFFFFF)),
    ],
)
def test_a_gradient_that_cannot_be_decoded_ends_its_link_alone(codec: CodecSpec, payload: bytes) -> None:
    layout = GroupLayout(TABLE, "float32", (TensorSpec("w", (ELEMENTS,)),), 1024, keys.VSHARDS_DEFAULT)
    spec = GroupSpec(
        STORE, layout, SGD(lr=1.0), mean=False, consistency=Consistency.parse("asp"), transfer=Transfer(up=codec)
    )
    with Served() as served:
        served.node.declare(spec)
        entry = push_entry(spec, 0, 1, nbytes=len(payload))
        with served.raw_link() as hostile, served.raw_link() as other:
            hostile.sendall(frame([entry], payload))
            assert hostile.recv(1) == b"", "the server closed the link"
            served.await_connections(1)
            good = encoded(codec).tobytes()
            other.sendall(frame([entry._replace(nbytes=len(good))], good))
            assert other.recv(4) == b"WLF1", "and answers the others"
        assert not served.weights().any()
        assert served.pool.bytes_lent == 0
        served.validate()


@pytest.mark.parametrize("base", [2, 1 << 31, (1 << 32) - 2])
@pytest.mark.parametrize("op", [Op.PULL, Op.PUSH_PULL])
def test_who_names_weights_that_nobody_was_shown_loses_its_link_alone(base: int, op: Op) -> None:
    layout = GroupLayout(TABLE, "float32", (TensorSpec("w", (ELEMENTS,)),), 1024, keys.VSHARDS_DEFAULT)
    transfer = Transfer(down=Int8())
    spec = GroupSpec(STORE, layout, SGD(lr=1.0), False, Consistency.parse("bsp"), transfer)
    values = np.ones(ELEMENTS, np.float32).tobytes()
    with Served() as served:
        served.node.declare(spec)
        with served.raw_link() as hostile, served.raw_link() as other:
            other.sendall(frame([push_entry(spec, 0, 1, op=Op.INIT)], values))  # the first state
            assert other.recv(64)[:4] == b"WLF1"
            sent = b"" if op is Op.PULL else values
            hostile.sendall(frame([push_entry(spec, 0, 1, op=op, nbytes=len(sent), aux=base)], sent))
            assert hostile.recv(1) == b"", "the server closed the link"
            served.await_connections(1)
            for state in (0, 1):
                other.sendall(frame([push_entry(spec, 0, 0, op=Op.PULL, nbytes=0, aux=state, tag=state)]))
                assert other.recv(1 << 16), "and answers the others"
        served.await_connections(0)
        assert (served.weights() == 1.0).all()
        assert served.pool.bytes_lent == 0
        served.validate()
