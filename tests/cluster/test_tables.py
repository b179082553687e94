"""Sparse tables on a real cluster: rows in the order asked, steps, means, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adagrad, Adam, GroupAdagrad, GroupFTRL, RowWiseAdagrad
from windlass.sparse_table import Table
from windlass.store import Store
from windlass_proto.errors import UsageError
from windlass_rules.rows import build_rows

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
DIM = 16


def ones(*shape: int, value: float = 1.0) -> np.ndarray:
    return np.full((*shape, DIM), value, np.float32)


def declared(team: Team, mode: str, optimizer: Any = None, **options: Any) -> list[tuple[Store, Table]]:
    """A store with a table "user" on every worker; rows begin at 0."""

    def declare(worker: wl.Cluster, _: int) -> tuple[Store, Table]:
        store = worker.store("model", consistency=mode)
        rule = optimizer if optimizer is not None else SGD(lr=1.0)
        given: dict[str, Any] = {"dim": DIM, "optimizer": rule, "init": wl.init.Zeros()}
        return store, store.table("user", **(given | options))

    return team.each(declare)


def held(table: Table) -> dict[int, float]:
    """id -> first value of its row."""
    return {int(item): float(row[0]) for ids, rows in table.items() for item, row in zip(ids, rows, strict=True)}


def test_rows_come_back_in_the_order_and_shape_asked(team: MakeTeam) -> None:
    ((_, table),) = declared(team(1), "asp")
    ids = np.array([[3, 2**64 - 1], [3, 7]], np.uint64)
    table.push(ids, np.stack([ones(2, value=1.0), ones(2, value=10.0)])).result()
    found = table.pull(ids.astype(object).astype(np.uint64)).result()
    assert found.shape == (2, 2, DIM)
    assert found[..., 0].tolist() == [[-11.0, -1.0], [-11.0, -10.0]]
    assert table.pull(np.zeros((0, 4), np.int8)).result().shape == (0, 4, DIM)
    assert held(table) == {3: -11.0, 2**64 - 1: -1.0, 7: -10.0}


@pytest.mark.parametrize("link", ["tcp", "unix"])
def test_rows_of_any_length_travel_in_frames(team: MakeTeam, link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    ((_, table),) = declared(team(1), "asp", dim=3)
    ids = np.arange(101)
    grads = np.arange(303, dtype=np.float32).reshape(101, 3)
    assert table.push_pull(ids, grads).result().tolist() == (-grads).tolist()
    assert table.pull(ids[::-1]).result().tolist() == (-grads[::-1]).tolist()
    assert len(table) == 101
    assert sum(len(run) for run, _ in table.items()) == 101


def test_only_pushes_make_rows_and_absent_ones_are_as_their_initialiser_says(team: MakeTeam) -> None:
    pairs = declared(team(), "asp", init=wl.init.Normal(0.1, seed=4))
    first = pairs[0][1].pull([1, 2, 3]).result()
    assert len(pairs[0][1]) == 0
    assert np.unique(first).size > 40
    assert np.array_equal(pairs[1][1].pull([3, 1]).result(), first[[2, 0]])
    pairs[0][1].push([2], ones(1, value=0.0)).result()
    assert len(pairs[1][1]) == 1
    assert np.array_equal(pairs[1][1].pull([1, 2, 3]).result(), first)


@pytest.mark.parametrize("mode", ["asp", "ssp:2", "bsp"])
@pytest.mark.parametrize("dim", [1, 3, 16])
def test_every_push_is_applied_once_whatever_the_mode(team: MakeTeam, mode: str, dim: int) -> None:
    pairs = declared(team(), mode, reduce="sum", dim=dim)
    random = np.random.default_rng(5)
    batches = [random.integers(0, 300, (20, 50)) for _ in pairs]

    def train(_: object, rank: int) -> None:
        for ids in batches[rank]:
            pairs[rank][1].push_pull(ids, np.ones((ids.size, dim), np.float32)).result()

    for_each(pairs, train)
    counts = np.bincount(np.concatenate([b.reshape(-1) for b in batches]), minlength=300)
    assert held(pairs[0][1]) == {i: -float(n) for i, n in enumerate(counts) if n}


def for_each(pairs: list[tuple[Store, Table]], act: Callable[[object, int], Any]) -> list[Any]:
    """`act` on every worker in a thread of its own."""
    with ThreadPoolExecutor(len(pairs)) as pool:
        return [f.result(60) for f in [pool.submit(act, None, rank) for rank in range(len(pairs))]]


def test_a_mean_is_over_all_who_pushed_to_the_table_in_the_step(team: MakeTeam) -> None:
    pairs = declared(team(), "bsp")

    def step(_: object, rank: int) -> Any:
        mine = [[1, 5], [5]][rank]
        table = pairs[rank][1]
        table.push(mine, ones(len(mine), value=4.0), weight=[1.0, 3.0][rank])
        return table.pull([1, 5]).result()[:, 0].tolist()

    assert for_each(pairs, step) == [[-1.0, -4.0]] * 2
    assert [store.clock for store, _ in pairs] == [1, 1]


@pytest.mark.parametrize(("reduce", "steps"), [("sum", 1000), ("mean", 80)])
def test_workers_with_ids_of_their_own_close_every_step_on_every_server(
    team: MakeTeam, reduce: str, steps: int
) -> None:
    """A step closes on bands and servers where a worker had no row: nobody waits for a row that does not come."""
    pairs = declared(team(), "bsp", reduce=reduce)

    def train(_: object, rank: int) -> list[float]:
        store, table = pairs[rank]
        for step in range(steps):
            table.push([1000 * rank + step % 8], ones(1))
            table.pull([1000 * rank + step % 8]).result()
        assert store.clock == steps
        everywhere = np.arange(2048)  # rows of every band of both servers, none read before its step is complete
        found = table.pull(everywhere).result()[:, 0]
        return [float(found[at]) for at in (0, 1000, 7, 1007)] + [float(np.count_nonzero(found))]

    each = -steps / 8 / (1 if reduce == "sum" else 2)
    assert for_each(pairs, train) == [[each] * 4 + [16.0]] * 2


def test_a_step_holds_tensors_and_tables(team: MakeTeam) -> None:
    pairs = declared(team(), "bsp")

    def step(_: object, rank: int) -> tuple[float, float]:
        store, table = pairs[rank]
        store.init({"w": np.zeros(4, np.float32)}, SGD(lr=1.0))
        with store.step():
            store.push({"w": np.ones(4, np.float32)})
            table.push([9], ones(1))
            table.push([9], ones(1))
        return float(store.pull().result()["w"][0]), float(table.pull([9]).result()[0, 0])

    assert for_each(pairs, step) == [(-1.0, -2.0)] * 2
    assert [store.clock for store, _ in pairs] == [1, 1]


@pytest.mark.parametrize("rule", [Adagrad(lr=0.5), Adam(lr=0.1), SGD(lr=0.1, momentum=0.9)], ids=str)
def test_bsp_gives_the_same_bits_in_every_run(team: MakeTeam, rule: Any) -> None:
    group = team()
    runs = []
    for run in range(2):

        def declare(worker: wl.Cluster, _: int, run: int = run) -> tuple[Store, Table]:
            store = worker.store(f"run {run}", consistency="bsp")
            return store, store.table("user", DIM, rule)

        pairs = group.each(declare)

        def train(_: object, rank: int, pairs: list[tuple[Store, Table]] = pairs) -> None:
            random = np.random.default_rng(rank)
            for _ in range(10):
                ids = random.integers(0, 50, 30)
                pairs[rank][1].push_pull(ids, random.normal(size=(30, DIM)).astype(np.float32)).result()

        for_each(pairs, train)
        runs.append(pairs[0][1].pull(np.arange(50)).result())
    assert np.array_equal(runs[0], runs[1])


def test_calls_larger_than_a_frame_are_cut(team: MakeTeam) -> None:
    pairs = declared(team(), "bsp", reduce="sum")
    ids = np.random.default_rng(1).permutation(200_000)

    def step(_: object, rank: int) -> Any:
        return pairs[rank][1].push_pull(ids, np.broadcast_to(np.float32(1), (ids.size, DIM))).result()

    for found in for_each(pairs, step):
        assert (found == -2.0).all()
    assert len(pairs[0][1]) == 200_000


def test_erased_rows_begin_anew(team: MakeTeam) -> None:
    ((_, table),) = declared(team(1), "asp", Adagrad(lr=1.0))
    for _ in range(3):
        table.push([1, 2], ones(2)).result()
    before = table.pull([1, 2]).result()
    table.erase([1, 999])
    assert len(table) == 1
    assert table.pull([1, 2]).result()[:, 0].tolist() == [0.0, before[1, 0]]
    table.push([1], ones(1)).result()
    assert table.pull([1]).result()[0, 0] == -1.0, "its slots were kept"


def test_wrong_arguments_raise_in_the_call(team: MakeTeam) -> None:
    ((store, table),) = declared(team(1), "asp")
    for ids, said in (([-1], "hash64"), ([1.5], "hash64"), (["a"], "hash64")):
        with pytest.raises(UsageError, match=said):
            table.pull(np.array(ids))
    with pytest.raises(UsageError, match="another shape"):
        table.push([1, 2], ones(3))
    with pytest.raises(UsageError, match="another dtype"):
        table.push([1], np.ones((1, DIM)))
    with pytest.raises(UsageError, match="dim"):
        store.table("other", 0, SGD(lr=1.0))
    with pytest.raises(UsageError, match="initialiser"):
        store.table("other", 4, SGD(lr=1.0), init=0.5)  # type: ignore[arg-type]
    assert len(table) == 0


@pytest.mark.parametrize(
    ("option", "other", "said"),
    [
        ("dim", 8, "16.*8|8.*16"),
        ("dtype", np.float64, "float32.*float64|float64.*float32"),
        ("optimizer", Adagrad(), "SGD.*Adagrad|Adagrad.*SGD"),
        ("init", wl.init.Normal(0.5), "Zeros.*Normal|Normal.*Zeros"),
        ("reduce", "sum", "mean.*sum|sum.*mean"),
    ],
)
def test_workers_that_declare_a_table_differently_are_told_both_values(
    team: MakeTeam, option: str, other: Any, said: str
) -> None:
    pairs = declared(team(), "asp")
    options: dict[str, Any] = {"dim": DIM, "optimizer": SGD(lr=1.0), "init": wl.init.Zeros()}
    assert pairs[1][0].table("user", **options) is pairs[1][1]
    with pytest.raises(UsageError, match=said):
        pairs[1][0].table("user", **(options | {option: other}))


@pytest.mark.parametrize("mode", ["asp", "bsp"])
def test_rows_that_are_not_finite_raise_in_the_call_and_nothing_changes(team: MakeTeam, mode: str) -> None:
    ((store, table),) = declared(team(1), mode)
    table.push_pull([1, 2], ones(2)).result()
    bad = ones(2)
    bad[1, 3] = np.nan
    with pytest.raises(UsageError, match=r"not finite.*user"):
        table.push_pull([2, 3], bad)
    assert held(table) == {1: -1.0, 2: -1.0}
    assert store.clock == 1
    huge = np.full((2, DIM), 3e38, np.float32)
    assert (table.push_pull([4, 5], huge).result() == -huge).all(), "large values are finite"


@pytest.mark.parametrize("mode", ["asp", "bsp"])
def test_a_sum_of_one_ids_gradients_that_overflows_is_refused_by_the_server(team: MakeTeam, mode: str) -> None:
    ((_, table),) = declared(team(1), mode)
    ticket = table.push_pull([4, 4], np.full((2, DIM), 3e38, np.float32))
    with pytest.raises(UsageError, match="user"):
        ticket.result()
    assert held(table) == {}


@pytest.mark.parametrize("mode", ["asp", "bsp"])
def test_a_push_beyond_the_tables_bytes_is_refused_and_the_steps_go_on(team: MakeTeam, mode: str) -> None:
    ((store, table),) = declared(team(1), mode, bytes_max=100 * (DIM * 4 + 24))
    table.push_pull(np.arange(20), ones(20)).result()
    with pytest.raises(UsageError, match=r"full.*user"):
        table.push_pull(np.arange(100, 1000), ones(900)).result()
    assert len(table) == 20
    assert (table.push_pull(np.arange(20), ones(20)).result() == -2.0).all()
    assert store.clock == 3


TRAIN = """
import os, signal, numpy as np, windlass as wl
with wl.connect() as cluster:
    store = cluster.store("m", consistency="bsp")
    table = store.table("user", 8, wl.optim.SGD(lr=1.0), init=wl.init.Zeros(), reduce="sum")
    for step in range(400):
        ids = [step % 13, 100 + cluster.rank]
        rows = table.push_pull(ids, np.ones((2, 8), np.float32)).result()
        if step == 20:
            print("step 20", flush=True)
        if step == 20 and cluster.rank == 1:
            table.push([7], np.ones((1, 8), np.float32))
            print("inside", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    print("mine", rows[1, 0], "others", table.pull([101]).result()[0, 0], flush=True)
"""


def test_the_others_go_on_when_a_worker_dies_inside_a_step(local: LocalCluster, job: str, tmp_path: Path) -> None:
    with Workers(local, TRAIN, count=2, run_dir=tmp_path, job=job) as workers:
        workers.await_text(1, "inside")
        first, _ = workers.finish(check=False)
    assert first.status == 0, first.story()
    assert "mine -400.0 others -21.0" in first.out


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_a_live_change_is_for_tensors_and_tables_alike_or_for_those_named(team: MakeTeam, mode: str) -> None:
    ((store, table),) = declared(team(1), mode)
    store.init({"w": np.zeros(2)}, SGD(lr=1.0))

    def stepped() -> tuple[float, float]:
        with store.step():
            store.push({"w": np.ones(2)})
            table.push([4], ones(1))
        return float(store.pull().result()["w"][0]), held(table)[4]

    store.set(lr=0.5)
    assert stepped() == (-0.5, -0.5)
    store.set(lr=0.25, names="us*")
    assert stepped() == (-1.0, -0.75)
    assert {name: spec["rule"].lr for name, spec in store.specs().items()} == {"w": 0.5, "user": 0.25}
    with pytest.raises(UsageError, match="betas"):
        store.set(betas=(0.5, 0.5), names="user")
    store.set(lr=1.0)
    assert stepped() == (-2.0, -1.75)


def test_a_live_change_of_a_table_holds_from_the_same_step_on_every_server(team: MakeTeam) -> None:
    pairs = declared(team(), "bsp", reduce="sum")
    ids = np.arange(64)

    def train(_: object, rank: int) -> list[set[float]]:
        store, table = pairs[rank]
        seen = []
        for step in range(3):
            if step == 1:
                store.set(lr=0.25, names="user")
            rows = table.push_pull(ids if rank == 0 else ids[:0], ones(64 if rank == 0 else 0)).result()
            seen.append(set(rows.reshape(-1).tolist()))
        return seen

    assert for_each(pairs, train)[0] == [{-1.0}, {-1.25}, {-1.5}]


def test_a_table_follows_a_plateau_with_its_store(team: MakeTeam) -> None:
    ((store, table),) = declared(team(1), "asp", SGD(lr=wl.schedule.Plateau(1.0, metric="loss", factor=0.5)))
    with pytest.raises(UsageError, match="plateau is for all"):
        store.init({"w": np.zeros(2)}, SGD(lr=1.0))
    assert store.plateau is not None
    store.plateau.due = True
    assert table.push_pull([4], ones(1)).result()[0, 0] == -0.5


def test_a_deleted_table_is_gone_with_its_rows_and_its_name_is_free(team: MakeTeam) -> None:
    pairs = declared(team(), "bsp", reduce="sum")

    def train(_: object, rank: int) -> None:
        store, table = pairs[rank]
        table.push_pull([1, 2], ones(2)).result()
        store.delete("user")
        assert store.specs() == {}
        with pytest.raises(UsageError, match="deleted"):
            table.pull([1]).result()
        again = store.table("user", 4, SGD(lr=1.0), init=wl.init.Constant(2.0))
        assert again.pull([1]).result().tolist() == [[2.0] * 4]
        assert len(again) == 0

    for_each(pairs, train)


@pytest.mark.parametrize("mode", ["asp", "bsp"])
def test_ids_are_admitted_and_rows_expire_by_what_was_pushed(team: MakeTeam, mode: str) -> None:
    life: dict[str, Any] = {"admit": wl.admit.Count(2), "evict": (wl.evict.TTL(3), wl.evict.LRU(100_000))}
    ((store, table),) = declared(team(1), mode, **life)

    def pushed(*ids: int) -> list[float]:
        return [float(row[0]) for row in table.push_pull(list(ids), ones(len(ids))).result()]

    every = list(range(100, 200))  # so that every band hears of every step
    seen = [pushed(1, 2, *every)[:2], pushed(1, *every)[:1], pushed(1, 2, *every)[:2]]
    assert seen == [[0.0, 0.0], [-1.0], [-2.0, -1.0]], "what the first push of an id held is dropped"
    for _ in range(4):
        pushed(*every)
    assert not {1, 2} & held(table).keys()
    assert table.pull([1]).result()[0, 0] == 0.0
    assert [pushed(1, *every)[0] for _ in range(2)] == [0.0, -1.0], "it is counted anew"
    figures = table.figures()
    assert figures["pushes_not_admitted"] == 103
    assert figures["rows"] - figures["rows_evicted"] == 99
    assert store.specs()["user"]["admit"] == wl.admit.Count(2)


def test_workers_that_declare_a_tables_life_differently_are_told_both(team: MakeTeam) -> None:
    pairs = declared(team(), "asp", admit=wl.admit.Count(2))
    with pytest.raises(UsageError, match=r"Count\(n=2\).*TTL\(steps=5\)|TTL\(steps=5\).*Count\(n=2\)"):
        pairs[1][0].table("user", DIM, SGD(lr=1.0), init=wl.init.Zeros(), evict=wl.evict.TTL(5))
    with pytest.raises(UsageError, match=r"more rows than its bytes.*bytes_max=1000000"):
        pairs[0][0].table("other", DIM, SGD(lr=1.0), bytes_max=1_000_000, evict=wl.evict.LFU(1 << 20))


def test_hot_rows_are_named_with_about_how_many_calls_named_them(team: MakeTeam) -> None:
    ((_, table),) = declared(team(1), "asp")
    for number in range(40):
        table.push_pull(np.arange(1000 * number, 1000 * number + 700), ones(700)).result()
        table.pull(np.arange(7, 2000)).result()
    found = dict(table.hot(128))
    assert len(found) > 30
    assert 20_000 < sum(found.values()) <= 40 * (700 + 1993) + 8 * 512, "no more than was named"
    assert [len(table.hot(n)) for n in (1, 3)] == [1, 3]
    with pytest.raises(UsageError, match="128"):
        table.hot(1000)


def test_specs_say_what_a_table_is(team: MakeTeam) -> None:
    ((store, _),) = declared(team(1), "asp", bytes_max=1 << 20)
    assert store.specs() == {
        "user": {
            "shape": (None, DIM),
            "dtype": "float32",
            "rule": SGD(lr=1.0),
            "init": wl.init.Zeros(),
            "bytes_max": 1 << 20,
            "admit": None,
            "evict": (),
        }
    }


def test_a_table_follows_its_schedule_by_the_clock(team: MakeTeam) -> None:
    ((_, table),) = declared(team(1), "bsp", SGD(lr=wl.schedule.Step(1.0, step_size=2, gamma=0.5)))
    seen = [float(table.push_pull([4], ones(1)).result()[0, 0]) for _ in range(4)]
    assert seen == [-1.0, -2.0, -2.5, -3.0]


@pytest.mark.parametrize("mode", ["asp", "bsp"])
def test_a_table_comes_back_as_it_was_saved_with_its_slots_and_schedule(
    team: MakeTeam, mode: str, tmp_path: Path
) -> None:
    rule = Adagrad(lr=wl.schedule.Step(1.0, step_size=3, gamma=0.5))
    pairs = declared(team(), mode, rule, reduce="sum")

    def train(_: object, rank: int) -> None:
        store, table = pairs[rank]
        for step in range(3):
            table.push_pull([step, 50 + rank], ones(2, value=2.0)).result()
        store.checkpoint(tmp_path).result()

    for_each(pairs, train)
    table = pairs[0][1]
    saved = held(table)
    after = for_each(pairs, lambda _, rank: pairs[rank][1].push_pull([1, 99], ones(2)).result()[:, 0].tolist())
    table.erase([2])
    for_each(pairs, lambda _, rank: pairs[rank][0].restore(tmp_path))
    assert held(table) == saved
    if mode == "bsp":
        again = for_each(pairs, lambda _, rank: pairs[rank][1].push_pull([1, 99], ones(2)).result()[:, 0].tolist())
        assert again == after


def test_a_table_is_exported_in_the_order_of_its_ids(team: MakeTeam, tmp_path: Path) -> None:
    ((store, table),) = declared(team(1), "asp")
    ids = np.random.default_rng(0).permutation(5000)[:1000]
    table.push(ids, np.repeat(ids, DIM).reshape(-1, DIM).astype(np.float32)).result()
    store.export(tmp_path / "model.safetensors")
    found = wl.load_tensors(tmp_path / "model.safetensors")
    assert found.keys() == {"user.ids", "user.rows"}
    assert found["user.ids"].tolist() == sorted(ids.tolist())
    assert (found["user.rows"] == -found["user.ids"][:, None].astype(np.float32)).all()


@pytest.mark.parametrize(
    "rule",
    [RowWiseAdagrad(lr=0.5), GroupAdagrad(lr=0.5, l21=0.05), GroupFTRL(lr=0.5, l21=0.05, l2=0.1)],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_of_whole_rows_step_rows_wherever_they_lie(team: MakeTeam, rule: Any) -> None:
    """Two servers, four bands each: the rows are those of one kernel over a table in one piece."""
    ((_, table),) = declared(team(1), "asp", rule, init=wl.init.Constant(0.5))
    kernel = build_rows(rule, "float32")
    random = np.random.default_rng(2)
    rows = np.full(200 * DIM, 0.5, np.float32)
    slots = tuple(np.full(200 * slot.width(DIM), slot.fill, np.float32) for slot in kernel.slots)
    for step in (1, 2, 3):
        ids = np.arange(200) if step == 1 else random.choice(200, 90, replace=False)
        grads = random.standard_normal((ids.size, DIM)).astype(np.float32) * 0.1
        table.push_pull(ids, grads).result()
        scalars = kernel.scalars(rule, step)
        kernel.update((rows, *slots), ids.astype(np.uint32), DIM, grads.reshape(-1), 1.0, scalars)
    assert table.pull(np.arange(200)).result().tobytes() == rows.tobytes()


def test_a_rule_of_whole_rows_is_refused_for_dense_tensors(team: MakeTeam) -> None:
    (store,) = team(1).each(lambda worker, _: worker.store("model", consistency="asp"))
    with pytest.raises(UsageError, match=r"steps whole rows.*rule=group_ftrl"):
        store.init({"w": np.zeros(3, np.float32)}, GroupFTRL())
    store.init({"w": np.zeros(3, np.float32)}, SGD(lr=0.1))
