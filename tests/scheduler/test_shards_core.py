"""Shards: every row once an epoch when nobody dies, at least once when workers do, equally many batches each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from windlass_proto.errors import UsageError
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Persist, Record
from windlass_scheduler.shards_core import (
    Event,
    Exhausted,
    JobOver,
    NextShard,
    Plan,
    Position,
    Shard,
    Shards,
    WorkerGone,
)

Rows = tuple[int, tuple[int, int]]
"""An epoch, and the (begin, end) of a batch."""


class Loaders:
    """Workers by rank around one core; each reports its shards done with its next call, as clients do."""

    def __init__(self, plan: Plan, ranks: range) -> None:
        self.plan = plan
        self.core = Shards(Counters())
        self.live = set(ranks)
        self.records: dict[str, Record] = {}
        self.held: dict[int, list[Shard]] = {rank: [] for rank in ranks}
        self.calls = dict.fromkeys(ranks, 0)
        self.read: dict[int, list[tuple[int, tuple[int, int]]]] = {rank: [] for rank in ranks}

    def step(self, event: Event) -> list[object]:
        effects = self.core.step(event)
        self.core.validate()
        for effect in effects:
            if isinstance(effect, Persist):
                self.records.pop(effect.key, None)
                if effect.record is not None:
                    self.records[effect.key] = effect.record
        return effects

    def ask(self, rank: int, call: int) -> Shard | Exhausted:
        done = tuple(shard.shard_id for shard in self.held[rank])
        ranks = frozenset(self.live)
        event = NextShard(1, bytes([rank]), rank, "job", "loader", self.plan, done, call, ranks)
        reply = next(e.reply for e in self.step(event) if isinstance(e, Answer))
        assert isinstance(reply, Shard | Exhausted)
        return reply

    def next(self, rank: int) -> bool:
        """One more shard is read by `rank`; whether there was one."""
        self.calls[rank] += 1
        shard = self.ask(rank, self.calls[rank])
        self.read[rank] += [(s.epoch, rows) for s in self.held[rank] for rows in s.batches]
        self.held[rank] = [shard] if isinstance(shard, Shard) else []
        return isinstance(shard, Shard)

    def die(self, rank: int) -> None:
        self.live.discard(rank)
        self.held[rank].clear()
        self.step(WorkerGone(bytes([rank]), rank, "job", frozenset(self.live)))

    def finish(self) -> None:
        asking = True
        while asking:
            asking = False
            for rank in sorted(self.live):
                while self.next(rank):
                    asking = True

    def rows_read(self, epoch: int) -> list[int]:
        batches = [rows for read in self.read.values() for e, rows in read if e == epoch]
        return sorted(row for begin, end in batches for row in range(begin, end))


plans = st.builds(
    Plan,
    length=st.integers(1, 300),
    size=st.integers(1, 40),
    epochs=st.integers(1, 3),
    drop_last=st.just(False),
    balanced=st.booleans(),
)


@given(plans, st.integers(1, 6), st.lists(st.integers(0, 5), max_size=40))
def test_every_row_is_read_exactly_once_an_epoch_when_nobody_dies(plan: Plan, n: int, order: list[int]) -> None:
    loaders = Loaders(plan, range(n))
    for rank in order:
        loaders.next(rank % n)
    loaders.finish()
    for epoch in range(plan.epochs):
        assert loaders.rows_read(epoch) == list(range(plan.length))


@given(plans, st.integers(2, 6), st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40))
def test_every_row_is_read_at_least_once_an_epoch_when_workers_die(
    plan: Plan, n: int, acts: list[tuple[int, bool]]
) -> None:
    loaders = Loaders(plan, range(n))
    for rank, dies in acts:
        rank %= n
        if rank in loaders.live and dies and len(loaders.live) > 1:
            loaders.die(rank)
        elif rank in loaders.live:
            loaders.next(rank)
    loaders.finish()
    for epoch in range(plan.epochs):
        assert set(loaders.rows_read(epoch)) == set(range(plan.length))


@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 8))
def test_balanced_workers_get_equally_many_batches_of_nearly_one_size(length: int, size: int, n: int) -> None:
    loaders = Loaders(Plan(length, size, 1, drop_last=False, balanced=True), range(n))
    loaders.finish()
    counts = [len(read) for read in loaders.read.values()]
    sizes = [end - begin for read in loaders.read.values() for _, (begin, end) in read]
    rounds = -(-length // (n * size))
    if length >= rounds * n:
        assert counts == [rounds] * n
    assert max(counts) - min(counts) <= 1
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 500), st.integers(1, 32), st.integers(1, 5), st.booleans())
def test_drop_last_reads_full_batches_only(length: int, size: int, n: int, balanced: bool) -> None:
    loaders = Loaders(Plan(length, size, 2, drop_last=True, balanced=balanced), range(n))
    if length < size * (n if balanced else 1):
        with pytest.raises(UsageError, match="drop_last leaves no batch"):
            loaders.next(0)
        return
    loaders.finish()
    sizes = {end - begin for read in loaders.read.values() for _, (begin, end) in read}
    assert sizes == {size}
    if balanced:
        assert {len(read) for read in loaders.read.values()} == {2 * (length // (n * size))}


def test_batch_k_belongs_to_position_k_mod_n() -> None:
    loaders = Loaders(Plan(80, 10, 1, drop_last=False, balanced=True), range(2))
    first = loaders.ask(1, 1)
    positions = tuple(Position(0, rounds, 2, 8, 20 * rounds) for rounds in (1, 2, 3, 4))
    assert first == Shard(1, 0, ((10, 20), (30, 40), (50, 60), (70, 80)), 4, positions)


def read_in_lockstep(plan: Plan, n: int, rounds: int) -> tuple[list[Rows], Position]:
    """The first `rounds` batches of each of `n` workers, round by round, and where a checkpoint says that is."""
    loaders = Loaders(plan, range(n))
    batches: dict[int, list[tuple[Rows, Position]]] = {rank: [] for rank in range(n)}
    for rank in range(n):
        while len(batches[rank]) < rounds:
            loaders.calls[rank] += 1
            shard = loaders.ask(rank, loaders.calls[rank])
            if isinstance(shard, Exhausted):
                break
            loaders.held[rank] = [shard]
            batches[rank] += [
                ((shard.epoch, rows), at) for rows, at in zip(shard.batches, shard.positions, strict=True)
            ]
    read = [batches[rank][i][0] for i in range(rounds) for rank in range(n) if i < len(batches[rank])]
    return read, batches[0][min(rounds, len(batches[0])) - 1][1]


@given(st.integers(20, 300), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4), st.integers(1, 60))
def test_a_resumed_pass_neither_repeats_nor_leaves_out_a_row(
    length: int, size: int, n: int, n_after: int, rounds: int
) -> None:
    plan = Plan(length, size, 3, drop_last=False, balanced=True)
    assume(length >= -(-length // (n * size)) * n)  # else some workers have a round less
    read, start = read_in_lockstep(plan, n, rounds)
    resumed = Loaders(replace(plan, start=start), range(n_after))
    resumed.finish()
    after = [rows for batches in resumed.read.values() for rows in batches]
    for epoch in range(3):
        found = [row for e, (begin, end) in [*read, *after] if e == epoch for row in range(begin, end)]
        assert sorted(found) == list(range(length))
    if n_after == n:
        whole, _ = read_in_lockstep(plan, n, 10_000)
        assert sorted([*read, *after]) == sorted(whole), "the cut is the same"


def test_a_resumed_pass_survives_the_schedulers_restart() -> None:
    plan = Plan(100, 5, 2, drop_last=False, balanced=True)
    _, start = read_in_lockstep(plan, 2, 3)
    loaders = Loaders(replace(plan, start=start), range(3))
    loaders.next(0)
    again = Shards(Counters())
    again.restore(loaders.records)
    loaders.core = again
    loaders.core._counters.take("shard")
    loaders.finish()
    assert loaders.rows_read(0) == list(range(30, 100))


def test_workers_that_resume_from_different_places_are_refused() -> None:
    loaders = Loaders(Plan(100, 5, 1, drop_last=False, balanced=True), range(2))
    loaders.next(0)
    loaders.plan = replace(loaders.plan, start=Position(0, 3, 2, 20, 30))
    with pytest.raises(UsageError, match=r"rank_1_asks=.*from row 30 of epoch 0"):
        loaders.next(1)


def test_a_dead_workers_batches_are_split_evenly_among_the_survivors() -> None:
    loaders = Loaders(Plan(120, 1, 1, drop_last=False, balanced=True), range(3))
    loaders.next(2)
    loaders.die(2)
    loaders.finish()
    assert [len(loaders.read[rank]) for rank in (0, 1)] == [60, 60]


def test_a_retried_call_finds_the_shard_it_was_given() -> None:
    loaders = Loaders(Plan(1000, 1, 1, drop_last=False, balanced=True), range(2))
    first = loaders.ask(0, 1)
    assert loaders.ask(0, 1) == first
    assert loaders.ask(0, 2) != first


def test_a_restart_goes_on_where_the_scheduler_stopped() -> None:
    loaders = Loaders(Plan(200, 1, 2, drop_last=False, balanced=True), range(3))
    for rank in (0, 1, 2, 0):
        loaders.next(rank)
    loaders.die(2)
    stopped, loaders.core = loaders.core, Shards(Counters())
    assert stopped is not loaders.core
    loaders.core.restore(loaders.records)
    loaders.core._counters.restore({"counter/shard": {"ceiling": 1001}})
    loaders.core.validate()
    loaders.finish()
    assert set(loaders.rows_read(0)) == set(loaders.rows_read(1)) == set(range(200))


def test_the_next_run_of_a_job_reads_from_the_start() -> None:
    loaders = Loaders(Plan(10, 1, 1, drop_last=False, balanced=True), range(1))
    loaders.finish()
    assert isinstance(loaders.ask(0, 99), Exhausted)
    loaders.step(JobOver("job"))
    assert isinstance(loaders.ask(0, 100), Shard)


def test_workers_that_ask_differently_are_told_both_plans() -> None:
    loaders = Loaders(Plan(10, 1, 1, drop_last=False, balanced=True), range(2))
    loaders.next(0)
    loaders.plan = Plan(10, 2, 1, drop_last=False, balanced=True)
    with pytest.raises(UsageError, match=r"rank_0_asked=10 rows, size 1,.*rank_1_asks=10 rows, size 2"):
        loaders.next(1)


def test_a_billion_rows_cost_no_more_than_ten() -> None:
    loaders = Loaders(Plan(10, 1, 1, drop_last=False, balanced=True), range(1))
    loaders.plan = Plan(10**9, 64, 5, drop_last=False, balanced=True)
    core = Shards(Counters())
    event = NextShard(1, b"s", 0, "job", "loader", loaders.plan, (), 1, frozenset(range(8)))
    record = next(e.record for e in core.step(event) if isinstance(e, Persist))
    assert len(str(record)) < 2000
