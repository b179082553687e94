"""Totals of norms: made once all blocks have spoken, in the order of the blocks, whatever comes when and how often."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_rules.norms import Norm
from windlass_server.norm_scopes import phases_of, scopes_of
from windlass_server.reducing import Span
from windlass_server.reduction_core import ReductionCore, Told
from windlass_server.share_events import LEFT

T = 3
"""The scope of these tests; blocks 4, 5 and 7 hold parts of it."""


def core() -> ReductionCore:
    return ReductionCore({T: (4, 5, 7)})


def test_a_total_is_made_when_the_last_block_has_spoken_and_is_the_sum_in_block_order() -> None:
    found = core()
    parts = {7: (1e16, 1.0), 4: (1.0, 2.0), 5: (1.0, 3.0)}
    for block in (7, 4):
        assert found.partial(T, block, 0, 0, parts[block], f"link {block}") == []
    told = found.partial(T, 5, 0, 0, parts[5], None)
    assert {(each.origin, each.block) for each in told} == {("link 7", 7), ("link 4", 4), (None, 5)}
    assert {each.totals for each in told} == {((1.0 + 1.0) + 1e16, 6.0)}


def test_a_block_that_settles_is_not_waited_for_and_speaks_again_later() -> None:
    found = core()
    found.partial(T, 4, 0, 0, (1.0,), None)
    found.settled(T, 5, 3)
    assert found.awaited() == [(T, 0, [7])]
    assert [each.totals for each in found.settled(T, 7, 1)] == [(1.0,)]
    found.partial(T, 7, 1, 0, (2.0,), None)
    assert [each.totals for each in found.settled(T, 4, 2)] == [(2.0,)]
    assert found.partial(T, 5, 3, 0, (5.0,), None) == []
    assert len(found.settled(T, 4, LEFT) + found.settled(T, 7, LEFT)) == 1


def test_a_partial_speaks_for_the_steps_before_it() -> None:
    found = core()
    found.partial(T, 4, 0, 0, (1.0,), None)
    found.partial(T, 5, 6, 0, (5.0,), None)
    assert [(each.block, each.clock, each.totals) for each in found.partial(T, 7, 6, 0, (7.0,), None)] == [
        (4, 0, (1.0,))
    ]
    assert [each.totals for each in found.settled(T, 4, 7)] == [(12.0,), (12.0,)]


def test_a_block_that_asks_again_is_told_again_and_one_that_is_long_behind_is_told_that_it_is_over() -> None:
    found = core()
    for block in (5, 7):
        found.settled(T, block, 9)
    assert found.partial(T, 4, 0, 0, (1.0,), "old") == [Told("old", T, 4, 0, 0, (1.0,))]
    assert found.partial(T, 4, 0, 0, (1.0,), "new") == [Told("new", T, 4, 0, 0, (1.0,))]
    found.partial(T, 4, 2, 0, (2.0,), None)
    assert found.partial(T, 4, 0, 0, (1.0,), "lost") == [Told("lost", T, 4, 0, 0, ())]


def test_an_open_partial_that_is_said_again_is_answered_where_it_was_said_last() -> None:
    found = core()
    found.partial(T, 4, 0, 0, (1.0,), "old")
    found.partial(T, 4, 0, 0, (1.0,), "new")
    found.settled(T, 5, 1)
    assert found.settled(T, 7, 1) == [Told("new", T, 4, 0, 0, (1.0,))]


def test_phases_of_a_step_are_totals_of_their_own() -> None:
    found = core()
    for phase in (0, 1):
        told: list[Told] = []
        for block in (4, 5, 7):
            told = found.partial(T, block, 0, phase, (float(block), 1.0), None)
        assert [(each.phase, each.totals) for each in told] == [(phase, (16.0, 3.0))] * 3


class Said(NamedTuple):
    block: int
    clock: int
    sums: tuple[float, ...]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sets(st.sampled_from((4, 5, 7))), min_size=1, max_size=8), st.integers(0, 1 << 30))
def test_whatever_is_delayed_or_repeated_each_step_has_one_total_of_those_that_contributed(
    steps: list[set[int]], seed: int
) -> None:
    """Each block goes through its steps on its own: it says, waits until told, and goes on."""
    random, found = Random(seed), core()
    scripts = {
        block: [Said(block, c, (float(block + c),) if block in who else ()) for c, who in enumerate(steps)]
        for block in (4, 5, 7)
    }
    waiting: dict[int, Said] = {}
    said: list[Said] = []
    totals: dict[int, set[tuple[float, ...]]] = {}

    def take(told: list[Told]) -> None:
        found.validate()
        for each in told:
            assert each.totals, "a block that waits is told a total"
            totals.setdefault(each.clock, set()).add(each.totals)
            if each.block in waiting and waiting[each.block].clock == each.clock:
                del waiting[each.block]

    def say(each: Said) -> None:
        if each.sums:
            take(found.partial(T, each.block, each.clock, 0, each.sums, each))
        else:
            take(found.settled(T, each.block, each.clock + 1))

    while any(scripts.values()) or waiting:
        free = [block for block, script in scripts.items() if script and block not in waiting]
        assert free or waiting
        if free and random.random() < 0.8:
            each = scripts[random.choice(free)].pop(0)
            said.append(each)
            if each.sums:
                waiting[each.block] = each
            say(each)
        elif waiting:  # a link broke: what is not answered is said again
            say(random.choice(list(waiting.values())))
    assert {clock: {(sum(float(b + clock) for b in sorted(who)),)} for clock, who in enumerate(steps) if who} == totals


def test_scopes_are_the_tensors_that_are_cut_and_the_group_where_it_has_one_norm() -> None:
    tensors = (TensorSpec("a", (100,)), TensorSpec("b", (16,)), TensorSpec("c", (60,)), TensorSpec("none", (0,)))
    layout = GroupLayout(1, "float32", tensors, 64, 4)
    assert [[s.tensor for s in block.segments] for block in layout.blocks] == [[0], [0, 1], [2]]
    assert scopes_of(layout, ()) == {}
    assert scopes_of(layout, (Norm.CLIP_TENSOR, Norm.TRUST)) == {0: (0, 1)}
    assert scopes_of(layout, (Norm.CLIP_GLOBAL,)) == {4: (0, 1, 2)}
    assert phases_of(layout, (Norm.TRUST,)) == {0: ((Span(0, 0, 1),),), 1: ((Span(0, 0, 1),),)}
    assert phases_of(layout, (Norm.CLIP_GLOBAL, Norm.TRUST)) == {
        0: ((Span(4, 0, 1),), (Span(0, 0, 1),)),
        1: ((Span(4, 0, 2),), (Span(0, 0, 1),)),
        2: ((Span(4, 0, 1),), ()),
    }


def test_scopes_are_over_once_every_block_has_said_that_it_says_nothing_more() -> None:
    found = core()
    for block in (4, 7):
        found.settled(T, block, LEFT)
        assert not found.is_over
    found.partial(T, 5, 3, 0, (5.0,), None)
    assert not found.is_over
    found.settled(T, 5, LEFT)
    assert found.is_over
    assert ReductionCore({}).is_over
