"""Memory for kernels: aligned, lent to one borrower at a time, never beyond the pool's bound."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import limits, memory
from windlass_proto.errors import UnavailableError
from windlass_proto.memory import Buffer, BufferPool

KIB64 = 64 * limits.KIB


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@given(st.integers(0, 300_000), st.sampled_from(["float32", "float64"]))
def test_arrays_start_on_a_cache_line_and_hold_zeros(elements: int, dtype: str) -> None:
    array = memory.aligned_zeros(elements, dtype)
    assert address(array) % limits.ALIGN_BYTES == 0
    assert array.shape == (elements,)
    assert array.dtype == dtype
    assert not array.any()
    array += 1  # writable


def test_buffers_are_of_the_size_asked_for_and_start_on_a_page() -> None:
    pool = BufferPool(limits.MIB)
    for nbytes in (0, 1, 64, KIB64, KIB64 + 1):
        buffer = pool.take(nbytes)
        assert buffer.array.nbytes == nbytes
        assert address(buffer.array) % 4096 == 0 or nbytes == 0
        buffer.release()


def test_a_returned_buffer_is_lent_again() -> None:
    pool = BufferPool(limits.MIB)
    first = pool.take(1000)
    where = address(first.array)
    first.release()
    again = pool.take(2000)
    assert address(again.array) == where
    assert (pool.bytes_lent, pool.bytes_kept) == (KIB64, 0)
    again.release()


def test_a_buffer_is_lent_to_one_borrower_at_a_time() -> None:
    pool = BufferPool(limits.MIB)
    held = [pool.take(1000) for _ in range(16)]
    assert len({address(buffer.array) for buffer in held}) == 16
    for buffer in held:
        buffer.release()


def test_a_buffer_comes_back_when_its_last_holder_lets_go() -> None:
    pool = BufferPool(limits.MIB)
    buffer = pool.take(1000)
    buffer.hold()
    buffer.hold()
    buffer.release()
    buffer.release()
    assert pool.bytes_lent == KIB64
    buffer.release()
    assert pool.bytes_lent == 0


def test_a_pool_lends_no_more_than_its_bound_and_says_so() -> None:
    pool = BufferPool(2 * KIB64)
    held = [pool.take(KIB64), pool.take(1)]
    assert pool.full
    with pytest.raises(UnavailableError, match="exhausted") as caught:
        pool.take(1)
    assert caught.value.values["bytes_max"] == 2 * KIB64
    held.pop().release()
    assert not pool.full
    pool.take(1).release()
    held.pop().release()


def test_what_was_admitted_is_lent_beyond_the_bound() -> None:
    pool = BufferPool(KIB64)
    held = [pool.take(1), pool.take(KIB64, beyond=True)]
    assert pool.bytes_lent == 2 * KIB64
    for buffer in held:
        buffer.release()
    assert pool.bytes_lent == 0
    assert pool.bytes_kept <= KIB64


def test_reserved_buffers_are_there_for_the_first_frames() -> None:
    pool = BufferPool(limits.MIB)
    pool.reserve(KIB64, 4)
    assert (pool.bytes_lent, pool.bytes_kept) == (0, 4 * KIB64)


@given(st.lists(st.tuples(st.integers(0, 5 * KIB64), st.booleans()), max_size=40))
def test_what_is_lent_and_kept_stays_within_the_bound(wishes: list[tuple[int, bool]]) -> None:
    pool = BufferPool(8 * KIB64)
    held: list[Buffer] = []
    for nbytes, give in wishes:
        if give and held:
            held.pop(0).release()
        else:
            try:
                held.append(pool.take(nbytes))
            except UnavailableError:
                assert pool.bytes_lent > 0
        assert 0 <= pool.bytes_lent <= pool.bytes_max
        assert pool.bytes_kept + pool.bytes_lent <= pool.bytes_max
    for buffer in held:
        buffer.release()
    assert pool.bytes_lent == 0
    assert pool.bytes_kept <= pool.bytes_max


def test_a_pool_may_be_used_by_many_threads() -> None:
    pool = BufferPool(64 * limits.MIB)
    wrong: list[int] = []

    def borrow(number: int) -> None:
        for _ in range(200):
            buffer = pool.take(1000)
            buffer.array[:] = number
            buffer.hold()
            buffer.release()
            if (buffer.array != number).any():
                wrong.append(number)
            buffer.release()

    threads = [threading.Thread(target=borrow, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.bytes_lent == 0


def test_pages_taken_ahead_keep_what_others_write_meanwhile() -> None:
    _, raw = memory.reserve(8 * limits.MIB)
    raw[:] = 7
    memory.populate(raw[100 : 5 * limits.MIB])
    memory.populate(raw[:10])
    assert (raw == 7).all()
