"""What wakes a thread that polls, on systems with eventfds and without."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from windlass_proto.links.bell import Bell


@pytest.fixture(params=["eventfd", "pipe"])
def bell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bell]:
    if request.param == "pipe":
        monkeypatch.delattr(os, "eventfd", raising=False)
    made = Bell()
    yield made
    made.close()


def is_rung(bell: Bell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_ring_is_heard_once(bell: Bell) -> None:
    assert not is_rung(bell)
    bell.ring()
    bell.ring()
    assert is_rung(bell)
    bell.hear()
    assert not is_rung(bell)
    bell.hear()
    bell.ring()
    assert is_rung(bell)


def test_ringing_never_blocks_however_long_nobody_hears(bell: Bell) -> None:
    for _ in range(100_000):
        bell.ring()
    bell.hear()
    assert not is_rung(bell)
