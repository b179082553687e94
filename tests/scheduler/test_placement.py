"""Placement: every vshard has one owner, loads are even, and few vshards move."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from windlass_scheduler.placement import Plan, place


def owners(plan: Plan, vshards: int) -> list[int]:
    found: list[int | None] = [None] * vshards
    for member, runs in plan.items():
        for run in runs:
            assert run.begin < run.end
            for vshard in range(run.begin, run.end):
                assert found[vshard] is None, "one owner"
                found[vshard] = member
    assert None not in found
    return [member for member in found if member is not None]


@given(st.integers(1, 40), st.sampled_from([64, 256, 1024]))
def test_a_first_placement_is_one_even_run_each(n: int, vshards: int) -> None:
    plan = place(range(1, n + 1), vshards)
    sizes = [run.end - run.begin for runs in plan.values() for run in runs]
    assert len(sizes) == n
    assert max(sizes) - min(sizes) <= 1
    assert len(owners(plan, vshards)) == vshards


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.sampled_from([64, 256, 1024]))
def test_one_server_joining_or_leaving_moves_at_most_its_part(changes: list[int], vshards: int) -> None:
    members = [1, 2, 3]
    plan = place(members, vshards)
    for change in changes:
        before, members_before = owners(plan, vshards), len(members)
        if change < 5 or len(members) == 1:
            members = [*members, max(members) + 1]
        else:
            members = [m for m in members if m != members[change % len(members)]]
        plan = place(members, vshards, previous=plan)
        after = owners(plan, vshards)
        moved = sum(a != b for a, b in zip(before, after, strict=True))
        assert moved <= -(-vshards // max(members_before, len(members)))
        counts = [after.count(member) for member in members]
        assert max(counts) - min(counts) <= 1


@given(st.lists(st.floats(0.0, 100.0), min_size=64, max_size=64), st.integers(1, 8))
def test_a_loaded_placement_gives_nobody_more_than_a_fair_part_and_one_vshard(load: list[float], n: int) -> None:
    plan = place(range(n), 64, load=load)
    held = [sum(load[v] for run in plan[m] for v in range(run.begin, run.end)) for m in range(n)]
    assert max(held) <= sum(load) / n + 1.01 * max(load)
    assert len(owners(plan, 64)) == 64


def test_a_placement_is_a_pure_function() -> None:
    first = place([1, 2, 3], 256)
    assert place([1, 2, 3], 256) == first
    assert place([1, 2, 3], 256, previous=first) == first
