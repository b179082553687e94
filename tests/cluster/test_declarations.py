"""Declaring: whose values win, what must agree, what arrays are taken, and that a cell run twice is no harm."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.cluster.team import Team
from windlass.optim import SGD, Adam
from windlass_proto.codec_specs import Int8, OneBit
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def test_the_values_of_rank_0_win(team: MakeTeam) -> None:
    trio = team(3)

    def declare(worker: Any, rank: int) -> float:
        params = worker.store().init({"w": np.full(4, 10.0 + rank, np.float32)}, SGD(lr=1.0))
        return float(params["w"][0])

    assert trio.each(declare) == [10.0] * 3


def test_init_again_with_the_same_names_returns_live_values(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": np.zeros(4, np.float32)})
    pair.each(lambda _, rank: stores[rank].update({"w": np.ones(4, np.float32)}))
    again = pair.each(lambda worker, _: worker.store("model").init({"w": np.full(4, 99, np.float32)}, SGD(lr=1.0)))
    assert [params["w"][0] for params in again] == [-1.0, -1.0]
    assert [store.clock for store in stores] == [1, 1]
    assert pair.each(lambda _, rank: stores[rank].update({"w": np.ones(4, np.float32)})["w"][0]) == [-2.0, -2.0]


def test_init_again_with_new_names_adds_tensors_and_keeps_the_others(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": np.zeros(4, np.float32)}, SGD(lr=1.0, momentum=0.5))
    pair.each(lambda _, rank: stores[rank].update({"w": np.ones(4, np.float32)}))
    pair.stores({"extra": np.full(2, 5.0, np.float32)}, Adam(lr=0.5))
    both = {"w": np.ones(4, np.float32), "extra": np.ones(2, np.float32)}
    for params in pair.each(lambda _, rank: stores[rank].update(both)):
        assert params["w"][0] == -2.5, "momentum was kept"
        assert params["extra"][0] == pytest.approx(4.5)


def test_a_notebook_cell_that_grows_may_be_run_again(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": np.zeros(4, np.float32)})
    alone.update({"w": np.ones(4, np.float32)})
    grown = alone.init({"w": np.zeros(4, np.float32), "b": np.full(2, 3.0, np.float32)}, SGD(lr=1.0))
    assert (grown["w"][0], grown["b"][0]) == (-1.0, 3.0)


DIFFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any], list[str]]] = {
    "names": ({}, {"other": np.zeros(4, np.float32)}, {}, ["other", "w"]),
    "shape": ({}, {"w": np.zeros((2, 3), np.float32)}, {}, ["rank_0_declare[ds]=4", "rank_1_declare[ds]=2x3"]),
    "dtype": ({}, {"w": np.zeros(4, np.float64)}, {}, ["float32", "float64"]),
    "optimizer": ({}, None, {"optimizer": Adam(lr=0.5)}, ["SGD", "Adam"]),
    "rate": ({}, None, {"optimizer": SGD(lr=0.25)}, [r"lr=1\.0", r"lr=0\.25"]),
    "reduce": ({}, None, {"reduce": "sum"}, ["mean", "sum"]),
    "codec": ({"codec": Int8()}, None, {"codec": OneBit()}, ["codec=Int8", "codec=OneBit"]),
    "policy": ({}, None, {"nonfinite": "zero"}, ["nonfinite=reject", "nonfinite=zero"]),
    "lazy": ({"lazy": True}, None, {}, ["another lazy", "True", "False"]),
    "groups": ({"groups": {"w": {"lr_mult": 2.0}}}, None, {"groups": {"w": {"lr_mult": 3.0}}}, ["2", "3"]),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_what_differs_between_workers_is_refused_with_both_values_and_ranks(team: MakeTeam, what: str) -> None:
    first, arrays, second, said = DIFFERENCES[what]
    pair = team()
    given: list[dict[str, Any]] = [
        {"arrays": {"w": np.zeros(4, np.float32)}, "optimizer": SGD(lr=1.0), **first},
        {"arrays": arrays or {"w": np.zeros(4, np.float32)}, "optimizer": SGD(lr=1.0), **second},
    ]
    # Rank 0 has declared once its first values are there; it then waits in `init` for rank 1.
    entering = pair.begin(lambda: pair[0].store().init(**given[0]))
    pair[1].store()
    while not any(store["job"] == pair[1].job and store["groups"] for store in pair[1].status()["stores"]):
        pass
    with pytest.raises(UsageError) as refused:
        pair[1].store().init(**given[1])
    for part in [*said, "rank_0", "rank_1"]:
        assert re.search(part, str(refused.value)), (part, str(refused.value))
    pair[1].store().init(**given[0])
    assert entering.result(30.0)["w"].shape == (4,)


def test_workers_must_open_a_store_with_one_mode(team: MakeTeam) -> None:
    pair = team()
    pair[0].store("model", consistency="asp")
    with pytest.raises(UsageError, match=r"rank_0=asp.*rank_1_asks=ssp:2"):
        pair[1].store("model", consistency="ssp:2")
    with pytest.raises(UsageError, match=r"open=asp.*asked=bsp"):
        pair[0].store("model")
    with pytest.raises(UsageError, match="bsp"):
        pair[0].store("model", consistency="eventually")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.int16),
        np.zeros(3, np.int32),
        np.zeros(3, np.complex64),
        np.zeros(3, bool),
        np.array(["a"]),
        np.array([None]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_dtypes_are_refused_in_words_and_nothing_is_declared(team: MakeTeam, array: np.ndarray) -> None:
    alone = team(1)[0]
    with pytest.raises(UsageError, match=r"unsupported dtype.*float32 or float64"):
        alone.store().init({"w": np.zeros(2, np.float32), "bad": array}, SGD(lr=1.0))
    assert alone.store().init({"w": np.ones(2, np.float32)}, SGD(lr=1.0))["w"][0] == 1.0


ARRAYS: dict[str, np.ndarray] = {
    "empty": np.zeros((0, 5), np.float32),
    "scalar": np.array(3.5, np.float32),
    "one element": np.array([[[2.0]]], np.float32),
    "non-contiguous": np.arange(20, dtype=np.float32)[::2],
    "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "fortran": np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
    "big-endian": np.arange(6).astype(">f4"),
    "broadcast": np.broadcast_to(np.float32(2.0), (3, 3)),
    "long": np.arange(100_003, dtype=np.float64),
}
ARRAYS["read-only"] = np.arange(4, dtype=np.float32)
ARRAYS["read-only"].flags.writeable = False


def test_arrays_of_every_layout_are_taken_as_values_and_as_gradients(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(ARRAYS)
    for name, value in stores[1].pull().result().items():
        np.testing.assert_array_equal(value, ARRAYS[name])
        assert value.dtype.isnative
    for params in pair.each(lambda _, rank: stores[rank].update(ARRAYS)):
        assert all((value == 0.0).all() for value in params.values())
        assert {name: value.shape for name, value in params.items()} == {n: a.shape for n, a in ARRAYS.items()}


def test_a_store_of_empty_tensors_steps_like_any_other(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"nothing": np.zeros((0, 2), np.float32)})
    for params in pair.each(lambda _, rank: stores[rank].update({"nothing": np.zeros((0, 2), np.float32)})):
        assert params["nothing"].shape == (0, 2)
    assert stores[0].clock == 1


def test_lists_and_numbers_are_arrays_of_float64(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": [1.0, 2.0], "c": 3.0})
    assert alone.update({"w": [1.0, 1.0], "c": 1.0})["w"].tolist() == [0.0, 1.0]
    assert alone.specs()["c"]["dtype"] == "float64"


def test_two_thousand_tensors_are_one_step(team: MakeTeam) -> None:
    pair = team()
    arrays = {f"t{i:04}": np.full(i % 37, i, np.float32) for i in range(2000)}
    stores = pair.stores(arrays)
    gradients = {name: np.ones_like(array) for name, array in arrays.items()}
    for params in pair.each(lambda _, rank: stores[rank].update(gradients)):
        assert all((params[name] == array - 1).all() for name, array in arrays.items())
    some = [f"t{i:04}" for i in range(0, 2000, 7)]
    seen = stores[0].pull(some).result()
    assert list(seen) == some
    assert all((seen[name] == arrays[name] - 1).all() for name in some)


def test_groups_are_name_patterns_of_which_the_first_match_counts(team: MakeTeam) -> None:
    arrays = {name: np.ones(3, np.float64) for name in ("w1", "w2", "b1", "frozen")}
    groups = {"frozen": {"lr_mult": 0.0}, "b*": {"decay_mult": 0.0}, "*1": {"lr_mult": 100.0}, "w2": {"lr_mult": 2.0}}
    (alone,) = team(1).stores(arrays, SGD(lr=0.5, weight_decay=0.25), groups=groups)
    params = alone.update({name: np.full(3, 2.0) for name in arrays})
    # The rate times its multiplier, times the gradient plus the decay times its multiplier and the weight.
    assert params["frozen"][0] == 1.0
    assert params["b1"][0] == 1.0 - 0.5 * 2.0
    assert params["w1"][0] == 1.0 - 0.5 * 100.0 * 2.25
    assert params["w2"][0] == 1.0 - 0.5 * 2.0 * 2.25


def test_a_group_may_name_tensors_of_an_earlier_init(team: MakeTeam) -> None:
    groups = {"old": {"lr_mult": 2.0}, "new": {"lr_mult": 3.0}}
    (alone,) = team(1).stores({"old": np.zeros(2)}, SGD(lr=1.0), groups={"old": {"lr_mult": 2.0}})
    alone.init({"new": np.zeros(2)}, SGD(lr=1.0), groups=groups)
    params = alone.update({"old": np.ones(2), "new": np.ones(2)})
    assert (params["old"][0], params["new"][0]) == (-2.0, -3.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arrays": {}}, "no tensors"),
        ({"arrays": {"": np.zeros(2, np.float32)}}, "name of 1 to 256 bytes"),
        ({"arrays": {"x" * 300: np.zeros(2, np.float32)}}, "name of 1 to 256 bytes"),
        ({"arrays": {"w": None}}, "not an array"),
        ({"arrays": {"w": object()}}, "not an array"),
        ({"reduce": "max"}, "mean, sum"),
        ({"groups": {"w": {"learning_rate": 2.0}}}, "lr_mult, decay_mult"),
        ({"groups": {"w": {"lr_mult": float("nan")}}}, "finite"),
        ({"groups": {"w": {"lr_mult": "2"}}}, "finite"),
        ({"groups": {"w": 2.0}}, "not a dict"),
        ({"groups": {"wieght*": {"lr_mult": 2.0}}}, "matches no tensor .group=wieght"),
        ({"optimizer": "adam"}, "optim"),
        ({"arrays": [np.zeros(2, np.float32)]}, "name"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_wrong_argument_of_init_raises_in_the_call(team: MakeTeam, change: dict[str, Any], said: str) -> None:
    alone = team(1)[0]
    given: dict[str, Any] = {"arrays": {"w": np.zeros(2, np.float32)}, "optimizer": SGD(lr=1.0)}
    with pytest.raises(UsageError, match=said):
        alone.store().init(**given | change)
    assert alone.store().init(**given)["w"][0] == 0.0


def test_specs_say_shape_dtype_and_rule_of_each_tensor(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float64)}, SGD(lr=0.5))
    assert alone.specs() == {
        "w": {"shape": (2, 3), "dtype": "float32", "rule": SGD(lr=0.5)},
        "b": {"shape": (3,), "dtype": "float64", "rule": SGD(lr=0.5)},
    }


def test_stores_of_one_job_are_apart_and_jobs_are_apart(team: MakeTeam) -> None:
    alone = team(1)
    (left,) = alone.stores({"w": np.zeros(2, np.float32)}, name="left")
    (right,) = alone.stores({"w": np.full(2, 7.0, np.float64)}, name="right")
    left.update({"w": np.ones(2, np.float32)})
    assert right.pull().result()["w"].tolist() == [7.0, 7.0]
    assert (left.clock, right.clock) == (1, 0)
