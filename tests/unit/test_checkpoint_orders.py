"""Orders for checkpoints: what a worker asks comes as it was sent, and nonsense is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import checkpoint_orders, limits
from windlass_proto.checkpoint_orders import Order, Phase, SavedPart
from windlass_proto.errors import ProtocolError

ORDER = Order(Phase.COPY, "ab" * 16, 3, 7, "/runs/x/step-000007", ((0, 5), (2, 9)), "part-0-0badcafe.safetensors", "")


@pytest.mark.parametrize("phase", Phase)
def test_an_order_comes_as_it_was_sent(phase: Phase) -> None:
    order = Order(phase, "k", 3, 7, "/x", ((0, 5), (2, 9)), manifest="cd")
    assert checkpoint_orders.from_bytes_untrusted(checkpoint_orders.to_bytes(order)) == order


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "burn"},
        {"folder": "relative/folder"},
        {"folder": "/a\0b"},
        {"file": "../../etc/passwd"},
        {"file": "/etc/part-0-0badcafe.safetensors"},
        {"clock": -1},
        {"clock": True},
        {"tables": [[0, 1 << 70]]},
        {"tables": [1, 2]},
        {"key": 5},
    ],
    ids=str,
)
def test_an_order_that_is_none_is_refused(change: dict[str, object]) -> None:
    record = json.loads(checkpoint_orders.to_bytes(ORDER)) | change
    with pytest.raises(ProtocolError, match="an order cannot be read"):
        checkpoint_orders.from_bytes_untrusted(json.dumps(record).encode())


@given(st.binary(max_size=100))
def test_bytes_that_are_no_order_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        checkpoint_orders.from_bytes_untrusted(raw)


def test_an_order_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        checkpoint_orders.from_bytes_untrusted(bytes(limits.ORDER_BYTES_MAX + 1))


def test_a_parts_length_and_digest_fit_the_answer() -> None:
    written = SavedPart(1 << 40, "0123456789abcdef" * 2, whole=False)
    assert checkpoint_orders.unpack_answer(checkpoint_orders.pack_answer(written)) == written
    assert len(checkpoint_orders.pack_answer(None)) == checkpoint_orders.ANSWER_BYTES
