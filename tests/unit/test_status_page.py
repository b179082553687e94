"""What `windlass status` makes of a reply, without a cluster."""

from __future__ import annotations

from pathlib import Path

from windlass.cli.finding import FoundCluster
from windlass.cli.status import page
from windlass_proto.gen import control_pb2 as pb


def test_the_page_shows_staleness_of_stores_and_what_each_worker_cost_the_others() -> None:
    workers = [
        pb.WorkerSteps(rank=0, clock=10, last=1, waited_s=0.2),
        pb.WorkerSteps(rank=1, clock=8, last=9, waited_s=61.5, late_steps=3),
    ]
    lags = [pb.Staleness(lag=0, pushes=2), pb.Staleness(lag=1, pushes=5), pb.Staleness(lag=64, pushes=1)]
    store = pb.StoreStatus(store="model", job="j", consistency="ssp:4", staleness=lags, workers=workers)
    members = [pb.MemberStatus(role=pb.ROLE_WORKER, rank=rank, job="j", host="h", state="live") for rank in (0, 1)]
    text = page(pb.StatusReply(members=members, stores=[store]), FoundCluster("here:1", Path("token"), "test"))
    rows = [line.split() for line in text.splitlines()]
    assert ["worker", "job", "host", "pid", "clock", "lag", "last", "waited", "for", "late", "beat", "state"] in rows
    assert ["1", "j", "h", "0", "-", "0", "9", "62", "s", "3", "0.0", "s", "live"] in rows
    assert ["model", "j", "ssp:4", "1", "to", "64", "0", "0", "not", "begun"] in rows
