"""Codecs between workers and servers: what arrives, what is kept, what is sent again, and how many bytes it took."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD
from windlass.store import Store
from windlass_proto import weight_deltas
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

# Three blocks and a small tensor beside them; no size is a multiple of anything.
SHAPES = {"w": (300, 1001), "b": (37,)}
UP: tuple[CodecSpec, ...] = (
    wl.codec.Float16(),
    wl.codec.BFloat16(),
    wl.codec.Int8(),
    wl.codec.OneBit(),
    wl.codec.TwoBit(threshold=0.5),
    wl.codec.TopK(ratio=0.01),
    wl.codec.RandomK(ratio=0.02, seed=5),
    wl.codec.Dithering(bits=4),
)


def zeros() -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def gradients(step: int, rank: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(100 * step + rank)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def kept(store: Store) -> dict[str, np.ndarray]:
    """What the store's encoder keeps back, by tensor."""
    (encoder,) = store.exchange.encoders.values()
    assert encoder.error is not None
    return encoder.table.layout.views(encoder.error)


def train(pair: Team, codec: CodecSpec, consistency: str = "bsp", steps: int = 3) -> list[Store]:
    stores = pair.stores(zeros(), SGD(lr=1.0), consistency, codec=codec)

    def work(_: object, rank: int) -> None:
        for step in range(steps):
            stores[rank].push({"b": gradients(step, rank + 10)["b"]})
            stores[rank].update(gradients(step, rank))

    pair.each(work)
    return stores


def given(rank: int, steps: int = 3) -> dict[str, np.ndarray]:
    """The sum of what worker `rank` pushed."""
    found = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(steps):
        for name, gradient in gradients(step, rank).items():
            found[name] += gradient
        found["b"] += gradients(step, rank + 10)["b"]
    return found


@pytest.mark.parametrize("codec", UP, ids=repr)
def test_what_arrives_and_what_is_kept_is_what_was_pushed(codec: CodecSpec, team: MakeTeam) -> None:
    pair = team()
    stores = train(pair, codec)
    results = pair.each(lambda _, rank: stores[rank].pull().result())
    for name in SHAPES:
        assert np.array_equal(results[0][name], results[1][name])
        total = sum(given(rank)[name] for rank in range(2))
        if not codec.feedback:
            assert np.abs(results[0][name] + total / 2).max() < 3.0
            continue
        arrived = (total - sum(kept(store)[name] for store in stores)) / 2
        assert np.allclose(results[0][name], -arrived, atol=1e-4)


@pytest.mark.parametrize("codec", [wl.codec.Int8(), wl.codec.TopK(0.01), wl.codec.Dithering()], ids=repr)
def test_the_link_changes_no_bit(
    codec: CodecSpec, local: LocalCluster, token: None, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for link in ("tcp", "shm"):
        monkeypatch.setenv("WINDLASS_LINK", link)
        with Team(local, f"{job}-{link}") as pair:
            stores = pair.stores(zeros(), SGD(lr=1.0), codec=codec)
            for step in range(2):
                tickets = [store.push_pull(gradients(step, rank)) for rank, store in enumerate(stores)]
                for ticket in tickets:
                    ticket.result()
            found.append(stores[0].pull().result())
    for name in SHAPES:
        assert np.array_equal(found[0][name], found[1][name])


@pytest.mark.parametrize("consistency", ["asp", "ssp:1"])
def test_nothing_is_lost_without_common_steps_either(consistency: str, team: MakeTeam) -> None:
    pair = team()
    stores = train(pair, wl.codec.TopK(ratio=0.05), consistency)
    pair.each(lambda worker, _: worker.barrier("pushed"))
    held = stores[0].pull().result()
    for name in SHAPES:
        total = sum(given(rank)[name] - kept(stores[rank])[name] for rank in range(2))
        assert np.allclose(held[name], -total, atol=1e-4)


def test_bytes_sent_again_are_the_same_and_count_once(team: MakeTeam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_LINK", "tcp")
    pair = team(workers=1)
    (store,) = pair.stores(zeros(), SGD(lr=1.0), codec=wl.codec.OneBit())
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(20):
        ticket = store.push_pull(gradients(step, 0))
        for link in list(pair[0]._member.pump.links.values()):
            link.sock.shutdown(socket.SHUT_RDWR)  # whatever was under way is sent again
        held = ticket.result()
        for name in SHAPES:
            total[name] += gradients(step, 0)[name]
            assert np.allclose(held[name], kept(store)[name] - total[name], atol=1e-3)


def test_bytes_on_the_wire_are_counted_by_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster of its own: a server says so of its busiest tables alone, and other tests have busy ones."""
    with LocalCluster.start(servers=2, run_dir=tmp_path) as cluster:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
        with Team(cluster, "counted", workers=1) as one:
            _check_counted_bytes(one)


def _check_counted_bytes(one: Team) -> None:
    (store,) = one.stores(zeros(), SGD(lr=1.0), codec=wl.codec.Int8(block=256), codec_down=wl.codec.OneBit())
    for step in range(4):
        store.update(gradients(step, 0))
    (table,) = store.exchange.tables
    layout = store.exchange.tables[table].layout
    segments = [block.segments for block in layout.blocks]
    up, down = store.exchange.encoders[table].codec, store.exchange.shown[table].codec
    wire = sum(up.room(s.elements) for of_block in segments for s in of_block)
    heads = sum(weight_deltas.head_bytes(len(of_block)) for of_block in segments)
    deltas = heads + sum(min(down.room(s.elements), 4 * (s.end - s.begin)) for of_block in segments for s in of_block)
    flat = layout.flat_elements
    expected = {
        "bytes_in": 4 * flat + 4 * wire,  # first values are plain
        "raw_bytes_in": 4 * flat + 4 * 4 * flat,
        "bytes_out": heads + 4 * flat + 4 * deltas,  # and are read whole
        "raw_bytes_out": 4 * flat + 4 * 4 * flat,
    }
    assert wire < 0.27 * 4 * flat
    assert deltas < 0.04 * 4 * flat
    assert layout.block_elements < flat
    counted: dict[str, float] = {}
    deadline = time.monotonic() + 10.0
    while counted != expected:
        assert time.monotonic() < deadline, f"{counted} instead of {expected}"
        threading.Event().wait(0.05)
        servers = [m for m in one[0].status()["members"] if m["role"] == "server"]
        counted = {
            name: sum(server["figures"].get(f"table_{table}_{name}", 0.0) for server in servers) for name in expected
        }


def test_a_gradient_that_is_not_finite_is_refused_and_leaves_what_is_kept(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(zeros(), SGD(lr=1.0), codec=wl.codec.RandomK(ratio=0.02))
    pair.each(lambda _, rank: stores[rank].update(gradients(0, rank)))
    before = kept(stores[1])["w"].copy()
    held = stores[0].pull().result()
    bad = gradients(1, 1)
    bad["w"][200, 7] = np.nan

    def work(_: object, rank: int) -> dict[str, np.ndarray]:
        if rank:
            with pytest.raises(UsageError, match=r"not finite.*w.*worker=1"):
                stores[1].update(bad)
            return {}
        return stores[0].update(gradients(1, 0))

    after = pair.each(work)[0]
    assert np.array_equal(kept(stores[1])["w"], before)
    moved = after["w"] - held["w"]
    assert np.isfinite(moved).all()
    assert np.count_nonzero(moved) > 0, "the step went on with the other worker's gradient alone"


@pytest.mark.parametrize("policy", ["zero", "clip", "allow"])
@pytest.mark.parametrize("codec", [None, wl.codec.Int8()], ids=["plain", "int8"])
def test_other_policies_let_the_step_go_on_with_what_is_left(
    policy: str, codec: CodecSpec | None, team: MakeTeam, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = team()
    stores = pair.stores({"w": np.zeros(4, np.float32)}, SGD(lr=1.0, clip_value=3.0), codec=codec, nonfinite=policy)
    grads = [np.array([1, np.nan, np.inf, -np.inf], np.float32), np.ones(4, np.float32)]
    results = pair.each(lambda _, rank: stores[rank].update({"w": grads[rank]})["w"])
    if policy == "allow":
        assert not np.isfinite(results[0]).all()
    elif codec is None:
        expected = {"zero": [-1, -0.5, -0.5, -0.5], "clip": [-1, -0.5, -3, 3]}[policy]
        assert results[0].tolist() == expected
    else:
        assert np.isfinite(results[0]).all()
    assert np.array_equal(results[0], results[1], equal_nan=True)
    pair.each(lambda _, rank: stores[rank].update({"w": grads[rank]}))
    replaces = policy != "allow"
    assert [store.replaced for store in stores] == [{"w": 6} if replaces else {}, {}], "its worker is told, no other"
    assert capfd.readouterr().err.count("worker 0: a gradient of w held values that are not finite") == replaces


def test_what_a_codec_cannot_carry_is_refused_before_anything_is_declared(team: MakeTeam) -> None:
    store = team(workers=1)[0].store("model")
    with pytest.raises(UsageError, match="float32"):
        store.init({"w": np.zeros(8)}, SGD(lr=1.0), codec=wl.codec.Int8())
    with pytest.raises(UsageError, match=r"wl\.codec\.Int8"):
        store.init({"w": np.zeros(8, np.float32)}, SGD(lr=1.0), codec="int8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'zero'"):
        store.init({"w": np.zeros(8, np.float32)}, SGD(lr=1.0), nonfinite="zeros")
    assert store.specs() == {}
