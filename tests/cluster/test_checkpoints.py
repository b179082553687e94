"""Checkpoints of a live cluster: one cut, one action, restored bit for bit onto any number of servers, or refused."""

from __future__ import annotations

import contextlib
import functools
import itertools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adam
from windlass.sparse_table import Table
from windlass.store import Store
from windlass_proto import checkpoint_folders
from windlass_proto.errors import CorruptionError, UnavailableError, UsageError
from windlass_proto.rule_specs import RuleSpec

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
Values = dict[str, np.ndarray]
IDS = np.arange(400)


def model(seed: int = 0, rows: int = 700) -> Values:
    """Two dtypes, so two groups; the first has four blocks, which lie on both servers."""
    random = np.random.default_rng(seed)
    return {
        "w": random.normal(size=(rows, 700)).astype(np.float32),
        "b": random.normal(size=7).astype(np.float32),
        "wide": random.normal(size=(33, 5)),
    }


def steps(store: Store, count: int, *, first: int, table: Table | None = None) -> list[Values]:
    """`count` updates with gradients of the step's number; the values after each, with all rows of `table`."""
    found = []
    for number in range(first, first + count):
        if table is not None:
            random = np.random.default_rng(number)
            chosen = random.integers(0, IDS.size, 100)
            table.push(chosen, random.normal(size=(100, table.dim)).astype(np.float32))
        values = copied(store.update(model(number, store.specs()["w"]["shape"][0])))
        found.append(values if table is None else values | {"rows": table.pull(IDS).result()})
    return found


def copied(values: Values) -> Values:
    return {name: np.array(value) for name, value in values.items()}


def same(one: Values, other: Values) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def pulled(store: Store) -> Values:
    return copied(store.pull().result())


@contextlib.contextmanager
def alone(cluster: LocalCluster, job: str, optimizer: RuleSpec, consistency: str = "bsp") -> Iterator[Store]:
    """The store of one worker, declared with other first values than any checkpoint has."""
    with wl.connect(cluster.address, job=job, workers=1) as worker:
        store = worker.store("model", consistency=consistency)
        store.init(model(99), optimizer)
        yield store


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [(Adam(lr=0.1), (1, 2, 5)), (SGD(lr=0.1, momentum=0.9), (3,))],
    ids=["adam", "momentum"],
)
def test_weights_slots_and_counts_come_back_bit_for_bit_on_any_number_of_servers(
    optimizer: RuleSpec, numbers: tuple[int, ...], team: MakeTeam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store,) = team(1).stores(model(), optimizer)
    table = store.table("user", 5, optimizer)
    saved = steps(store, 3, first=10, table=table)[-1]
    folder, count = store.checkpoint(tmp_path / "saved").result(), len(table)
    after = steps(store, 3, first=20, table=table)
    for servers in numbers:
        with LocalCluster.start(servers=servers, run_dir=tmp_path / str(servers)) as other:
            monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(other.token_file))
            with alone(other, "other", optimizer) as restored:
                rows = restored.table("user", 5, optimizer)
                rows.push_pull([3, 900], np.ones((2, 5), np.float32)).result()
                assert restored.restore(folder) == wl.Resume(3, 0, {})
                assert same(pulled(restored) | {"rows": rows.pull(IDS).result()}, saved)
                assert len(rows) == count
                assert all(map(same, steps(restored, 3, first=20, table=rows), after))


def test_schedules_count_the_steps_before_the_checkpoint(team: MakeTeam, local: LocalCluster, tmp_path: Path) -> None:
    rule = SGD(lr=wl.schedule.Step(1.0, step_size=4, gamma=0.5))
    (store,) = team(1).stores({"w": np.zeros(4)}, rule)
    for _ in range(3):
        store.update({"w": np.ones(4)})
    store.checkpoint(tmp_path).result()
    with wl.connect(local.address, job="schedule resumed", workers=1) as worker:
        resumed = worker.store("model")
        resumed.init({"w": np.zeros(4)}, rule)
        resumed.resume(tmp_path)
        held = [float(resumed.update({"w": np.ones(4)})["w"][0]) for _ in range(3)]
    assert held == [-4.0, -4.5, -5.0], "the fourth step is the last at the first rate"


def test_what_was_set_live_is_live_again_for_those_it_was_set_for(
    team: MakeTeam, local: LocalCluster, tmp_path: Path
) -> None:
    ones = {name: np.ones(4) for name in ("a", "b", "late")}
    (store,) = team(1).stores({"a": np.zeros(4)}, SGD(lr=1.0))
    store.table("t", 4, SGD(lr=1.0))
    store.init({"b": np.zeros(4)}, SGD(lr=1.0))
    store.set(lr=0.5)
    store.set("[tb]", lr=wl.schedule.Step(0.25, step_size=2, gamma=0.5))
    store.init({"late": np.zeros(4)}, SGD(lr=1.0))
    store.update(ones)
    store.checkpoint(tmp_path).result()
    live = store.specs()
    held = [{name: float(v[0]) for name, v in store.update(ones).items()} for _ in range(2)]
    store.set(lr=8.0)
    store.restore(tmp_path)
    assert store.specs() == live, "what was set since is not live any more"
    assert [{name: float(v[0]) for name, v in store.update(ones).items()} for _ in range(2)] == held
    with wl.connect(local.address, job="live resumed", workers=1) as worker:
        resumed = worker.store("model")
        for name in ("late", "b", "a"):
            resumed.init({name: np.zeros(4)}, SGD(lr=1.0))
        resumed.table("t", 4, SGD(lr=1.0))
        resumed.resume(tmp_path)
        assert resumed.specs() == live
        assert [{name: float(v[0]) for name, v in resumed.update(ones).items()} for _ in range(2)] == held


def test_a_checkpoint_without_live_values_takes_those_of_the_run_back(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = pair.stores({"w": np.zeros(4)}, SGD(lr=1.0))
    pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path).result())
    pair.each(lambda _, rank: stores[rank].set(lr=0.5))
    pair.each(lambda _, rank: stores[rank].restore(tmp_path))
    assert pair.each(lambda _, rank: stores[rank].update({"w": np.ones(4)})["w"].tolist()) == [[-1.0] * 4] * 2


def test_training_goes_on_while_parts_are_written_and_the_checkpoint_is_of_its_step(
    team: MakeTeam, tmp_path: Path
) -> None:
    pair = team()
    stores = pair.stores(model(), Adam(lr=0.1))
    trained = pair.each(lambda _, rank: steps(stores[rank], 2, first=1))
    savings = pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path))
    later = pair.each(lambda _, rank: steps(stores[rank], 4, first=10))
    folders = pair.each(lambda _, rank: savings[rank].result())
    assert folders == [tmp_path / "step-000002"] * 2
    assert pair.each(lambda _, rank: stores[rank].restore(tmp_path)) == [wl.Resume(2, 0, {})] * 2
    assert same(pulled(stores[0]), trained[0][-1])
    again = pair.each(lambda _, rank: steps(stores[rank], 4, first=10))
    assert all(map(same, again[1], later[1]))


def test_a_checkpoint_by_one_worker_waits_for_the_steps_before_it(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=1.0))
    first = stores[0].push_pull(model(1))
    saving = pair.begin(lambda: stores[0].checkpoint(tmp_path).result())
    late = copied(stores[1].update(model(1)))
    folder = saving.result(30.0)
    assert same(copied(first.result()), late)
    pair.each(lambda _, rank: steps(stores[rank], 1, first=7))
    stores[1].restore(folder)
    assert same(pulled(stores[0]), late)


@pytest.mark.parametrize("consistency", ["asp", "ssp:2"])
def test_without_barriers_each_share_is_saved_as_a_reader_sees_it(
    consistency: str, team: MakeTeam, tmp_path: Path
) -> None:
    (store,) = team(1).stores(model(), Adam(lr=0.1), consistency)
    saved = steps(store, 3, first=1)[-1]
    folder = store.checkpoint(tmp_path).result()
    after = steps(store, 2, first=9)
    store.restore(folder)
    assert same(pulled(store), saved)
    assert all(map(same, steps(store, 2, first=9), after))


def test_arrays_that_init_returned_hold_what_was_restored(team: MakeTeam, tmp_path: Path) -> None:
    store = team(1)[0].store("model")
    params = store.init(model(), SGD(lr=1.0))
    store.update(model(3), out=params)
    saved = copied(params)
    store.checkpoint(tmp_path).result()
    store.update(model(4), out=params)
    store.restore(tmp_path)
    assert same(copied(params), saved)


# ---- one action ----------------------------------------------------------------------------------------------------


def test_two_checkpoints_at_one_step_are_one_action(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=1.0))
    savings = pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path, state={"best": [1, 0.5]}))
    assert {str(saving.result()) for saving in savings} == {str(tmp_path / "step-000000")}
    parts = [path.name for path in (tmp_path / "step-000000").iterdir() if path.suffix == ".safetensors"]
    assert len(parts) == 2, "one a server"
    found = pair.each(lambda _, rank: stores[rank].resume(tmp_path))
    assert found == [wl.Resume(0, 0, {"best": [1, 0.5]})] * 2


def test_checkpoints_of_one_step_with_other_states_are_refused_with_both(team: MakeTeam, tmp_path: Path) -> None:
    stores = team().stores(model(), SGD(lr=1.0))
    stores[0].checkpoint(tmp_path, state={"seed": 1}).result()
    with pytest.raises(UsageError, match=r'rank_0_gave=.*"seed": 1.*rank_1_gives=.*"seed": 2'):
        stores[1].checkpoint(tmp_path, state={"seed": 2})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda store: store.checkpoint("nosuch://bucket/run"), "supported=a path"),
        (lambda store: store.checkpoint("x", state={"w": np.zeros(2)}), "state is not JSON"),
        (lambda store: store.checkpoint("x", state={"loss": float("nan")}), "state is not JSON"),
        (lambda store: store.checkpoint("x", keep_last=0), "keep_last=0"),
        (lambda store: store.restore("nothing"), "no complete checkpoint"),
    ],
    ids=["place", "array", "nan", "keep none", "no checkpoint"],
)
def test_wrong_arguments_raise_in_the_call(call: Callable[[Store], Any], said: str, team: MakeTeam) -> None:
    (store,) = team(1).stores(model(), SGD(lr=1.0))
    with pytest.raises(UsageError, match=said):
        call(store)
    steps(store, 1, first=1)


def test_a_checkpoint_inside_a_step_is_refused(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores(model(), SGD(lr=1.0))
    store.push(model(1))
    with pytest.raises(UsageError, match="checkpoint was called inside a step"):
        store.checkpoint(tmp_path)
    store.pull().result()
    store.checkpoint(tmp_path).result()


def test_two_stores_do_not_write_over_each_other(team: MakeTeam, tmp_path: Path) -> None:
    some = team(1)
    (first,) = some.stores(model(), SGD(lr=1.0))
    (second,) = some.stores(model(), SGD(lr=1.0), name="second")
    first.checkpoint(tmp_path).result()
    with pytest.raises(UsageError, match="holds=model, store=second"):
        second.checkpoint(tmp_path)
    with pytest.raises(UsageError, match="of another store"):
        second.restore(tmp_path)
    second.checkpoint(tmp_path / "second").result()


def test_keep_last_removes_older_ones_and_no_others(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores(model(), SGD(lr=1.0))
    (tmp_path / "step-000000").mkdir()
    (tmp_path / "step-000000" / "notes.txt").write_text("mine", encoding="utf-8")
    for _ in range(5):
        steps(store, 1, first=1)
        store.checkpoint(tmp_path, keep_last=2).result()
    assert [path.name for path in checkpoint_folders.folders(tmp_path)] == ["step-000005", "step-000004", "step-000000"]
    assert (tmp_path / "step-000000" / "notes.txt").exists()


def test_a_checkpoint_is_saved_to_and_resumed_from_storage_that_fsspec_reaches(team: MakeTeam, tmp_path: Path) -> None:
    """`local://` goes the way that s3:// goes, and ends where a test can look."""
    uri = f"local://{tmp_path}/bucket/run"
    (store,) = team(1).stores(model(), Adam(lr=0.1))
    for _ in range(3):
        steps(store, 1, first=1)
        saved = store.checkpoint(uri, state={"n": 1}, keep_last=2).result()
    assert str(saved) == f"{uri}/step-000003"
    held = pulled(store)
    assert sorted(path.name for path in (tmp_path / "bucket" / "run").iterdir()) == ["step-000002", "step-000003"]
    steps(store, 2, first=7)
    assert store.restore(uri) == wl.Resume(3, 0, {"n": 1})
    assert same(pulled(store), held)
    store.export(f"local://{tmp_path}/bucket/model.safetensors")
    assert same(wl.load_tensors(tmp_path / "bucket" / "model.safetensors"), held)
    (part,) = list((tmp_path / "bucket" / "run" / "step-000003").glob("part-0-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptionError, match=rf"file=local:\S*/{part.name}"):
        store.restore(uri)


def test_a_checkpoint_made_again_at_a_step_replaces_the_first(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores(model(), SGD(lr=1.0))
    store.checkpoint(tmp_path, state={"n": 1}).result()
    store.checkpoint(tmp_path, state={"n": 2}).result()
    assert len(list((tmp_path / "step-000000").iterdir())) == 3, "the first one's parts are gone"
    assert store.restore(tmp_path).state == {"n": 2}


# ---- resuming ------------------------------------------------------------------------------------------------------


def test_a_store_that_has_made_steps_is_not_resumed(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores(model(), SGD(lr=1.0))
    live = steps(store, 2, first=1)[-1]
    store.checkpoint(tmp_path).result()
    with pytest.raises(UsageError, match="has made steps"):
        store.resume(tmp_path)
    assert same(pulled(store), live)


def test_resume_happens_once_in_a_stores_life(local: LocalCluster, token: None, job: str, tmp_path: Path) -> None:
    with alone(local, f"{job}-before", SGD(lr=1.0)) as before:
        assert before.resume(tmp_path) is None
        saved = steps(before, 3, first=1)[-1]
        before.checkpoint(tmp_path, state={"k": 1}).result()
    with Team(local, job, workers=1) as some:
        (first,) = some.stores(model(99), SGD(lr=1.0), "asp")
        assert first.resume(tmp_path) == wl.Resume(3, 0, {"k": 1})
        assert same(pulled(first), saved)
        live = steps(first, 2, first=5)[-1]
        assert first.resume(tmp_path) == wl.Resume(3, 0, {"k": 1}), "a cell run twice"
        second = some.join().store("model", consistency="asp")
        second.init(model(99), SGD(lr=1.0))
        found = second.resume(tmp_path)
        assert found is not None
        assert found.step == 3 + second.clock
        assert same(pulled(second), live), "it is not rolled back"
        assert first.steps_done == 5


def test_batches_go_on_after_the_rows_that_were_read(
    local: LocalCluster, token: None, job: str, tmp_path: Path
) -> None:
    def resume_in(stores: list[Store], place: Path) -> Callable[[Any, int], wl.Resume | None]:
        return lambda _, rank: stores[rank].resume(place)

    def read(stores: list[Store], stop: int | None, worker: Any, rank: int) -> list[int]:
        rows: list[int] = []
        store = stores[rank]
        for batch in worker.batches(60, size=5, epochs=2, seed=3):
            store.update({"w": np.ones(2, np.float32)})
            rows += batch.tolist()
            if store.steps_done == stop:
                break
        store.checkpoint(tmp_path).result()
        return rows

    taken: list[list[int]] = []
    for number, workers in enumerate((2, 2, 3, 1)):
        with Team(local, f"{job}-{number}", workers=workers) as some:
            stores = some.stores({"w": np.zeros(2, np.float32)}, SGD(lr=1.0))
            resumed = some.each(resume_in(stores, tmp_path))
            assert len(set(map(str, resumed))) == 1
            stop = stores[0].steps_done + 3 if number < 3 else None
            taken += some.each(functools.partial(read, stores, stop))
    rows = list(itertools.chain(*taken))
    assert sorted(rows) == sorted([*range(60)] * 2), "neither repeated nor left out"


def test_passes_go_on_with_the_one_that_was_under_way(
    local: LocalCluster, token: None, job: str, tmp_path: Path
) -> None:
    taken: list[tuple[int, list[int]]] = []
    for number, stop in enumerate((7, 8, None)):  # inside the second pass, at its end, and to the end
        with Team(local, f"{job}-{number}", workers=1) as some:
            (store,) = some.stores({"w": np.zeros(2, np.float32)}, SGD(lr=1.0))
            resumed = store.resume(tmp_path)
            data = some[0].batches(20, size=5, seed=3)
            for epoch in range(resumed.epoch if resumed is not None else 0, 3):
                for batch in data:
                    store.update({"w": np.ones(2, np.float32)})
                    taken.append((epoch, batch.tolist()))
                    if store.steps_done == 7 == stop:
                        break
                if stop is not None and store.steps_done >= stop:
                    break
            store.checkpoint(tmp_path).result()
    assert [epoch for epoch, _ in taken] == [0] * 4 + [1] * 4 + [2] * 4
    for epoch in range(3):
        assert sorted(itertools.chain(*(rows for e, rows in taken if e == epoch))) == list(range(20))


# ---- what is not whole ---------------------------------------------------------------------------------------------


def saved_once(team: MakeTeam, tmp_path: Path) -> tuple[Store, Path, Values]:
    """A store with a checkpoint, its folder, and what the store holds since."""
    (store,) = team(1).stores(model(), Adam(lr=0.1))
    steps(store, 1, first=1)
    folder = store.checkpoint(tmp_path / "saved").result()
    return store, folder, steps(store, 1, first=2)[-1]


def damage(folder: Path, what: str) -> str:
    """Does what disks do; returns what must be said of it."""
    part = sorted(folder.glob("part-1-*"))[0]
    raw = bytearray(part.read_bytes())
    if what == "torn manifest":
        manifest = folder / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:-100])
        return r"step-000001/manifest\.json"
    if what == "no manifest":
        (folder / "manifest.json").unlink()
        return r"no manifest.*step-000001"
    if what == "missing part":
        part.unlink()
        return rf"cannot be read.*{part.name}"
    if what == "torn part":
        part.write_bytes(raw[:-1])
        return rf"another length.*{part.name}"
    raw[len(raw) // 2] ^= 1
    part.write_bytes(raw)
    return rf"not what was written.*{part.name}, digest=[0-9a-f]{{32}}, expected=[0-9a-f]{{32}}"


@pytest.mark.parametrize("what", ["torn manifest", "no manifest", "missing part", "torn part", "a flipped bit"])
def test_what_is_not_what_was_written_is_refused_by_name_and_nothing_changes(
    what: str, team: MakeTeam, tmp_path: Path
) -> None:
    store, folder, live = saved_once(team, tmp_path)
    said = damage(folder, what)
    with pytest.raises(CorruptionError, match=said):
        store.restore(folder)
    assert same(pulled(store), live)
    steps(store, 1, first=3)


@pytest.mark.parametrize("what", ["torn manifest", "no manifest", "missing part", "torn part"])
def test_a_newer_one_that_is_not_complete_is_passed_over(
    what: str, team: MakeTeam, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, folder, live = saved_once(team, tmp_path)
    whole = store.checkpoint(folder.parent).result()
    whole.rename(folder.with_name("step-000000"))
    damage(folder, what)
    steps(store, 1, first=3)
    assert store.restore(folder.parent).step == 2, "as its manifest says"
    assert same(pulled(store), live)
    assert "passed over" in capfd.readouterr().err


def test_a_rotten_part_fails_the_restore_of_every_worker(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=1.0))
    folder = pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path).result())[0]
    said = damage(folder, "a flipped bit")
    found = pair.errors(lambda _, rank: stores[rank].restore(folder))
    assert all(isinstance(error, CorruptionError) for error in found)
    for error in found:
        with pytest.raises(CorruptionError, match=said):
            raise error  # type: ignore[misc]
    pair.each(lambda _, rank: steps(stores[rank], 1, first=1))


@pytest.mark.parametrize(
    ("arrays", "optimizer", "said"),
    [
        (model(rows=3), Adam(lr=0.1), r"tensor=w, declared=float32 \[3, 700\], checkpoint=float32 \[700, 700\]"),
        ({**model(), "b": np.zeros(7)}, Adam(lr=0.1), r"declared=float64 \[7\], checkpoint=float32 \[7\]"),
        ({**model(), "more": np.zeros(7)}, Adam(lr=0.1), "lacks a declared tensor.*tensor=more"),
        (model(), SGD(lr=0.1), r"another update rule \(declared=SGD.*checkpoint=Adam"),
    ],
    ids=["shape", "dtype", "name", "rule"],
)
def test_what_was_declared_otherwise_is_refused_with_both(
    arrays: Values, optimizer: RuleSpec, said: str, team: MakeTeam, local: LocalCluster, job: str, tmp_path: Path
) -> None:
    with alone(local, f"{job}-before", Adam(lr=0.1)) as before:
        before.checkpoint(tmp_path).result()
    (store,) = team(1).stores(arrays, optimizer)
    with pytest.raises(UsageError, match=said):
        store.restore(tmp_path)
    assert same(pulled(store), arrays)


def test_tensors_declared_in_other_calls_and_blocks_are_found_by_name(
    team: MakeTeam, local: LocalCluster, job: str, tmp_path: Path
) -> None:
    with alone(local, f"{job}-before", Adam(lr=0.1)) as before:
        before.init({"extra": np.zeros(3)}, Adam(lr=0.1))
        saved = steps(before, 2, first=1)[-1]
        before.delete("extra")
        before.checkpoint(tmp_path).result()
        after = steps(before, 2, first=5)
    values = model(7)
    (store,) = team(1).stores({"b": values["b"], "wide": values["wide"]}, Adam(lr=0.1))
    store.init({"w": values["w"]}, Adam(lr=0.1))
    store.restore(tmp_path)
    assert same({name: pulled(store)[name] for name in saved}, saved)
    for step, expected in enumerate(after):
        found = copied(store.update(model(5 + step)))
        assert same({name: found[name] for name in expected}, expected)


def test_a_full_disk_fails_the_checkpoint_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster.start(servers=2, run_dir=tmp_path / "run") as cluster:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
        with alone(cluster, "job", SGD(lr=1.0)) as store:
            kept = store.checkpoint(tmp_path).result()
            steps(store, 1, first=1)
            limits = resource.prlimit(cluster.pids["server-1"], resource.RLIMIT_FSIZE)
            resource.prlimit(cluster.pids["server-1"], resource.RLIMIT_FSIZE, (100_000, limits[1]))
            said = r"could not be written \(file=.*/part-1-.*too large"
            with pytest.raises(UnavailableError, match=said):
                store.checkpoint(tmp_path).result()
            store.checkpoint(tmp_path)
            steps(store, 2, first=2)
            with pytest.raises(UnavailableError, match=said):
                store.checkpoint(tmp_path)
            resource.prlimit(cluster.pids["server-1"], resource.RLIMIT_FSIZE, limits)
            assert checkpoint_folders.newest(tmp_path, str)[0] == kept  # type: ignore[index]
            assert store.checkpoint(tmp_path).result().name == "step-000003"


# ---- workers that die ----------------------------------------------------------------------------------------------

DYING = """
import os, sys
import numpy as np
import windlass as wl
from windlass import checkpoints, server_orders
from windlass_proto.checkpoint_orders import Phase

place, at = sys.argv[1], sys.argv[2]
with wl.connect() as cluster:
    store = cluster.store("model")
    store.init({"w": np.zeros(300_000, np.float32)}, wl.optim.SGD(lr=1.0))
    store.update({"w": np.ones(300_000, np.float32)})
    if cluster.rank == 0:
        order = server_orders.send
        def dies(store, phase, *rest, **more):
            if phase is Phase.COPY:
                cluster.broadcast("granted")
            if phase.value == at:
                os._exit(9)
            return order(store, phase, *rest, **more)
        def dies_at_last(*_):
            os._exit(9)
        server_orders.send = dies
        if at == "manifest":
            checkpoints._Making.finish = dies_at_last
        store.checkpoint(place).result()
    else:
        cluster.broadcast(None)
        try:
            print("saved", store.checkpoint(place).result().name)
        except wl.UnavailableError as error:
            print("lost", error.fact)
        store.update({"w": np.ones(300_000, np.float32)})
        print("saved", store.checkpoint(place).result().name)
        print(store.restore(place + "/step-000002").step, store.pull().result()["w"][0])
"""


@pytest.mark.parametrize("at", ["copy", "write", "manifest"])
def test_a_checkpoint_outlives_the_worker_that_makes_it_or_never_counts(
    at: str, local: LocalCluster, job: str, tmp_path: Path
) -> None:
    """Who asks while the dying worker makes it hears at the manifest that it is lost; who asks later makes it anew."""
    place = tmp_path / "saved"
    with Workers(local, DYING, count=2, run_dir=tmp_path, arguments=[str(place), at], job=job) as workers:
        first, second = workers.finish(check=False)
    assert (first.status, second.status) == (9, 0), second.story()
    said, *later = second.out.splitlines()
    assert later == ["saved step-000002", "2 -2.0"]
    lost = "lost the worker that wrote a checkpoint has ended before it was whole"
    assert said == "saved step-000001" or (at == "manifest" and said == lost)
    complete = [(folder / "manifest.json").exists() for folder in checkpoint_folders.folders(place)]
    assert complete == [True, said != lost], "newest first"


# ---- plain files ---------------------------------------------------------------------------------------------------


def test_weights_are_exported_to_one_file_and_loaded_as_first_values(team: MakeTeam, tmp_path: Path) -> None:
    some = team(1)
    (store,) = some.stores(model(), SGD(lr=1.0))
    trained = steps(store, 2, first=1)[-1]
    store.export(tmp_path / "model.safetensors")
    assert same(wl.load_tensors(tmp_path / "model.safetensors"), trained)
    params = some[0].store("second").init(wl.load_tensors(tmp_path / "model.safetensors"), SGD(lr=1.0))
    assert same(copied(params), trained)
