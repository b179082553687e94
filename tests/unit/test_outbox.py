"""The answers of a connection: which goes first, and that nobody is shown an older version after a newer one."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import limits
from windlass_proto.frames import Entry, Op, Status, priority_byte, priority_of
from windlass_proto.memory import BufferPool
from windlass_server.outbox import Outbox
from windlass_server.replies import Origin, Reply


def reply(tag: int, *, block: int = 0, priority: int = 0, pool: BufferPool | None = None, nbytes: int = 0) -> Reply:
    origin = Origin(None, tag, 1, Op.PULL, None, None, priority)
    snapshot = pool.take(nbytes) if pool is not None else None
    return Reply(origin, Status.OK, block, 0, 1, 0, snapshot, None)


def sent(outbox: Outbox) -> list[int]:
    tags = []
    while outbox:
        batch = outbox.next_batch()
        assert batch
        tags += [one.origin.tag for one in batch]
    return tags


def test_answers_of_a_higher_priority_go_first_and_equal_ones_in_their_order() -> None:
    outbox = Outbox()
    for tag, priority in enumerate((0, 5, -3, 5, 0)):
        outbox.post(reply(tag, block=tag, priority=priority))
    assert sent(outbox) == [1, 3, 0, 4, 2]


def test_an_answer_takes_earlier_ones_of_its_block_along() -> None:
    outbox = Outbox()
    outbox.post(reply(0, block=1))
    outbox.post(reply(1, block=2, priority=-1))
    outbox.post(reply(2, block=1, priority=-1))
    outbox.post(reply(3, block=1, priority=7))
    assert sent(outbox) == [0, 2, 3, 1]


def test_what_is_urgent_overtakes_between_frames_of_what_is_not() -> None:
    outbox, pool = Outbox(), BufferPool(64 * limits.MIB)
    for tag in range(8):
        outbox.post(reply(tag, block=tag, pool=pool, nbytes=limits.MIB))
    first = outbox.next_batch()
    outbox.post(reply(9, block=9, priority=1, pool=pool, nbytes=64))
    second = outbox.next_batch()
    assert [one.origin.tag for one in first] == [0, 1]
    assert second[0].origin.tag == 9
    assert outbox.answers_bytes == 8 * limits.MIB + 64
    release = outbox.releasing([one.snapshot for one in first + second if one.snapshot is not None])
    assert release is not None
    release()
    outbox.close()
    assert pool.bytes_lent == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2), st.booleans())))
def test_everything_is_sent_once_and_a_block_keeps_its_order(posts: list[tuple[int, int, bool]]) -> None:
    outbox, told = Outbox(), list[int]()
    for tag, (block, priority, sends) in enumerate(posts):
        outbox.post(reply(tag, block=block, priority=priority))
        if sends:
            told += [one.origin.tag for one in outbox.next_batch()]
    told += sent(outbox)
    assert Counter(told) == Counter(range(len(posts)))
    for block in range(4):
        of_block = [tag for tag in told if posts[tag][0] == block]
        assert of_block == sorted(of_block)


def test_a_priority_travels_as_far_as_a_byte_holds_it() -> None:
    entry = Entry._make([0] * 15 + [0.0, 0, 0, 0])
    for priority in (-1000, -128, -1, 0, 1, 127, 1000):
        travelled = priority_of(entry._replace(status=priority_byte(priority)))
        assert travelled == int(np.clip(priority, -128, 127))
