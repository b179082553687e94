"""Weights that come down as deltas, on real servers: every worker holds what the servers showed, whatever it missed."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.test_codecs import SHAPES, gradients, zeros
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adam
from windlass.store import Store
from windlass_proto import checkpoint_format, tensor_file
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
Values = dict[str, np.ndarray]
DOWN: tuple[CodecSpec, ...] = (
    wl.codec.Int8(),
    wl.codec.OneBit(),
    wl.codec.TwoBit(threshold=0.01),
    wl.codec.TopK(ratio=0.05),
    wl.codec.RandomK(ratio=0.1, seed=5),
    wl.codec.Dithering(bits=4),
)


def same(one: Values, other: Values) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in SHAPES)


def updated(stores: list[Store], step: int) -> list[Values]:
    """What each worker holds after a step of all; nobody waits before all have asked."""
    tickets = [store.push_pull(gradients(step, rank)) for rank, store in enumerate(stores)]
    return [ticket.result(30.0) for ticket in tickets]


def saved(folder: Path, what: Callable[[int, int], str]) -> Values:
    """The tensors of a checkpoint of one group, as its parts say of each block under the key `what`."""
    manifest = checkpoint_format.read_manifest_untrusted(folder)
    layout = manifest.groups[0].spec.layout
    flat = np.zeros(layout.flat_elements, np.float32)
    for part in manifest.parts:
        arrays = tensor_file.load(folder / part.file)
        for group, index in part.blocks:
            block = layout.blocks[index]
            flat[block.flat_begin : block.flat_begin + block.elements] = arrays[what(group, index)]
    return layout.views(flat)


@pytest.mark.parametrize("codec", DOWN, ids=repr)
def test_every_worker_holds_what_the_servers_showed_and_they_keep_what_it_lost(
    codec: CodecSpec, team: MakeTeam, tmp_path: Path
) -> None:
    stores = team().stores(zeros(), SGD(lr=0.1), codec_down=codec)
    total = zeros()
    for step in range(4):
        first, second = updated(stores, step)
        assert same(first, second)
        for name in SHAPES:
            total[name] -= 0.05 * (gradients(step, 0)[name] + gradients(step, 1)[name])
    folder = stores[0].checkpoint(tmp_path / "saved").result()
    assert same(first, saved(folder, checkpoint_format.shown_key))
    weights = saved(folder, checkpoint_format.weight_key)
    stores[1].export(tmp_path / "model.safetensors")
    assert same(wl.load_tensors(tmp_path / "model.safetensors"), weights), "an export is of the weights themselves"
    for name in SHAPES:
        assert np.allclose(weights[name], total[name], atol=1e-5), "what workers are shown moves no weight"
        assert np.abs(first[name] - weights[name]).max() < 1.0
    assert any((first[name] != weights[name]).any() for name in SHAPES)


def test_pull_and_push_pull_into_any_arrays_on_any_link_hold_the_same_bits(
    local: LocalCluster, token: None, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for link in ("tcp", "shm"):
        monkeypatch.setenv("WINDLASS_LINK", link)
        with Team(local, f"{job}-{link}") as pair:
            stores = pair.stores(zeros(), Adam(lr=0.1), codec=wl.codec.OneBit(), codec_down=wl.codec.OneBit())
            out = {name: np.zeros(shape, np.float32, order="F") for name, shape in SHAPES.items()}
            for step in range(3):
                held = updated(stores, step)[0]
                stores[1].push({"b": gradients(step, 7)["b"]})
                stores[0].push({"b": gradients(step, 8)["b"]})
                asked = [stores[0].pull(), stores[1].pull(out=out), stores[1].pull(["w"])]
                pulled = [ticket.result(30.0) for ticket in reversed(asked)][::-1]
                assert same(pulled[0], out)
                assert pulled[2]["w"].tobytes() == held["w"].tobytes(), "w was not pushed since"
            found.append(pulled[0])
    assert same(*found)


def test_a_worker_that_joins_later_or_was_away_gets_what_the_others_hold(team: MakeTeam) -> None:
    pair = team(workers=2)
    stores = pair.stores(zeros(), SGD(lr=0.1), "bsp:k=1", codec_down=wl.codec.OneBit())
    for step in range(3):
        stores[0].push_pull(gradients(step, 0)).result(30.0)
    held = stores[0].pull().result(30.0)
    assert same(stores[1].update(gradients(9, 1)), held), "late by three steps"
    joined = pair.join().store("model", consistency="bsp:k=1")
    joining = pair.begin(lambda: joined.init(zeros(), SGD(lr=0.1), codec_down=wl.codec.OneBit()))
    while not joining.done():  # it begins with the weights of the step from which it counts
        held = stores[0].push_pull(gradients(4, 0)).result(30.0)
    joining.result()
    for _ in range(2):
        assert same(joined.pull().result(30.0), held)
        assert same(stores[1].update(gradients(9, 1)), held)
        held = stores[0].push_pull(gradients(5, 0)).result(30.0)


def test_without_common_steps_workers_are_shown_the_weights(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = pair.stores(zeros(), SGD(lr=0.1), codec_down=wl.codec.OneBit())
    updated(stores, 0)
    pair.each(lambda _, rank: stores[rank].set(consistency="asp"))
    for store in stores:
        store.update(gradients(1, 0))
    held = stores[1].pull().result(30.0)
    stores[1].export(tmp_path / "model.safetensors")
    assert same(held, wl.load_tensors(tmp_path / "model.safetensors"))
    pair.each(lambda _, rank: stores[rank].set(consistency="bsp"))
    first, second = updated(stores, 2)
    assert same(first, second)


def test_steps_after_a_restore_have_the_bits_of_the_steps_after_the_checkpoint(team: MakeTeam, tmp_path: Path) -> None:
    stores = team(1).stores(zeros(), SGD(lr=0.1), codec=wl.codec.TopK(), codec_down=wl.codec.RandomK(ratio=0.1))
    updated(stores, 0)
    folder = stores[0].checkpoint(tmp_path).result()
    after = [updated(stores, step)[0] for step in (1, 2)]
    stores[0].restore(folder)
    assert same(stores[0].pull().result(), saved(folder, checkpoint_format.shown_key))
    assert all(map(same, [updated(stores, step)[0] for step in (1, 2)], after))


def test_an_increment_holds_what_was_shown_since_though_no_weight_moved(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores(zeros(), SGD(lr=0.1), codec_down=wl.codec.OneBit())
    updated([store], 0)
    with store.step():
        store.push(gradients(1, 0))
    store.checkpoint(tmp_path, full_every=5).result()  # of weights that nobody has read
    shown = {name: array.copy() for name, array in store.skip().items()}
    folder = store.checkpoint(tmp_path, full_every=5).result()
    updated([store], 2)
    store.restore(folder)
    assert same(store.pull().result(), shown)


def test_assigned_values_are_shown_as_they_are(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(zeros(), SGD(lr=0.1), codec_down=wl.codec.OneBit())
    updated(stores, 0)
    pair.each(lambda _, rank: stores[rank].assign(gradients(5, 5)))
    pulled = pair.each(lambda _, rank: stores[rank].pull().result())
    assert same(pulled[0], gradients(5, 5))
    assert same(pulled[1], gradients(5, 5))


def test_links_that_break_change_no_bit(team: MakeTeam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_LINK", "tcp")
    pair = team()
    stores = pair.stores(zeros(), SGD(lr=0.1), codec_down=wl.codec.Int8())
    for step in range(12):
        tickets = [store.push_pull(gradients(step, rank)) for rank, store in enumerate(stores)]
        for link in list(pair[step % 2]._member.pump.links.values()):
            link.sock.shutdown(socket.SHUT_RDWR)  # answers are lost, entries sent again
        first, second = [ticket.result(30.0) for ticket in tickets]
        assert same(first, second)


def test_modes_without_common_steps_refuse_it_in_words(team: MakeTeam) -> None:
    for consistency in ("asp", "ssp:2"):
        store = team(workers=1)[0].store(consistency[:3], consistency=consistency)
        with pytest.raises(UsageError, match=r"no step in common.*consistency=.*Float16"):
            store.init(zeros(), SGD(lr=0.1), codec_down=wl.codec.Int8())
