"""The scheduler over real loopback: who may call, what waits, what a death does, what a restart keeps."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.scheduler.schedulers import (
    RULE,
    TOKEN,
    JoinedMember,
    RunningScheduler,
    declare_request,
    server_request,
    worker_request,
)
from windlass_proto import beats
from windlass_proto.control_link import ControlLink
from windlass_proto.errors import ClosedError, UnavailableError, UsageError
from windlass_proto.gen import control_pb2 as pb
from windlass_scheduler import limits
from windlass_scheduler.members import Member, Role
from windlass_scheduler.watchers import Audience, Watchers


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningScheduler]:
    scheduler = RunningScheduler(tmp_path / "state")
    yield scheduler
    scheduler.stop()


@pytest.fixture
def calls() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def cast_votes(server: JoinedMember, prepare: pb.Prepare, accepted: bool = True) -> None:
    server.link.vote(
        pb.VoteRequest(
            member_id=server.me.member_id,
            session=server.session,
            store_id=prepare.store_id,
            proposal=prepare.proposal,
            accepted=accepted,
            clock_highest=prepare.clock,
        )
    )


def wait_until_said(link: ControlLink, sentence: str) -> pb.StatusReply:
    """Status, once one of its sentences contains `sentence`; asks again each 20 ms, for 5 s."""
    deadline_s = time.monotonic() + 5
    pause = threading.Event()
    while True:
        status = link.status()
        if any(sentence in said for said in status.sentences):
            return status
        assert time.monotonic() < deadline_s, f"status says {list(status.sentences)}, not {sentence!r}"
        pause.wait(0.02)


# Who may call


def test_a_wrong_token_is_refused_in_words_within_a_second(running: RunningScheduler) -> None:
    for token in (b"wrong", b""):
        begun_s = time.monotonic()
        with running.link(token) as link, pytest.raises(UsageError, match="token is another one"):
            link.status()
        assert time.monotonic() - begun_s < 1.0


def test_a_token_that_no_header_can_carry_is_refused_before_any_call(running: RunningScheduler) -> None:
    for token in (b"\xff" * 20, b"two\nlines"):
        with pytest.raises(UsageError, match="not printable ASCII"):
            running.link(token)


def test_a_watch_with_a_wrong_token_ends_with_the_reason(running: RunningScheduler) -> None:
    said: Future[Exception] = Future()
    with running.link(b"wrong") as link:
        link.watch(pb.WatchRequest(), lambda _update: None, said.set_result)
        assert "token is another one" in str(said.result(5))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (worker_request(protocol_min=7, protocol_max=9), "process=7..9, scheduler=1..1"),
        (worker_request(cluster_id="elsewhere"), "expected=elsewhere"),
        (worker_request(role=9), "role=9"),
        (server_request(addresses=[pb.Address(kind="smoke", address="x")]), "kind='smoke'"),
    ],
)
def test_a_join_that_cannot_work_is_refused_in_words_within_a_second(
    running: RunningScheduler, request_: pb.JoinRequest, words: str
) -> None:
    begun_s = time.monotonic()
    with running.link() as link, pytest.raises(UsageError, match=words):
        link.join(request_)
    assert time.monotonic() - begun_s < 1.0


def test_a_taken_rank_and_another_worker_count_name_both_values(running: RunningScheduler) -> None:
    first = JoinedMember(running, worker_request(rank=2, workers_declared=4, pid=11))
    with running.link() as link:
        with pytest.raises(UsageError, match=r"rank 2 of job digits is taken.*pid 11 on here.*pid 22 on here"):
            link.join(worker_request(rank=2, workers_declared=4, pid=22))
        with pytest.raises(UsageError, match="declared=4, this_process=3"):
            link.join(worker_request(workers_declared=3))
    first.leave()


def test_an_unknown_session_and_a_foreign_role_are_refused(running: RunningScheduler) -> None:
    server = JoinedMember(running, server_request())
    with pytest.raises(UnavailableError, match="unknown to the scheduler"):
        server.link.barrier(pb.BarrierRequest(session=b"nobody", name="x"))
    with pytest.raises(UsageError, match="for workers"):
        server.link.barrier(pb.BarrierRequest(session=server.session, name="x"))
    server.leave()


def test_garbage_on_either_port_harms_nobody(running: RunningScheduler) -> None:
    worker = JoinedMember(running, worker_request())
    host, _, port = running.address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for size in (0, 1, 48, 64, 500, 9000):
            udp.sendto(b"\xa5" * size, (host, int(port)))
        stranger = beats.derive_key(b"another token", worker.me.cluster_id)
        udp.sendto(beats.pack(worker.me.member_id, 1 << 60, 0, [], stranger), (host, int(port)))
    with socket.create_connection((host, int(port)), timeout=5) as tcp:
        tcp.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    assert worker.link.status().health == "waiting"
    worker.leave()


# Placement and rosters


def test_the_placement_is_committed_when_the_declared_servers_have_joined(tmp_path: Path) -> None:
    running = RunningScheduler(tmp_path / "state", servers=2)
    first = JoinedMember(running, server_request())
    status = first.link.status()
    assert (status.generation, status.health, list(status.sentences)) == (0, "waiting", ["waiting for server 1 of 2"])
    second = JoinedMember(running, server_request())
    routing = first.wait_for("routing").routing
    runs = [(run.begin, run.end) for server in routing.servers for run in server.runs]
    assert (routing.generation, runs) == (1, [(0, 128), (128, 256)])
    spare = JoinedMember(running, server_request())
    assert spare.me.rank == 2
    status = first.link.status()
    assert (status.generation, status.health) == (1, "healthy")
    second.die()
    status = wait_until_said(first.link, "server 1 on here is gone: 128 of 256 vshards have no live owner")
    assert (status.generation, status.health) == (1, "degraded")
    intact = server_request(old_session=second.session, name="", state_intact=True)
    blank = JoinedMember(running, intact)
    assert blank.me.rank == 3, "without its name it takes nobody's place"
    for member in (first, spare, blank):
        member.leave()
    running.stop()


def test_a_server_whose_state_is_intact_takes_its_place_back(running: RunningScheduler) -> None:
    server = JoinedMember(running, server_request(name="server-0"))
    worker = JoinedMember(running, worker_request())
    server.die()
    wait_until_said(worker.link, "have no live owner")
    back = JoinedMember(running, server_request(name="server-0", old_session=server.session, state_intact=True))
    routing = worker.wait_for("routing", lambda update: update.routing.generation == 2).routing
    assert [route.member_id for route in routing.servers] == [back.me.member_id]
    assert [run.owner_generation for run in routing.servers[0].runs] == [1]
    assert worker.link.status().health == "healthy"
    back.leave()
    worker.leave()


def test_entering_waits_for_every_declared_worker_and_status_names_who_is_missing(
    running: RunningScheduler, calls: ThreadPoolExecutor
) -> None:
    first = JoinedMember(running, worker_request(workers_declared=3))
    third = JoinedMember(running, worker_request(workers_declared=3, rank=2))
    store_id = first.open_store()
    entering = calls.submit(first.enter, store_id)
    wait_until_said(first.link, "waiting for worker rank 1 of 3 (job digits)")
    wait_until_said(first.link, "rank 2 of 3 (job digits), joined on here, to enter the steps of store main")
    also_entering = calls.submit(third.enter, store_id)
    with pytest.raises(UnavailableError, match=r"waiting for worker rank 1 of 3 \(job digits\)"):
        third.enter(store_id, timeout_s=0.6)
    with pytest.raises(UnavailableError, match="asked again"):
        also_entering.result(5)
    also_entering = calls.submit(third.enter, store_id)
    second = JoinedMember(running, worker_request(workers_declared=3))
    roster = second.enter(store_id).roster
    assert [member.rank for member in roster.members] == [0, 1, 2]
    assert entering.result(5).roster == also_entering.result(5).roster == roster
    for member in (first, second, third):
        member.leave()


def test_a_dead_worker_leaves_the_roster_and_a_newcomer_enters_by_vote(
    running: RunningScheduler, calls: ThreadPoolExecutor
) -> None:
    server = JoinedMember(running, server_request())
    workers = [JoinedMember(running, worker_request(workers_declared=2)) for _ in range(2)]
    store_id = workers[0].open_store()
    for entering in [calls.submit(worker.enter, store_id) for worker in workers]:
        assert entering.result(5).join_clock == 0
    workers[0].clocks[store_id] = 40
    workers[1].die()
    ended = server.wait_for("ended").ended
    assert (ended.session, ended.reason) == (workers[1].session, "connection lost")
    roster = server.wait_for_roster(lambda roster: len(roster.members) == 1)
    assert [member.rank for member in roster.members] == [0]
    newcomer = JoinedMember(running, worker_request())
    entering = calls.submit(newcomer.enter, store_id)
    prepare = server.wait_for("prepare").prepare
    assert prepare.clock == 48
    cast_votes(server, prepare, accepted=False)
    prepare = server.wait_for("prepare").prepare
    assert prepare.clock == 48 + 16
    cast_votes(server, prepare)
    assert entering.result(5).join_clock == 64
    roster = server.wait_for_roster(lambda roster: len(roster.members) == 2)
    assert roster.proposal_settled == prepare.proposal
    for member in (newcomer, workers[0], server):
        member.leave()


def test_servers_that_do_not_vote_make_entering_fail_in_words(
    running: RunningScheduler, calls: ThreadPoolExecutor
) -> None:
    server = JoinedMember(running, server_request())
    first = JoinedMember(running, worker_request())
    store_id = first.open_store()
    first.enter(store_id)
    second = JoinedMember(running, worker_request())
    with pytest.raises(UnavailableError, match=r"did not vote on a newcomer within 0\.5 s"):
        second.enter(store_id)
    for member in (second, first, server):
        member.leave()


def test_a_member_that_is_stopped_ends_by_its_lease(running: RunningScheduler) -> None:
    server = JoinedMember(running, server_request())
    worker = JoinedMember(running, worker_request())
    worker._beater.close()
    assert server.wait_for("ended").ended.reason == "lease expired"
    assert "closed it" in str(worker.lost.get(timeout=5))
    assert "lease expired" in str(worker.lost.get(timeout=5))
    with pytest.raises(UnavailableError, match="lease expired"):
        worker.open_store()
    worker.link.close()
    server.leave()


# Declarations and meetings


def test_the_grant_passes_when_the_granted_worker_dies(running: RunningScheduler, calls: ThreadPoolExecutor) -> None:
    workers = [JoinedMember(running, worker_request(workers_declared=3)) for _ in range(3)]
    store_id = workers[0].open_store()
    assert not workers[1].declare(store_id, w=(4, 4)).granted
    declared = workers[0].declare(store_id, w=(4, 4))
    assert declared.granted
    waits = [
        calls.submit(
            worker.link.await_seal,
            pb.AwaitSealRequest(session=worker.session, store_id=store_id, declaration_id=declared.declaration_id),
        )
        for worker in workers[1:]
    ]
    wait_until_said(workers[1].link, "waiting for worker rank 0 (job digits), pid 1 on here to write")
    workers[0].die()
    assert waits[0].result(5) == pb.AwaitSealReply(granted=True)
    seal = pb.SealRequest(session=workers[1].session, store_id=store_id, declaration_id=declared.declaration_id)
    workers[1].link.seal(seal)
    assert waits[1].result(5) == pb.AwaitSealReply(sealed=True)
    for worker in workers[1:]:
        worker.leave()


def test_tensors_that_differ_name_both_values_and_both_ranks(running: RunningScheduler) -> None:
    first, second = (JoinedMember(running, worker_request(workers_declared=2)) for _ in range(2))
    store_id = first.open_store()
    first.declare(store_id, w=(4, 4))
    with pytest.raises(UsageError, match="rank_0_declared=4x4, rank_1_declares=4x5"):
        second.declare(store_id, w=(4, 5))
    request = declare_request(second.session, store_id, w=(4, 4))
    request.rule = RULE + RULE
    with pytest.raises(UsageError, match="optimizer"):
        second.link.declare(request)
    with pytest.raises(UsageError, match="rank_0=bsp, rank_1_asks=asp"):
        second.open_store(consistency="asp")
    for member in (first, second):
        member.leave()


def test_an_observer_reads_what_workers_declared(running: RunningScheduler) -> None:
    worker = JoinedMember(running, worker_request())
    observer = JoinedMember(running, worker_request(role=pb.ROLE_OBSERVER))
    with pytest.raises(UnavailableError, match="no worker has opened"):
        observer.open_store()
    store_id = worker.open_store()
    groups = worker.declare(store_id, w=(4,)).groups
    assert observer.open_store() == store_id
    assert observer.declare(store_id, w=(4,)).groups == groups
    assert [(group.consistency, group.vshards) for group in groups] == [("bsp", 256)]
    with pytest.raises(UsageError, match="for workers"):
        observer.enter(store_id)
    for member in (observer, worker):
        member.leave()


def test_actions_barriers_and_broadcasts_meet(running: RunningScheduler, calls: ThreadPoolExecutor) -> None:
    workers = [JoinedMember(running, worker_request(workers_declared=2)) for _ in range(2)]
    store_id = workers[0].open_store()

    def agree(worker: JoinedMember, digest: str) -> pb.AgreeReply:
        request = pb.AgreeRequest(
            session=worker.session, store_id=store_id, step=4, action="assign", key="lr", digest=digest, text=digest
        )
        return worker.link.agree(request)

    granted = agree(workers[1], "lr=1")
    assert granted.granted
    with pytest.raises(UsageError, match="rank_1_gave=lr=1, rank_0_gives=lr=2"):
        agree(workers[0], "lr=2")
    waits = calls.submit(agree, workers[0], "lr=1")
    wait_until_said(workers[0].link, "waiting for worker rank 1 to finish assign lr in store main")
    done = pb.AgreeDoneRequest(session=workers[1].session, store_id=store_id, action_id=granted.action_id)
    workers[1].link.agree_done(done)
    assert waits.result(5) == pb.AgreeReply(granted=False, action_id=granted.action_id)

    waits_at_barrier = calls.submit(
        workers[0].link.barrier, pb.BarrierRequest(session=workers[0].session, name="b", call=1)
    )
    wait_until_said(workers[0].link, "waiting for worker rank 1 (job digits), pid 1 on here to come to barrier b")
    workers[1].link.barrier(pb.BarrierRequest(session=workers[1].session, name="b", call=1))
    assert waits_at_barrier.result(5).generation == 1
    with pytest.raises(UnavailableError, match="to come to barrier b"):
        workers[0].link.barrier(pb.BarrierRequest(session=workers[0].session, name="b", call=2, wait_s=0.1))

    heard = calls.submit(workers[1].link.broadcast, pb.BroadcastRequest(session=workers[1].session, call=1, root=0))
    said = pb.BroadcastRequest(session=workers[0].session, call=1, root=0, is_root=True, value=b"[1]")
    workers[0].link.broadcast(said)
    assert heard.result(5).value == b"[1]"
    for worker in workers:
        worker.leave()


def test_logged_scalars_reach_watchers_merged_by_weight(running: RunningScheduler) -> None:
    workers = [JoinedMember(running, worker_request(workers_declared=2)) for _ in range(2)]
    for worker, loss, weight in zip(workers, (1.0, 4.0), (2.0, 1.0), strict=True):
        record = pb.LogRecord(step=1, weight=weight, scalars=[pb.Scalar(name="loss", value=loss)])
        worker.link.log(pb.LogRequest(session=worker.session, records=[record]))
    merged = workers[0].wait_for("metrics").metrics
    assert [(r.step, r.weight, r.scalars[0].value) for r in merged.records] == [(1, 3.0, 2.0)]
    figures = pb.ReportRequest(member_id=workers[0].me.member_id, session=workers[0].session, figures={"bytes": 5.0})
    workers[0].link.report(figures)
    members = {member.rank: member for member in workers[0].link.status().members}
    assert dict(members[0].figures) == {"bytes": 5.0}
    assert members[1].oldest_frame_age_ms in (0, 7)
    for worker in workers:
        worker.leave()


# Restarts


def test_a_restart_keeps_sessions_rosters_declarations_and_shards(
    running: RunningScheduler, calls: ThreadPoolExecutor
) -> None:
    server = JoinedMember(running, server_request())
    workers = [JoinedMember(running, worker_request(workers_declared=2)) for _ in range(2)]
    store_id = workers[0].open_store()
    groups = workers[0].declare(store_id, w=(4, 4)).groups
    for entering in [calls.submit(worker.enter, store_id) for worker in workers]:
        entering.result(5)
    asked = pb.NextShardRequest(
        session=workers[0].session, loader="l", length=100, size=1, epochs=1, balanced=True, call=1
    )
    shard = workers[0].link.next_shard(asked)
    waits = calls.submit(workers[0].link.barrier, pb.BarrierRequest(session=workers[0].session, name="b", call=1), 10.0)
    wait_until_said(server.link, "to come to barrier b")
    before = server.link.status()
    running.stop()
    running.start()
    assert workers[0].enter(store_id).join_clock == 0
    assert workers[0].link.next_shard(asked) == shard
    assert workers[1].declare(store_id, w=(4, 4)).groups == groups
    server.wait_for("snapshotted")
    workers[1].link.barrier(pb.BarrierRequest(session=workers[1].session, name="b", call=1))
    assert waits.result(10).generation == 1
    after = server.link.status()
    assert (after.cluster_id, after.generation) == (before.cluster_id, before.generation)
    assert {m.member_id for m in after.members} == {m.member_id for m in before.members}
    newcomer = JoinedMember(running, worker_request())
    assert newcomer.me.member_id > max(m.member_id for m in after.members)
    for member in (newcomer, *workers, server):
        member.leave()


def test_calls_made_while_the_scheduler_is_away_succeed_once_it_is_back(
    running: RunningScheduler, calls: ThreadPoolExecutor
) -> None:
    worker = JoinedMember(running, worker_request())
    running.stop()
    opening = calls.submit(worker.open_store)
    joining = calls.submit(JoinedMember, running, worker_request())
    running.start()
    assert opening.result(5) > 0
    other = joining.result(5)
    assert other.me.rank == 1
    for member in (other, worker):
        member.leave()


def test_an_unreachable_scheduler_is_named_with_its_address_and_where_it_came_from() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        words = rf"address={address}, address_from=\$WINDLASS_SCHEDULER"
        link = ControlLink(address, TOKEN, found_by="$WINDLASS_SCHEDULER", timeout_s=0.3)
        with link, pytest.raises(UnavailableError, match=words):
            link.status()
    with pytest.raises(ClosedError):
        link.status()


def test_a_closed_link_leaves_no_stream_to_the_collector(tmp_path: Path) -> None:
    """gRPC's streams take a lock when they are deleted, which never comes free while the interpreter ends."""
    import grpc

    running = RunningScheduler(tmp_path / "state", servers=1)
    gc.collect()
    gc.disable()
    try:
        for end in (JoinedMember.leave, JoinedMember.die):
            end(JoinedMember(running, server_request()))
        # By type(): isinstance() asks a weak proxy for the class of what it refers to.
        kinds = [type(found) for found in gc.get_objects()]
        left = [kind for kind in kinds if issubclass(kind, grpc.RpcError) and issubclass(kind, grpc.Call)]
        assert not left
    finally:
        gc.enable()
        running.stop()


def test_a_cluster_is_not_reopened_with_other_vshards_or_servers(tmp_path: Path) -> None:
    running = RunningScheduler(tmp_path / "state", servers=1)
    JoinedMember(running, server_request()).leave()
    running.stop()
    with pytest.raises(UsageError, match="stored=1, asked=2"):
        RunningScheduler(tmp_path / "state", servers=2)


def test_a_watcher_too_slow_is_cut_off_and_the_others_are_not() -> None:
    async def watched() -> tuple[bool, bool, int]:
        watchers = Watchers()
        member = Member(1, b"s", Role.OBSERVER, 0, "h", 1, "", "job", (), b"", 1)
        quick = watchers.open(member, metrics=False)
        stuck = asyncio.Event()

        async def slow() -> None:
            watchers.open(member, metrics=False)
            await stuck.wait()

        reading = asyncio.create_task(slow())
        await asyncio.sleep(0)
        for _ in range(limits.WATCHER_UPDATES_MAX + 1):
            watchers.publish(pb.Update(snapshotted=pb.Snapshotted()), Audience())
            assert await quick.updates.get() is not None
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        return reading.cancelled(), quick.cut, len(list(watchers))

    assert asyncio.run(watched()) == (True, False, 1)
