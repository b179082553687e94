"""A good client beside hostile ones: it trains all the while, and sees exactly what it would have seen alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.conformance.served import Served, Session
from windlass_proto import limits
from windlass_proto.frames import Entry
from windlass_proto.group_specs import GroupSpec
from windlass_proto.links.stream import FrameReader, Place

ELEMENTS = 40_000
MIB = limits.MIB


class Neighbour:
    """A good client that trains beside the bad: each step takes one from every weight, and it sees exactly that."""

    def __init__(self, served: Served, kind: str) -> None:
        self.spec = served.declare(ELEMENTS, consistency="bsp", table=50, store=40)
        self.session = Session(self.spec, served.targets[kind])
        served.count(self.session.session, store=40)
        self.session.init(np.zeros(ELEMENTS, np.float32))
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        found = self.session.push_pull(np.ones(ELEMENTS, np.float32))
        assert (found == -self.steps).all()


@contextmanager
def beside_a_good_client(kind: str = "tcp", **served_as: Any) -> Iterator[tuple[Served, GroupSpec, Neighbour]]:
    """A server with a table for the bad (TABLE in STORE, asp) and one for the good, who steps before and after."""
    with Served(**served_as) as served:
        spec = served.declare(ELEMENTS)
        neighbour = Neighbour(served, kind)
        neighbour.step()
        yield served, spec, neighbour
        neighbour.step()
        neighbour.session.close()
        served.await_connections(0)
        served.validate()
        assert served.pool.bytes_lent == 0


def is_closed(sock: socket.socket, within_s: float = 5.0) -> bool:
    """Has the server ended this link? Answers that come before are read over."""
    sock.settimeout(within_s)
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def answers(sock: socket.socket, count: int, *, checksum: bool = True) -> dict[int, Entry]:
    """The next `count` answers by tag."""
    sock.settimeout(10.0)
    reader = FrameReader(
        sock, lambda header, _: Place([memoryview(bytearray(header.payload_bytes))]), checksum=checksum
    )
    found: dict[int, Entry] = {}
    while len(found) < count:
        arrived = reader.read()
        assert arrived is not None, f"{len(found)} of {count} answers came"
        found |= {entry.tag: entry for entry in arrived.entries}
    return found


def block_bytes(spec: GroupSpec, block: int = 0, value: float = 1.0) -> bytes:
    return np.full(spec.layout.blocks[block].elements, value, np.float32).tobytes()
