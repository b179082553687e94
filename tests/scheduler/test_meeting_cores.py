"""Agreements, barriers, broadcasts and merged metrics: where workers of a job meet."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto.errors import UsageError
from windlass_scheduler import agreement_core, limits, metrics_core, rendezvous_core
from windlass_scheduler.agreement_core import Agree, Agreed, Agreements, Done
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Persist, Record
from windlass_scheduler.metrics_core import LoggedStep, Merged, MergedMetrics
from windlass_scheduler.rendezvous_core import Barrier, Broadcast, Rendezvous


def answers(effects: list[object]) -> dict[int, object]:
    return {e.waiter: e.reply for e in effects if isinstance(e, Answer)}


def stored(effects: list[object]) -> dict[str, Record]:
    return {e.key: e.record for e in effects if isinstance(e, Persist) and e.record is not None}


# Agreements


def agree(rank: int, digest: str = "d", step: int = 3, key: str = "w") -> Agree:
    return Agree(10 + rank, bytes([rank]), rank, 1, step, "assign", key, digest, f"values {digest}")


def test_the_first_caller_acts_and_the_others_wait_until_it_is_done() -> None:
    core = Agreements(Counters())
    granted = answers(core.step(agree(1)))
    assert granted == {11: Agreed(granted=True, action_id=1)}
    assert answers(core.step(agree(0))) == {}
    done = answers(core.step(Done(99, bytes([1]), 1)))
    assert done == {99: None, 10: Agreed(granted=False, action_id=1)}
    assert answers(core.step(agree(2))) == {12: Agreed(granted=False, action_id=1)}
    core.validate()


def test_another_digest_is_refused_with_both_ranks_and_texts() -> None:
    core = Agreements(Counters())
    core.step(agree(1, "a"))
    with pytest.raises(UsageError, match="rank_1_gave=values a, rank_0_gives=values b"):
        core.step(agree(0, "b"))


def test_the_action_of_a_dead_worker_passes_to_the_lowest_rank_that_waits() -> None:
    core = Agreements(Counters())
    for rank in (0, 3, 2):
        core.step(agree(rank))
    gone = core.step(agreement_core.SessionGone(bytes([0])))
    assert answers(gone) == {12: Agreed(granted=True, action_id=1)}
    with pytest.raises(UsageError, match="not granted"):
        core.step(Done(1, bytes([3]), 1))
    assert answers(core.step(Done(1, bytes([2]), 1))).keys() == {1, 13}
    core.validate()


def test_a_restarted_core_knows_finished_and_granted_actions() -> None:
    core = Agreements(Counters())
    records = stored(core.step(agree(0, key="w")))
    records |= stored(core.step(Done(1, bytes([0]), 1)))
    records |= stored(core.step(agree(0, key="b")))
    again = Agreements(Counters())
    again.restore(records)
    again.validate()
    assert answers(again.step(agree(1, key="w"))) == {11: Agreed(granted=False, action_id=1)}
    assert answers(again.step(agree(1, key="b"))) == {}
    assert answers(again.step(agree(0, key="b"))) == {10: Agreed(granted=True, action_id=2)}


def test_finished_actions_are_dropped_from_the_oldest_on() -> None:
    core = Agreements(Counters())
    dropped = []
    for step in range(limits.ACTIONS_KEPT_MAX + 3):
        effects = core.step(agree(0, step=step))
        dropped += [e.key for e in effects if isinstance(e, Persist) and e.record is None]
        core.step(Done(1, bytes([0]), step + 1))
    assert dropped == ["action/1", "action/2"]
    core.validate()


def test_what_an_action_leaves_is_told_to_all_and_outlives_a_restart() -> None:
    core = Agreements(Counters())
    records = stored(core.step(agree(1)))
    core.step(agree(0))
    done = core.step(Done(99, bytes([1]), 1, "step-000040"))
    told = Agreed(granted=False, action_id=1, result="step-000040")
    assert answers(done) == {99: None, 10: told}
    again = Agreements(Counters())
    again.restore(records | stored(done))
    assert answers(again.step(agree(2))) == {12: told}
    core.step(agree(0, key="b"))
    with pytest.raises(UsageError, match="result of an action is too long"):
        core.step(Done(1, bytes([0]), 2, "x" * (limits.TEXT_BYTES_MAX + 1)))


def test_a_resumption_is_known_after_a_thousand_other_actions() -> None:
    core = Agreements(Counters())
    resume = replace(agree(0, step=0), action="resume")
    core.step(resume)
    core.step(Done(1, bytes([0]), 1, "step-000040"))
    for step in range(limits.ACTIONS_KEPT_MAX + 3):
        core.step(agree(0, step=step))
        core.step(Done(1, bytes([0]), step + 2))
    assert answers(core.step(resume)) == {10: Agreed(granted=False, action_id=1, result="step-000040")}
    core.validate()


# Barriers and broadcasts

LIVE = frozenset({b"\0", b"\1"})


def barrier(rank: int, call: int = 1, complete: bool = True) -> Barrier:
    return Barrier(10 + rank, bytes([rank]), "job", "x", call, LIVE, complete)


def test_a_barrier_is_passed_when_every_live_worker_waits_at_it() -> None:
    core = Rendezvous()
    assert answers(core.step(barrier(0))) == {}
    assert answers(core.step(barrier(1))) == {10: 1, 11: 1}
    core.step(barrier(0, call=2))
    assert answers(core.step(barrier(1, call=2))) == {10: 2, 11: 2}
    core.validate()


def test_a_barrier_waits_for_workers_that_have_yet_to_join() -> None:
    core = Rendezvous()
    core.step(barrier(0, complete=False))
    assert answers(core.step(barrier(1, complete=False))) == {}
    opened = core.step(rendezvous_core.WorkersChanged("job", LIVE, complete=True))
    assert answers(opened) == {10: 1, 11: 1}


def test_a_worker_that_ends_is_no_longer_waited_for() -> None:
    core = Rendezvous()
    core.step(barrier(0))
    gone = core.step(rendezvous_core.WorkersChanged("job", frozenset({b"\0"}), complete=True))
    assert answers(gone) == {10: 1}


def test_a_worker_whose_answer_was_lost_in_a_restart_passes_when_it_asks_again() -> None:
    core = Rendezvous()
    core.step(barrier(0))
    records = stored(core.step(barrier(1)))
    again = Rendezvous()
    again.restore(records)
    again.validate()
    assert answers(again.step(barrier(1, call=1))) == {11: 1}
    assert answers(again.step(barrier(1, call=2))) == {}


def broadcast(rank: int, call: int = 1, root: int = 0, value: bytes = b"7") -> Broadcast:
    given = value if rank == root else b""
    return Broadcast(10 + rank, bytes([rank]), rank, "job", call, root, rank == root, given)


def test_a_broadcast_reaches_those_before_and_after_its_root() -> None:
    core = Rendezvous()
    assert answers(core.step(broadcast(1))) == {}
    assert answers(core.step(broadcast(0))) == {10: b"7", 11: b"7"}
    assert answers(core.step(broadcast(2))) == {12: b"7"}
    core.validate()


def test_broadcasts_that_differ_between_workers_are_refused() -> None:
    core = Rendezvous()
    core.step(broadcast(0))
    with pytest.raises(UsageError, match="root_before=0, root_now=2"):
        core.step(broadcast(1, root=2))
    with pytest.raises(UsageError, match="differently"):
        core.step(broadcast(0, value=b"8"))


def test_old_broadcasts_go_and_asking_for_one_says_so() -> None:
    core = Rendezvous()
    for call in range(1, limits.BROADCASTS_KEPT_MAX + 2):
        core.step(broadcast(0, call=call))
    core.validate()
    with pytest.raises(UsageError, match="oldest=2"):
        core.step(broadcast(1, call=1))
    with pytest.raises(UsageError, match="too long"):
        core.step(broadcast(0, call=99, value=bytes(limits.BROADCAST_BYTES_MAX + 1)))


# Metrics


def logged(
    rank: int, step: int, value: float, weight: float = 1.0, live: int = 2, name: str = "loss", now_s: float = 0.0
) -> metrics_core.Logged:
    record = LoggedStep(step, weight, ((name, value),), 0.0)
    sessions = frozenset(bytes([r]) for r in range(live))
    return metrics_core.Logged(bytes([rank]), "job", sessions, (record,), now_s)


def merged(effects: list[object]) -> list[tuple[int, float]]:
    return [(r.step, r.scalars[0][1]) for e in effects if isinstance(e, Merged) for r in e.records]


def test_a_step_is_given_out_when_every_live_worker_has_logged_it_and_merged_by_weight() -> None:
    core = MergedMetrics()
    assert merged(core.step(logged(0, 5, 1.0, weight=3.0))) == []
    assert merged(core.step(logged(1, 5, 5.0, weight=1.0))) == [(5, 2.0)]
    core.validate()


def test_a_step_64_steps_and_2_seconds_behind_is_given_out_and_later_records_count_as_late() -> None:
    core = MergedMetrics()
    core.step(logged(1, 0, 3.0))
    assert merged(core.step(logged(0, 0, 1.0))) == [(0, 2.0)]
    for step in range(1, 200):
        assert merged(core.step(logged(0, step, 1.0, now_s=1.99))) == []
    assert [s for s, _ in merged(core.step(logged(0, 200, 1.0, now_s=3.99)))] == list(range(1, 137))
    assert merged(core.step(logged(1, 136, 9.0, now_s=4.0))) == []
    assert core.late("job") == 1
    assert merged(core.step(logged(1, 137, 9.0, now_s=4.0))) == [(137, 5.0)]
    core.validate()


def test_a_worker_that_never_logs_is_not_waited_for_until_it_does() -> None:
    core = MergedMetrics()
    for step in range(65):
        assert merged(core.step(logged(0, step, 1.0, now_s=0.01 * step))) == []
    assert len(merged(core.step(logged(0, 65, 1.0, now_s=3.0)))) == 66
    assert merged(core.step(logged(0, 66, 1.0, now_s=3.0))) == [(66, 1.0)]
    core.step(logged(1, 66, 3.0, now_s=3.0))
    assert merged(core.step(logged(0, 67, 1.0, now_s=3.0))) == []
    assert merged(core.step(logged(1, 67, 3.0, now_s=3.0))) == [(67, 2.0)]
    core.validate()


def test_open_steps_have_a_maximum_however_fast_they_come() -> None:
    core = MergedMetrics()
    many = tuple(LoggedStep(step, 1.0, (("loss", 1.0),), 0.0) for step in range(limits.METRIC_STEPS_MAX))
    assert merged(core.step(replace(logged(0, 0, 1.0), records=many))) == []
    assert merged(core.step(logged(0, limits.METRIC_STEPS_MAX, 1.0)))[0] == (0, 1.0)
    core.validate()


def test_a_new_name_follows_the_step_that_was_given_out_and_only_once() -> None:
    core = MergedMetrics()
    core.step(logged(0, 5, 1.0))
    assert merged(core.step(logged(1, 5, 3.0))) == [(5, 2.0)]
    assert merged(core.step(logged(0, 5, 0.9, name="accuracy"))) == [(5, 0.9)]
    assert merged(core.step(logged(1, 5, 0.1, name="accuracy"))) == []
    assert core.late("job") == 1
    core.validate()


def test_names_are_followed_for_as_many_steps_as_may_be_open() -> None:
    core = MergedMetrics()
    many = tuple(LoggedStep(step, 1.0, (("loss", 1.0),), 0.0) for step in range(limits.METRIC_STEPS_MAX + 1))
    core.step(replace(logged(0, 0, 1.0, live=1), records=many))
    assert merged(core.step(logged(0, 0, 0.9, live=1, name="accuracy"))) == []
    assert merged(core.step(logged(0, 1, 0.9, live=1, name="accuracy"))) == [(1, 0.9)]
    core.validate()


def test_zero_weights_give_the_plain_mean() -> None:
    core = MergedMetrics()
    core.step(logged(0, 1, 2.0, weight=0.0))
    assert merged(core.step(logged(1, 1, 4.0, weight=0.0))) == [(1, 3.0)]


def test_the_death_of_the_missing_worker_gives_a_step_out() -> None:
    core = MergedMetrics()
    core.step(logged(0, 1, 2.0))
    gone = core.step(metrics_core.WorkersChanged("job", frozenset({b"\0"})))
    assert merged(gone) == [(1, 2.0)]


def test_impossible_records_are_refused() -> None:
    core = MergedMetrics()
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="weight"):
            core.step(logged(0, 1, 1.0, weight=weight))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300)), max_size=200))
def test_steps_come_out_once_in_order_and_memory_stays_bounded(acts: list[tuple[int, int]]) -> None:
    core = MergedMetrics()
    out: list[int] = []
    for rank, step in acts:
        out += [s for s, _ in merged(core.step(logged(rank, step, 1.0, live=3)))]
        core.validate()
    assert out == sorted(set(out))
