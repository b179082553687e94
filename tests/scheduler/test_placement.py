"""Placement: every vshard has one owner, loads are even, and few vshards move."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from windlass_scheduler.placement import Plan, Run, homes, place


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


SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=40)


def runs(n: int, vshards: int = 64) -> list[tuple[Run, ...]]:
    return list(place(range(n), vshards).values())


def held_by(server: tuple[Run, ...], sizes: list[int], found: tuple[int, ...]) -> int:
    return sum(size for size, home in zip(sizes, found, strict=True) if any(r.begin <= home < r.end for r in server))


@given(SIZES, st.integers(1, 8))
def test_whole_blocks_are_balanced_by_bytes(sizes: list[int], n: int) -> None:
    """Who has most has one block, or less than a fair part and the largest that came to a server which had one."""
    found = homes(sizes, runs(n), {})
    over = sorted(sizes, reverse=True)[n : n + 1] or [0]
    most = max(held_by(server, sizes, found) for server in runs(n))
    assert most <= max(0, *sizes, sum(sizes) / n + (1 - 1 / n) * over[0]) + 1e-9
    assert [held_by(server, [6, 4, 4, 6], homes([6, 4, 4, 6], runs(2), {})) for server in runs(2)] == [10, 10]


def test_whole_blocks_fill_what_earlier_ones_left() -> None:
    first, second = runs(2)
    assert held_by(second, [10, 10, 40], homes([10, 10, 40], runs(2), {first[0].begin: 60})) == 60
    assert held_by(first, [10, 10, 40], homes([10, 10, 40], runs(2), {second[0].begin: 60})) == 60


def test_whole_blocks_lie_apart_so_that_a_run_can_be_cut() -> None:
    """Placed on one server, equal blocks are on two, and on four, as they would have been placed there."""
    found = homes([10] * 16, runs(1), {})
    for n in (2, 4):
        assert [held_by(server, [10] * 16, found) for server in runs(n)] == [160 // n] * n
