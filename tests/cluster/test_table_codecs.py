"""Codecs of sparse tables on a real cluster: what arrives, what is kept by id, what travels, what is refused."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD
from windlass.sparse_table import Table
from windlass.store import Store
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.codecs import registry
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
DIM = 16
IDS = 300
UP: tuple[CodecSpec, ...] = (
    wl.codec.Float16(),
    wl.codec.BFloat16(),
    wl.codec.Int8(),
    wl.codec.OneBit(),
    wl.codec.TwoBit(threshold=0.5),
    wl.codec.Dithering(bits=8),
)


def declared(team: Team, mode: str = "bsp", **options: Any) -> list[tuple[Store, Table]]:
    def declare(worker: wl.Cluster, _: int) -> tuple[Store, Table]:
        store = worker.store("model", consistency=mode)
        given: dict[str, Any] = {"dim": DIM, "optimizer": SGD(lr=1.0), "init": wl.init.Zeros()}
        return store, store.table("user", **(given | options))

    return team.each(declare)


def batch(step: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, some more than once, and their gradients."""
    random = np.random.default_rng(100 * step + rank)
    return random.integers(0, IDS, (5, 40)), random.normal(size=(5, 40, DIM)).astype(np.float32)


def pushed(rank: int, steps: int) -> np.ndarray:
    total = np.zeros((IDS, DIM))
    for step in range(steps):
        ids, grads = batch(step, rank)
        np.add.at(total, ids.reshape(-1), grads.reshape(-1, DIM))
    return total


def kept(table: Table) -> np.ndarray:
    assert table.encoder is not None
    if table.encoder.residuals is None:
        return np.zeros((IDS, DIM))
    return table.encoder.residuals.take(np.arange(IDS, dtype=np.uint64))[1].reshape(IDS, DIM).astype(float)


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("codec", UP, ids=repr)
def test_what_arrives_and_what_is_kept_is_what_was_pushed(
    codec: CodecSpec, link: str, team: MakeTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    pairs, steps = declared(pair := team(), codec=codec), 3

    def train(_: object, rank: int) -> np.ndarray:
        store, table = pairs[rank]
        for step in range(steps):
            ids, grads = batch(step, rank)
            if step == 1:
                table.push(ids, grads)
                found = table.pull(ids).result()
            elif step == 2:
                found = store.push_pull({"user": wl.Rows(ids, grads)}).result()["user"]
            else:
                found = table.push_pull(ids, grads).result()
        assert found.shape == grads.shape
        held: np.ndarray = table.pull(np.arange(IDS)).result()
        return held

    results = pair.each(train)
    assert np.array_equal(results[0], results[1])
    total = sum(pushed(rank, steps) - kept(table) for rank, (_, table) in enumerate(pairs))
    loose = {"Float16": 0.02, "BFloat16": 0.15, "Dithering": 0.4}.get(type(codec).__name__, 1e-4)
    assert np.allclose(results[0], -total / 2, atol=loose)
    if loose == 1e-4:
        assert sum(np.abs(kept(table)).max() for _, table in pairs) > 0


def test_the_number_of_servers_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for servers in (1, 3):
        with LocalCluster.start(servers=servers, run_dir=tmp_path / str(servers)) as cluster:
            monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
            with Team(cluster, "cut", workers=1) as one:
                rows = []
                for codec in (wl.codec.Int8(), wl.codec.Dithering(bits=4)):
                    store = one[0].store(type(codec).__name__)
                    table = store.table("user", DIM, SGD(lr=1.0), codec=codec, codec_down=wl.codec.BFloat16())
                    for step in range(3):
                        rows.append(table.push_pull(*batch(step, 0)).result())
                found.append(rows)
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("mode", ["asp", "ssp:1"])
def test_nothing_is_lost_without_common_steps_either(mode: str, team: MakeTeam) -> None:
    pairs = declared(pair := team(), mode, codec=wl.codec.OneBit())

    def train(worker: wl.Cluster, rank: int) -> None:
        for step in range(4):
            pairs[rank][1].push_pull(*batch(step, rank)).result()
        worker.barrier("pushed")

    pair.each(train)
    total = sum(pushed(rank, 4) - kept(table) for rank, (_, table) in enumerate(pairs))
    assert np.allclose(pairs[0][1].pull(np.arange(IDS)).result(), -total, atol=1e-4)


def test_bytes_sent_again_are_the_same_and_count_once(team: MakeTeam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_LINK", "tcp")
    pair = team(workers=1)
    ((_, table),) = declared(pair, codec=wl.codec.Int8())
    total = np.zeros((IDS, DIM))
    for step in range(12):
        ids, grads = batch(step, 0)
        ticket = table.push_pull(ids, grads)
        for link in list(pair[0]._member.pump.links.values()):
            link.sock.shutdown(socket.SHUT_RDWR)  # whatever was under way is sent again
        ticket.result()
        np.add.at(total, ids.reshape(-1), grads.reshape(-1, DIM))
        assert np.allclose(table.pull(np.arange(IDS)).result(), kept(table) - total, atol=1e-3)


@pytest.mark.parametrize("codec", [wl.codec.Float16(), wl.codec.BFloat16()], ids=repr)
@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_rows_come_down_as_halves_of_what_the_servers_hold(
    codec: CodecSpec, link: str, team: MakeTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    ((_, table),) = declared(team(1), dim=5, codec_down=codec)
    ids, grads = np.arange(70), np.random.default_rng(1).normal(size=(70, 5)).astype(np.float32)
    found = table.push_pull(ids, grads).result()
    held = {int(i): row for run, rows in table.items() for i, row in zip(run, rows, strict=True)}
    assert np.array_equal(np.stack([held[i] for i in range(70)]), -grads), "the servers hold all of it"
    wire, halved = np.zeros(700, np.uint8), np.zeros(350, np.float32)
    registry.build(codec).encode(-grads.reshape(-1), wire)
    registry.build(codec).decode_untrusted(wire, halved)
    assert np.array_equal(found, halved.reshape(70, 5))
    out = np.zeros((2, 3, 5), np.float32)
    table._store.pull({"user": [[3, 1, 3], [900, 69, 0]]}, out={"user": out}).result()
    assert np.array_equal(out[0, 0], found[3])
    assert not out[1, 0].any()


def test_bytes_on_the_wire_are_counted_by_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster.start(servers=2, run_dir=tmp_path) as cluster:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
        with Team(cluster, "counted", workers=1) as one:
            _check_counted_bytes(one)


def _check_counted_bytes(one: Team) -> None:
    store = one[0].store("model", consistency="asp")
    shares: dict[str, float] = {}
    ids, grads = np.arange(4096), np.random.default_rng(0).normal(size=(4096, DIM)).astype(np.float32)
    for codec in (None, *UP):
        table = store.table(f"t{len(shares)}", DIM, SGD(lr=1.0), codec=codec, codec_down=wl.codec.Float16())
        table.push_pull(ids, grads).result()
        counted: dict[str, float] = {}
        deadline = time.monotonic() + 10.0
        while counted.get("raw_bytes_out") != 4096 * DIM * 4:  # each server says so when it beats
            assert time.monotonic() < deadline, counted
            threading.Event().wait(0.05)
            servers = [m["figures"] for m in one[0].status()["members"] if m["role"] == "server"]
            if all(f"table_{table.spec.table_id}_bytes_in" in figures for figures in servers):
                names = ("bytes_in", "raw_bytes_in", "bytes_out", "raw_bytes_out")
                counted = {n: sum(f[f"table_{table.spec.table_id}_{n}"] for f in servers) for n in names}
        assert counted["raw_bytes_out"] == 2 * counted["bytes_out"]
        assert abs(counted["raw_bytes_in"] - 4096 * (8 + 4 * DIM)) < 8 * 64  # ids are filled up to 64 bytes by band
        shares[repr(codec)] = (counted["bytes_in"] - 8 * 4096) / (4096 * DIM * 4)
    # Of float32's bytes, ids apart: a row of 16 has a scale of 4 bytes of its own.
    expected = [1.0, 0.5, 0.5, 0.3125, 0.09375, 0.0625, 0.3125]
    assert np.allclose(list(shares.values()), expected, atol=0.005), shares


def test_what_a_table_cannot_carry_is_refused_before_anything_is_declared(team: MakeTeam) -> None:
    store = team(workers=1)[0].store("model")
    for options, said in (
        ({"codec": wl.codec.TopK(0.1)}, r"for dense tensors.*Int8"),
        ({"codec": wl.codec.OneBit(), "dim": 12}, r"multiple_of=8"),
        ({"codec": wl.codec.Int8(), "dtype": np.float64}, "float32"),
        ({"codec": wl.codec.Int8(), "dtype": np.float16}, "halves already"),
        ({"codec": "int8"}, r"wl\.codec\.Int8"),
        ({"codec_down": wl.codec.Int8()}, "as they are or as halves"),
        ({"nonfinite": "zeros"}, "'zero'"),
        ({"nonfinite": "clip"}, "clip_value"),
        ({"dtype": np.int32}, "unsupported dtype"),
    ):
        given: dict[str, Any] = {"dim": 16, "optimizer": SGD(lr=1.0)}
        with pytest.raises(UsageError, match=said):
            store.table("user", **(given | options))
    assert store.specs() == {}


def test_who_declares_another_codec_is_told_both(team: MakeTeam) -> None:
    pairs = declared(team(), codec=wl.codec.Int8())
    with pytest.raises(UsageError, match=r"another transfer.*Int8.*codec=None"):
        pairs[1][0].table("user", DIM, SGD(lr=1.0), init=wl.init.Zeros())


def test_a_wrong_part_of_a_call_leaves_what_is_kept_of_rows(team: MakeTeam) -> None:
    ((store, table),) = declared(team(1), codec=wl.codec.OneBit())
    store.init({"w": np.zeros(4, np.float32)}, SGD(lr=1.0))
    ids, grads = batch(0, 0)
    table.push_pull(ids, grads).result()
    before = kept(table)
    with pytest.raises(UsageError, match="another shape"):
        store.push({"user": wl.Rows(ids, grads), "w": np.zeros(5, np.float32)})
    assert np.array_equal(kept(table), before)
    assert table.figures()["feedback_rows"] >= np.unique(ids).size
    table.erase([int(ids[0, 0])])
    assert not kept(table)[ids[0, 0]].any()


# ---- rows that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, wl.codec.Int8()], ids=["plain", "int8"])
def test_rows_that_are_not_finite_are_refused_by_name_and_change_nothing(
    codec: CodecSpec | None, team: MakeTeam
) -> None:
    ((_, table),) = declared(team(1), codec=codec)
    ids, grads = batch(0, 0)
    held = table.push_pull(ids, grads).result()
    before = kept(table) if codec else None
    bad = grads.copy()
    bad[1, 7, 3] = np.nan
    with pytest.raises(UsageError, match=rf"not finite.*user.*rows={ids[1, 7]}.*worker=0"):
        table.push(ids, bad)
    large = np.full((2, DIM), 3e38, np.float32)  # their sum is no float32
    with pytest.raises(UsageError, match=r"not finite.*user \(rows 7\).*worker=0"):
        table.push_pull([7, 7], large).result()
    assert np.array_equal(table.pull(ids).result(), held)
    if before is not None:
        assert np.array_equal(kept(table), before)


@pytest.mark.parametrize("policy", ["zero", "clip", "allow"])
@pytest.mark.parametrize("codec", [None, wl.codec.Float16()], ids=["plain", "float16"])
def test_other_policies_go_on_with_what_is_left_and_say_so_once(
    policy: str, codec: CodecSpec | None, team: MakeTeam, capfd: pytest.CaptureFixture[str]
) -> None:
    ((store, table),) = declared(team(1), dim=4, optimizer=SGD(lr=1.0, clip_value=3.0), codec=codec, nonfinite=policy)
    grads = np.array([[1, np.nan, np.inf, -np.inf], [1, 1, 1, 1]], np.float32)
    for step in (1, 2):
        found = table.push_pull([5, 6], grads).result()
        if policy == "allow":
            assert not np.isfinite(found[0]).all()
        else:
            assert found[0].tolist() == [-step, 0, *({"zero": [0, 0], "clip": [-3 * step, 3 * step]}[policy])]
        assert found[1].tolist() == [-step] * 4
    said = capfd.readouterr().err.count("a gradient of user (rows 5) held values that are not finite")
    assert said == (policy != "allow")
    assert store.replaced == ({} if policy == "allow" else {"user": 6})


def test_what_overflows_in_a_sum_of_one_id_is_replaced_by_the_server_and_counted_by_the_worker(team: MakeTeam) -> None:
    ((store, table),) = declared(team(1), nonfinite="zero")
    large = np.full((2, DIM), 3e38, np.float32)
    large[1, 1:] = 0
    found = table.push_pull([7, 7], large).result()
    assert found[0, 0] == 0.0
    assert found[0, 1] == np.float32(-3e38)
    assert store.replaced == {"user": 1}
