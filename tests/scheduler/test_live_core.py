"""What is changed live: versions, who hears of them, what a restart keeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scheduler.schedulers import JoinedMember, RunningScheduler, server_request, worker_request
from windlass_proto import rule_records
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.rule_records import DECLARED, RuleRecord, change_of
from windlass_scheduler.effects import Persist, Record
from windlass_scheduler.live_core import Change, LiveRules, RuleChanged


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningScheduler]:
    scheduler = RunningScheduler(tmp_path / "state")
    yield scheduler
    scheduler.stop()


def change(step: int, names: str = "*", store_id: int = 1, **values: float) -> Change:
    return Change(store_id, "main", "digits", 0, step, change_of(names, 9, values))


def stored(effects: list[object]) -> dict[str, Record]:
    return {e.key: e.record for e in effects if isinstance(e, Persist) and e.record is not None}


def set_lr(worker: JoinedMember, store_id: int, step: int, lr: float, call: int = 1) -> pb.AgreeReply:
    request = pb.AgreeRequest(
        session=worker.session,
        store_id=store_id,
        step=step,
        action="set",
        key=f"call {call}",
        digest=str(lr),
        text=f"lr={lr}",
        change=rule_records.change_to_bytes(change_of("*", 9, {"lr": lr})),
    )
    return worker.link.agree(request)


def read(raw: bytes) -> RuleRecord:
    return rule_records.from_bytes_untrusted(raw)


def test_each_change_makes_a_version_and_is_stored_before_anybody_hears_of_it() -> None:
    core = LiveRules()
    assert core.newest(1) == DECLARED
    first = core.step(change(5, lr=0.5))
    second = core.step(change(3, "b*", eps=0.25))
    core.step(change(0, store_id=2, lr=1.0))
    (told,) = [effect for effect in second if isinstance(effect, RuleChanged)]
    assert (told.record.version, told.record.since, told.job) == (2, 5, "digits")
    assert (core.newest(1), core.newest(2).version) == (told.record, 1)
    restored = LiveRules()
    restored.restore(stored(first) | stored(second))
    restored.validate()
    assert restored.newest(1) == core.newest(1)
    assert restored.newest_bytes(2) == b""


def test_a_record_given_whole_is_the_next_version_and_says_nothing_of_earlier_ones() -> None:
    core = LiveRules()
    core.step(change(5, lr=0.5))
    whole = RuleRecord(1, 0, (change_of("b*", 2, {"lr": 0.25}),))
    effects = core.step(Change(1, "main", "digits", 0, 7, whole))
    assert core.newest(1) == RuleRecord(2, 7, whole.changes)
    core.step(Change(1, "main", "digits", 0, 8, RuleRecord(1, 0)))
    assert core.newest(1).changes == ()
    core.validate()
    restored = LiveRules()
    restored.restore(stored(effects))
    assert restored.newest(1).version == 2


def test_a_change_that_does_not_fit_a_record_changes_nothing() -> None:
    core = LiveRules()
    core.step(change(0, lr=0.5))
    before = core.newest_bytes(1)
    with pytest.raises(UsageError, match="too many bytes"):
        core.step(change(0, "b*", 1, **{f"a name that is long {i}": 1.0 for i in range(100)}))
    assert core.newest_bytes(1) == before


def test_a_set_is_done_when_it_is_agreed_on_and_all_workers_of_the_job_hear(running: RunningScheduler) -> None:
    server = JoinedMember(running, server_request())
    workers = [JoinedMember(running, worker_request(workers_declared=2)) for _ in range(2)]
    other = JoinedMember(running, worker_request(job="another"))
    store_id = workers[0].open_store()
    replies = [set_lr(worker, store_id, 4, 0.5) for worker in (*workers, workers[0])]
    assert replies == [replies[0]] * 3, "one action, whoever asks and however often"
    assert (replies[0].granted, int(replies[0].result), read(replies[0].record).version) == (False, 4, 1)
    for worker in workers:
        assert worker.wait_for("rule").rule == pb.RuleChanged(store_id=store_id, record=replies[0].record)
    assert workers[0].declare(store_id, w=(4, 4)).record == replies[0].record
    with pytest.raises(UsageError, match=r"rank_0_gave=lr=0\.5, rank_1_gives=lr=0\.25"):
        set_lr(workers[1], store_id, 4, 0.25)
    late = JoinedMember(running, worker_request())
    assert read(late.declare(store_id, w=(4, 4)).record).version == 1, "a refused one is no version"
    assert not heard_of_rules(server, other)
    for member in (late, other, *workers, server):
        member.leave()


def heard_of_rules(*members: JoinedMember) -> bool:
    found = False
    for member in members:
        while not member.updates.empty():
            found = found or member.updates.get().WhichOneof("what") == "rule"
    return found


def test_a_restart_keeps_live_rules_and_what_was_agreed_on(running: RunningScheduler) -> None:
    worker = JoinedMember(running, worker_request())
    store_id = worker.open_store()
    first = set_lr(worker, store_id, 4, 0.5)
    running.stop()
    running.start()
    assert set_lr(worker, store_id, 4, 0.5) == first, "a repeated call finds that it was done"
    following = set_lr(worker, store_id, 4, 0.25, call=2)
    assert read(following.record).version == 2
    newcomer = JoinedMember(running, worker_request(job="digits"))
    assert newcomer.declare(store_id, w=(4, 4)).record == following.record
    for member in (newcomer, worker):
        member.leave()


def test_a_worker_that_watches_late_finds_the_record_in_its_snapshot(running: RunningScheduler) -> None:
    worker = JoinedMember(running, worker_request())
    store_id = worker.open_store()
    reply = set_lr(worker, store_id, 0, 0.5)
    link = running.link()
    me = link.join(worker_request())
    seen: list[pb.Update] = []
    done = threading.Event()

    def take(update: pb.Update) -> None:
        seen.append(update)
        if update.WhichOneof("what") == "snapshotted":
            done.set()

    link.watch(pb.WatchRequest(member_id=me.member_id, session=me.session), take, lambda _error: None)
    assert done.wait(5)
    assert [update.rule.record for update in seen if update.WhichOneof("what") == "rule"] == [reply.record]
    link.close()
    worker.leave()


def test_a_change_that_is_none_is_refused(running: RunningScheduler) -> None:
    worker = JoinedMember(running, worker_request())
    store_id = worker.open_store()
    nonsense = pb.AgreeRequest(session=worker.session, store_id=store_id, action="set", key="call 1", change=b"\xff")
    with pytest.raises(ProtocolError, match="rule record"):
        worker.link.agree(nonsense)
    assert read(set_lr(worker, store_id, 0, 0.5).record).version == 1
    worker.leave()
