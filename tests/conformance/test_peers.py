"""Links between servers: what is said of norms is answered with totals, also where a link breaks or a table is late."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conformance.served import KEY, TABLE, Served
from windlass_proto import keys
from windlass_proto.errors import ProtocolError
from windlass_proto.frames import Entry, Op
from windlass_proto.rule_specs import SGD
from windlass_server.peers import Partial, PeerAddress, Peers
from windlass_server.share_events import LEFT

WAIT_S = 20.0
RULE = SGD(lr=1.0, clip_global_norm=1.0)
GROUP = 1  # the scope after the one tensor
SESSION = b"p" * 16


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.close()


def peers_of(served: Served, kind: str, answers: queue.Queue[Any]) -> Peers:
    """Another server's links to `served`, which owns everything."""
    peers = Peers(KEY, SESSION, lambda said, totals: answers.put((said, totals)))
    where = ((kind, served.targets[kind].address),)
    peers.know((PeerAddress("server-9", range(keys.VSHARDS_DEFAULT), where),))
    return peers


def partial(block: int, clock: int, *sums: float) -> Partial:
    return Partial(TABLE, GROUP, block, clock, 0, sums)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_partials_are_answered_with_the_bits_of_their_total(served: Served, kind: str) -> None:
    served.declare(3 * 1024, consistency="bsp", block_elements=1024, rule=RULE)
    answers: queue.Queue[Any] = queue.Queue()
    peers = peers_of(served, kind, answers)
    try:
        said = [partial(block, 0, 0.1 * block + 0.1) for block in range(3)]
        for each in said:
            peers.say(0, each)
        found = [answers.get(timeout=WAIT_S) for _ in said]
        assert {each for each, _ in found} == set(said)
        assert {totals for _, totals in found} == {((0.1 + 0.2) + (0.1 * 2 + 0.1),)}
    finally:
        peers.close()


def test_what_is_said_before_the_table_is_declared_is_said_again(served: Served) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    peers = peers_of(served, "tcp", answers)
    try:
        peers.say(0, partial(0, 4, 2.0))
        peers.say(0, partial(1, 5))
        served.declare(2 * 1024, consistency="bsp", block_elements=1024, rule=RULE)
        assert answers.get(timeout=WAIT_S) == (partial(0, 4, 2.0), (2.0,))
    finally:
        peers.close()


def test_what_was_not_answered_when_a_link_broke_is_said_again(served: Served) -> None:
    served.declare(2 * 1024, consistency="bsp", block_elements=1024, rule=RULE)
    answers: queue.Queue[Any] = queue.Queue()
    peers = peers_of(served, "tcp", answers)
    try:
        peers.say(0, partial(0, 0, 1.0))
        wait_until(lambda: bool(served.node.reductions.awaited(TABLE)))
        for _ in range(3):
            served.raw_link("tcp", SESSION).close()  # a later connection of a session ends the earlier one
        peers.say(0, partial(1, 0, 3.0))
        found = {answers.get(timeout=WAIT_S) for _ in range(2)}
        assert found == {(partial(0, 0, 1.0), (4.0,)), (partial(1, 0, 3.0), (4.0,))}
    finally:
        peers.close()


def test_norms_are_added_for_others_after_all_that_lies_here_was_deleted(served: Served) -> None:
    """Blocks 0 and 2 are this server's; another one's block 1 lives on, and in the end says so."""
    spec = served.declare(3 * 1024, consistency="bsp", block_elements=1024, rule=RULE)
    answers: queue.Queue[Any] = queue.Queue()
    peers = peers_of(served, "tcp", answers)
    try:
        peers.say(0, partial(1, 0, 3.0))
        wait_until(lambda: bool(served.node.reductions.awaited(TABLE)))
        served.node.reductions.leave(spec.table_id)
        peers.say(0, partial(0, LEFT))
        peers.say(0, partial(2, LEFT))
        assert answers.get(timeout=WAIT_S) == (partial(1, 0, 3.0), (3.0,))
        assert served.node.reductions.holds(TABLE)
        peers.say(0, partial(1, LEFT))
        wait_until(lambda: not served.node.reductions.holds(TABLE))
    finally:
        peers.close()


def test_a_server_that_is_not_there_is_waited_for_and_close_does_not_hang() -> None:
    spare = socket.socket()
    spare.bind(("127.0.0.1", 0))
    peers = Peers(KEY, SESSION, lambda _said, _totals: None)
    peers.know((PeerAddress("server-9", range(4), (("tcp", f"127.0.0.1:{spare.getsockname()[1]}"),)),))
    peers.say(0, partial(0, 0, 1.0))
    peers.close()
    spare.close()


@pytest.mark.parametrize(
    ("entry", "raw"),
    [
        ({"seg_end": 0}, bytes(8)),
        ({"block": 2}, bytes(8)),
        ({}, bytes(12)),
        ({}, b"\0\0\0\0\0\0\xf0\xbf"),
        ({"clock": LEFT + 1}, bytes(8)),
    ],
    ids=["scope", "block", "length", "negative", "step"],
)
def test_what_no_server_says_is_refused(served: Served, entry: dict[str, int], raw: bytes) -> None:
    served.declare(2 * 1024, consistency="bsp", block_elements=1024, rule=RULE)
    fields = Entry(Op.REDUCE, 0, 0, TABLE, 0, 1, 0, 0, 0, GROUP, 0, len(raw), 0, 0, 0, 0.0, 0, 0, 0)._replace(**entry)
    with pytest.raises(ProtocolError, match="norm"):
        served.node.reductions.hear_untrusted(fields, raw, None)


def wait_until(holds: Callable[[], bool]) -> None:
    pause, deadline = threading.Event(), 0
    while not holds():
        deadline += 1
        assert deadline < WAIT_S * 100, "it did not come about in time"
        pause.wait(0.01)
