"""Actions that happen once, whoever asks: assign and delete; and that two different ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.cluster.team import Team
from windlass.optim import SGD
from windlass.store import Store
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def ones(value: float = 1.0, size: int = 4) -> np.ndarray:
    return np.full(size, value, np.float32)


def seen(stores: list[Store], name: str = "w") -> list[float]:
    return [float(store.pull([name]).result()[name][0]) for store in stores]


def test_assign_by_all_workers_is_one_action(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    pair.each(lambda _, rank: stores[rank].assign({"w": ones(5)}))
    assert seen(stores) == [5.0, 5.0]
    assert pair.each(lambda _, rank: stores[rank].update({"w": ones()})["w"][0]) == [4.0, 4.0]


def test_assign_by_one_worker_is_seen_by_all(team: MakeTeam) -> None:
    stores = team().stores({"w": ones(0), "v": ones(2)})
    stores[1].assign({"w": ones(6)})
    assert seen(stores) == [6.0, 6.0]
    assert seen(stores, "v") == [2.0, 2.0]


def test_assign_keeps_slots(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, SGD(lr=1.0, momentum=0.5))
    alone.update({"w": ones(1)})
    alone.assign({"w": ones(0)})
    assert alone.update({"w": ones(0)})["w"][0] == -0.5


def test_assign_waits_for_the_steps_before_it(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    stores[0].push_pull({"w": ones(1)})
    assigning = pair.begin(lambda: stores[0].assign({"w": ones(100)}))
    assert stores[1].update({"w": ones(1)})["w"][0] in (-1.0, 100.0)
    assigning.result(30.0)
    assert seen(stores) == [100.0, 100.0]


def test_different_assigns_at_one_step_are_refused_with_both_ranks_and_values(team: MakeTeam) -> None:
    stores = team().stores({"w": ones(0), "v": ones(0)})
    stores[0].assign({"w": ones(5)})
    with pytest.raises(UsageError, match=r"rank_0_gave=w=\[5\. 5\. 5\.\].*rank_1_gives=w=\[6\. 6\. 6\.\]"):
        stores[1].assign({"w": ones(6)})
    assert seen(stores) == [5.0, 5.0]


def test_assigns_of_different_tensors_at_one_step_are_different_actions(team: MakeTeam) -> None:
    stores = team().stores({"w": ones(0), "v": ones(0)})
    stores[0].assign({"w": ones(5)})
    with pytest.raises(UsageError, match=r"rank_0_gave=w=.*rank_1_gives=v="):
        stores[1].assign({"v": ones(5)})


def test_assigns_of_one_step_are_counted_so_that_a_cell_may_be_run_twice(team: MakeTeam) -> None:
    stores = team().stores({"w": ones(0)})
    stores[0].assign({"w": ones(5)})
    stores[0].assign({"w": ones(6)})
    stores[1].assign({"w": ones(5)})
    assert seen(stores) == [6.0, 6.0], "rank 1's first assign was done before"


def test_assign_of_thousands_of_tensors_is_one_action(team: MakeTeam) -> None:
    pair = team()
    arrays = {f"a tensor with a rather long name {i}": ones(0, 2) for i in range(1500)}
    stores = pair.stores(arrays)
    given = {name: ones(i, 2) for i, name in enumerate(arrays)}
    pair.each(lambda _, rank: stores[rank].assign(given))
    assert all(value[0] == given[name][0] for name, value in stores[1].pull().result().items())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"w": ones(0, 3)}, "another shape"),
        ({"w": np.zeros(4)}, "another dtype"),
        ({"ww": ones(0)}, "nearest=w"),
        ({}, "no arrays"),
    ],
    ids=["shape", "dtype", "name", "nothing"],
)
def test_a_wrong_assign_raises_before_it_is_agreed_on(team: MakeTeam, arrays: dict[str, Any], said: str) -> None:
    stores = team().stores({"w": ones(0)})
    with pytest.raises(UsageError, match=said):
        stores[0].assign(arrays)
    stores[1].assign({"w": ones(3)})
    assert seen(stores) == [3.0, 3.0]


# ---- delete --------------------------------------------------------------------------------------------------------


def test_deleted_tensors_are_gone_on_every_worker_that_deletes_them(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0), "gone": ones(1), "too": ones(2)})
    pair.each(lambda _, rank: stores[rank].update({"w": ones(), "gone": ones()}))
    pair.each(lambda _, rank: stores[rank].delete(["gone", "too"]))
    for store in stores:
        assert list(store.specs()) == ["w"]
        with pytest.raises(UsageError, match="not declared"):
            store.push({"gone": ones()})
    assert pair.each(lambda _, rank: stores[rank].update({"w": ones()})["w"][0]) == [-2.0, -2.0]
    assert seen(stores) == [-2.0, -2.0]


def test_who_goes_on_using_a_deleted_tensor_gets_a_usage_error(team: MakeTeam) -> None:
    stores = team().stores({"w": ones(0), "gone": ones(1)}, consistency="asp")
    stores[0].delete("gone")
    with pytest.raises(UsageError, match=r"a tensor was deleted.*store\.delete"):
        stores[1].pull(["gone"]).result()
    with pytest.raises(UsageError, match="a tensor was deleted"):
        stores[1].update({"gone": ones()})
    assert stores[1].update({"w": ones()})["w"][0] == -1.0
    stores[1].delete("gone")
    assert list(stores[1].pull().result()) == ["w"]


def test_a_store_may_be_emptied_and_its_memory_goes(team: MakeTeam, local: object) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0, 5000), "v": np.zeros(10)}, consistency="asp")
    stores[0].delete(["w", "v"])
    assert stores[0].specs() == {}
    with pytest.raises(UsageError, match="a tensor was deleted"):
        stores[1].update({"w": ones(1, 5000)})
    ours = [store for store in pair[0].status()["stores"] if store["store_id"] == stores[0].store_id]
    assert ours[0]["groups"] == []


def test_a_deleted_name_may_be_declared_anew_with_another_shape(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0), "head": ones(1)})
    pair.each(lambda _, rank: stores[rank].update({"w": ones(), "head": ones()}))
    pair.each(lambda _, rank: stores[rank].delete("head"))
    fresh = pair.each(lambda _, rank: stores[rank].init({"head": np.full((2, 2), 9.0)}, SGD(lr=2.0)))
    assert [params["head"].tolist() for params in fresh] == [[[9.0, 9.0], [9.0, 9.0]]] * 2
    results = pair.each(lambda _, rank: stores[rank].update({"w": ones(), "head": np.ones((2, 2))}))
    assert [(r["w"][0], r["head"][0, 0]) for r in results] == [(-2.0, 7.0)] * 2
    again = pair.each(lambda _, rank: stores[rank].init({"w": ones(0)}, SGD(lr=1.0)))
    assert [params["w"][0] for params in again] == [-2.0, -2.0]


def test_delete_waits_for_the_steps_before_it(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0), "gone": ones(0)})
    first = stores[0].push_pull({"w": ones(), "gone": ones()})
    deleting = pair.begin(lambda: stores[0].delete("gone"))
    late = stores[1].update({"w": ones(3), "gone": ones(3)})
    assert (late["w"][0], late["gone"][0]) == (-2.0, -2.0)
    assert first.result()["gone"][0] == -2.0
    stores[1].delete("gone")
    deleting.result(30.0)


def test_a_late_joiner_is_not_told_of_deleted_tensors(team: MakeTeam) -> None:
    pair = team(2)
    stores = pair.stores({"w": ones(0), "gone": ones(0)}, consistency="asp")
    pair.each(lambda _, rank: stores[rank].delete("gone"))
    params = pair.join().store("model", consistency="asp").init({"w": ones(0)}, SGD(lr=1.0))
    assert list(params) == ["w"]


@pytest.mark.parametrize(
    ("names", "said"), [([], "no tensors"), (["ghost"], "not declared"), (["w", "vv"], "nearest=v")]
)
def test_a_wrong_delete_raises_in_the_call(team: MakeTeam, names: list[str], said: str) -> None:
    (alone,) = team(1).stores({"w": ones(0), "v": ones(0)})
    with pytest.raises(UsageError, match=said):
        alone.delete(names)
    assert list(alone.specs()) == ["w", "v"]


def test_delete_inside_a_step_is_refused(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})
    alone.push({"w": ones()})
    with pytest.raises(UsageError, match="inside a step"):
        alone.delete("w")
    assert alone.pull().result()["w"][0] == -1.0


def test_different_deletes_at_one_step_are_refused_with_both(team: MakeTeam) -> None:
    stores = team().stores({"w": ones(0), "v": ones(0), "u": ones(0)})
    stores[0].delete("v")
    with pytest.raises(UsageError, match=r"rank_0_gave=v.*rank_1_gives=u"):
        stores[1].delete("u")
