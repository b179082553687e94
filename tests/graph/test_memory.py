"""Placement of buffers, and the judge of plans: it finds what was written over, and accepts what was not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_graph.memory import ALIGNMENT, Access, Buffer, Place, aligned, bytes_alive, check, placed
from windlass_proto.errors import InvariantError

BUFFERS = st.lists(
    st.builds(
        lambda nbytes, begin, life: Buffer(nbytes, begin, begin + life), *map(st.integers, (0,) * 3, (999, 30, 9))
    ),
    max_size=40,
)


@given(BUFFERS)
@settings(max_examples=200, deadline=None)
def test_buffers_alive_at_one_step_lie_apart_and_aligned(buffers: list[Buffer]) -> None:
    placement = placed(buffers)
    spans = [(offset, offset + aligned(each.nbytes)) for offset, each in zip(placement.offsets, buffers, strict=True)]
    assert all(begin % ALIGNMENT == 0 and end <= placement.arena_bytes for begin, end in spans)
    for i, one in enumerate(buffers):
        for j, other in enumerate(buffers[:i]):
            if one.begin <= other.end and other.begin <= one.end:
                assert spans[i][1] <= spans[j][0] or spans[j][1] <= spans[i][0]


@given(BUFFERS)
@settings(max_examples=100, deadline=None)
def test_an_arena_is_no_larger_than_all_buffers_and_no_smaller_than_those_of_any_step(buffers: list[Buffer]) -> None:
    top = placed(buffers).arena_bytes
    assert top <= sum(aligned(each.nbytes) for each in buffers)
    for step in range(41):
        assert top >= sum(aligned(each.nbytes) for each in buffers if each.begin <= step <= each.end)


def test_buffers_of_a_chain_take_the_room_of_two() -> None:
    assert placed([Buffer(1024, i, i + 1) for i in range(10)]).arena_bytes == 2 * 1024


def test_buffers_are_moved_until_the_arena_is_what_is_alive_at_one_step() -> None:
    """Here no order by bytes, time, or both gives less than 13 KiB."""
    lives = [(3, 4, 9), (2, 5, 7), (6, 0, 4), (2, 2, 7), (5, 6, 10)]
    buffers = [Buffer(nbytes * 1024, begin, end) for nbytes, begin, end in lives]
    assert placed(buffers).arena_bytes == bytes_alive(buffers) == 12 * 1024


# Slot 0 is given; 1, 2 and 3 are computed from it in a chain.
GIVEN = Place(0, 0, 64)


def chain(*places: Place, over: frozenset[tuple[int, int]] = frozenset()) -> None:
    steps = [Access(f"step{i}", (i - 1,), (i,), over) for i in range(1, len(places) + 1)]
    check(steps, [GIVEN, *places], range(len(places) + 1), [0], [len(places)])


def arena(offset: int, nbytes: int = 64) -> Place:
    return Place(-1, offset, nbytes)


def test_memory_is_used_again_when_its_value_is_dead() -> None:
    chain(arena(0), arena(64), arena(0))


def test_a_result_over_its_own_input_needs_an_op_that_allows_it() -> None:
    with pytest.raises(InvariantError, match="over an input"):
        chain(arena(0), arena(0))
    chain(arena(0), arena(0), over=frozenset([(1, 2)]))


def test_a_result_over_a_part_of_its_input_is_refused_of_any_op() -> None:
    with pytest.raises(InvariantError, match="over an input"):
        chain(arena(0, 128), arena(64, 128), over=frozenset([(1, 2)]))


def test_what_is_given_is_never_written() -> None:
    with pytest.raises(InvariantError, match="what was given"):
        chain(arena(0), GIVEN)


def test_a_value_that_is_read_late_must_still_be_there() -> None:
    steps = [Access("one", (0,), (1,), frozenset()), Access("two", (0,), (2,), frozenset())]
    steps.append(Access("three", (1, 2), (3,), frozenset()))
    places = [GIVEN, arena(0), arena(64), arena(128)]
    check(steps, places, range(4), [0], [3])
    places[2] = arena(32, 64)
    with pytest.raises(InvariantError, match="reads what was written over"):
        check(steps, places, range(4), [0], [3])


def test_an_output_stays_as_it_was_computed() -> None:
    steps = [Access("one", (0,), (1,), frozenset()), Access("two", (0,), (2,), frozenset())]
    check(steps, [GIVEN, arena(0), arena(64)], range(3), [0], [1, 2])
    with pytest.raises(InvariantError, match="an output was written over"):
        check(steps, [GIVEN, arena(0), arena(0)], range(3), [0], [1, 2])


def test_a_view_shows_the_value_that_its_memory_holds() -> None:
    steps = [Access("one", (0,), (1,), frozenset()), Access("two", (2,), (3,), frozenset())]
    places = [GIVEN, arena(0), arena(0), arena(64)]
    check(steps, places, [0, 1, 1, 3], [0], [3])
    with pytest.raises(InvariantError, match="reads what was written over"):
        check(steps, places, [0, 1, 2, 3], [0], [3])


def test_two_results_of_one_step_lie_apart() -> None:
    both = Access("both", (0,), (1, 2), frozenset())
    with pytest.raises(InvariantError, match="two results"):
        check([both], [GIVEN, arena(0), arena(32)], range(3), [0], [])
