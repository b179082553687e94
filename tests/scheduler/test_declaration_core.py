"""Declarations: rank 0's values win, grants pass on, and workers that differ are told so with both values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from windlass_proto.errors import UsageError
from windlass_proto.layout import TensorSpec
from windlass_scheduler.counters import Counters
from windlass_scheduler.declaration_core import (
    Abandoned,
    AwaitSeal,
    Declarations,
    Declare,
    Declared,
    Event,
    OpenStore,
    Seal,
    SealAwaited,
    SessionGone,
)
from windlass_scheduler.declared import Store, Tensor
from windlass_scheduler.effects import Answer, Persist, Refuse
from windlass_scheduler.placement import place

SMALLEST = 128 * 1024  # limits.BLOCK_ELEMENTS_MIN, said here on its own: tables made by a release keep their blocks


def tensors(dtype: str = "float32", **shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return named(shapes, dtype)


def named(shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32") -> tuple[Tensor, ...]:
    return tuple(Tensor(TensorSpec(name, shape), dtype) for name, shape in shapes.items())


class Driven:
    """One open store; every step is followed by `validate`. `rank_zero` says whether rank 0 is awaited."""

    def __init__(self) -> None:
        self.core = Declarations(Counters())
        self.rank_zero = True
        self.records: dict[str, Any] = {}
        opened = self.answers(self.step(OpenStore(1, "job", "main", "bsp", 0)))[1]
        assert isinstance(opened, Store)
        self.store_id = opened.store_id

    def step(self, event: Event) -> list[object]:
        effects = self.core.step(event)
        self.core.validate()
        for effect in effects:
            if isinstance(effect, Persist):
                self.records.pop(effect.key, None)
                if effect.record is not None:
                    self.records[effect.key] = effect.record
        return effects

    def answers(self, effects: list[object]) -> dict[int, object]:
        return {e.waiter: e.reply for e in effects if isinstance(e, Answer)}

    def declare(self, rank: int, declared: tuple[Tensor, ...], **fields: Any) -> Declared:
        given: dict[str, Any] = {
            "waiter": 1,
            "session": bytes([rank]),
            "rank": rank,
            "job": "job",
            "store_id": self.store_id,
            "step": 0,
            "tensors": declared,
            "rule": b"sgd",
            "rule_text": "SGD(lr=0.1)",
            "reduce": "mean",
            "block_elements_max": 0,
            "rank_zero_awaited": self.rank_zero,
            **fields,
        }
        reply = self.answers(self.step(Declare(**given)))[1]
        assert isinstance(reply, Declared)
        return reply

    def await_seal(self, rank: int, declaration_id: int = 1) -> list[object]:
        return self.step(AwaitSeal(10 + rank, bytes([rank]), rank, declaration_id, self.rank_zero))

    def gone(self, rank: int) -> list[object]:
        return self.step(SessionGone(bytes([rank]), "job", self.rank_zero))

    def seal(self, rank: int, declaration_id: int = 1) -> list[object]:
        return self.step(Seal(1, bytes([rank]), declaration_id))


WB = tensors(w=(64, 128), b=(128,))


def test_the_first_caller_is_not_granted_while_rank_0_lives() -> None:
    driven = Driven()
    assert not driven.declare(1, WB).granted
    assert driven.declare(0, WB).granted
    assert driven.declare(0, WB).granted, "asked again before sealing"
    assert not driven.declare(2, WB).granted


def test_without_rank_0_the_first_caller_is_granted() -> None:
    driven = Driven()
    driven.rank_zero = False
    assert driven.declare(3, WB).granted
    assert not driven.declare(2, WB).granted


def test_sealing_answers_all_who_wait_and_later_callers_at_once() -> None:
    driven = Driven()
    driven.declare(0, WB)
    driven.declare(1, WB)
    assert driven.answers(driven.await_seal(1)) == {}
    assert driven.answers(driven.seal(0)) == {1: None, 11: SealAwaited(sealed=True, granted=False)}
    assert driven.answers(driven.await_seal(2)) == {12: SealAwaited(sealed=True, granted=False)}
    assert driven.declare(2, WB).sealed
    assert driven.answers(driven.seal(0)) == {1: None}, "a repeated seal"


def test_only_the_granted_worker_seals() -> None:
    driven = Driven()
    driven.declare(0, WB)
    with pytest.raises(UsageError, match="not granted"):
        driven.seal(1)


def test_the_grant_of_a_dead_worker_passes_to_the_lowest_rank_that_waits() -> None:
    driven = Driven()
    driven.declare(0, WB)
    for rank in (3, 1, 2):
        driven.declare(rank, WB)
        driven.await_seal(rank)
    driven.rank_zero = False
    assert driven.answers(driven.gone(0)) == {11: SealAwaited(sealed=False, granted=True)}
    assert driven.answers(driven.gone(1)) == {12: SealAwaited(sealed=False, granted=True)}
    assert driven.answers(driven.seal(2)).keys() == {1, 13}


def test_rank_0_dying_before_it_declared_passes_the_grant() -> None:
    driven = Driven()
    driven.declare(2, WB)
    driven.await_seal(2)
    driven.rank_zero = False
    assert driven.answers(driven.gone(0)) == {12: SealAwaited(sealed=False, granted=True)}


def test_a_grant_without_waiters_goes_to_the_next_caller() -> None:
    driven = Driven()
    driven.declare(0, WB)
    driven.step(Abandoned(11))
    driven.rank_zero = False
    driven.gone(0)
    assert driven.answers(driven.await_seal(1)) == {11: SealAwaited(sealed=False, granted=True)}


@pytest.mark.parametrize(
    ("declared", "fields", "words"),
    [
        (tensors(w=(64, 127), b=(128,)), {}, "tensor=w, rank_0_declared=64x128, rank_2_declares=64x127"),
        (tensors("float64", w=(64, 128), b=(128,)), {}, "rank_0_declared=float32, rank_2_declares=float64"),
        (WB, {"rule": b"adam", "rule_text": "Adam()"}, r"rank_0_declared=SGD\(lr=0.1\), rank_2_declares=Adam\(\)"),
        (WB, {"reduce": "sum"}, "rank_0_declared=mean, rank_2_declares=sum"),
        (tensors(w=(64, 128)), {}, "only_rank_0_declared=b, only_rank_2_declares=none"),
        (tensors(w=(64, 128), b=(128,), c=(1,)), {}, "only_rank_0_declared=none, only_rank_2_declares=c"),
        (tensors(u=(1,)), {}, "only_rank_0_declared=b, w, only_rank_2_declares=u"),
        (tensors("int8", x=(1,)), {}, "dtype=int8, supported=float32 or float64 or float16"),
        ((), {}, "tensors=0"),
        (named({"": (1,)}), {}, "needs a name"),
        (WB + WB, {}, "twice"),
        (WB, {"reduce": "max"}, "max"),
        (WB, {"block_elements_max": 1000}, "power of two"),
        (WB, {"job": "other"}, "store_job=job"),
        (WB, {"store_id": 99}, "store_id=99"),
        (tensors(x=(1 << 30, 1 << 30)), {}, "too large"),
    ],
)
def test_a_declaration_that_differs_or_cannot_be_is_refused_with_both_values(
    declared: tuple[Tensor, ...], fields: dict[str, Any], words: str
) -> None:
    driven = Driven()
    driven.declare(0, WB)
    with pytest.raises(UsageError, match=words):
        driven.declare(2, declared, **fields)
    assert len(driven.core.declarations(driven.store_id)) == 1


def test_the_same_cell_run_twice_returns_what_is_declared() -> None:
    driven = Driven()
    first = driven.declare(0, WB)
    driven.seal(0)
    again = driven.declare(0, WB, step=40)
    assert (again.granted, again.sealed, again.groups) == (False, True, first.groups)


def test_a_worker_may_add_tensors_to_those_it_declared() -> None:
    driven = Driven()
    driven.declare(0, WB)
    driven.seal(0)
    more = driven.declare(0, (*WB, *tensors(c=(3,))), step=5)
    assert more.granted
    assert [[spec.name for spec in group.tensors] for group in more.groups] == [["w", "b"], ["c"]]
    driven.declare(1, WB)
    assert driven.declare(1, (*WB, *tensors(c=(3,))), step=5).declaration_id == more.declaration_id


def test_several_inits_in_one_order_are_several_declarations() -> None:
    driven = Driven()
    ids = [driven.declare(0, named({name: (4,)})).declaration_id for name in ("a", "b", "c")]
    assert [driven.declare(1, named({name: (4,)})).declaration_id for name in ("a", "b", "c")] == ids


def test_names_of_a_dead_worker_do_not_bind_the_next_one() -> None:
    driven = Driven()
    driven.declare(0, WB)
    driven.seal(0)
    driven.gone(0)
    assert driven.declare(0, tensors(u=(1,)), session=b"new").granted


def test_groups_are_one_a_dtype_in_first_seen_order() -> None:
    driven = Driven()
    mixed = (*tensors("float64", a=(3,)), *tensors(b=(3,)), *tensors("float64", c=(5,)))
    groups = driven.declare(0, mixed).groups
    assert [(g.dtype, [spec.name for spec in g.tensors]) for g in groups] == [
        ("float64", ["a", "c"]),
        ("float32", ["b"]),
    ]
    assert len({g.table_id for g in groups}) == 2


@pytest.mark.parametrize(
    ("elements", "cap", "block"),
    [
        (1, 0, SMALLEST),
        (8 * SMALLEST, 0, SMALLEST),
        (8 * SMALLEST + 1, 0, 2 * SMALLEST),
        (100 << 20, 0, 1 << 20),
        (100 << 20, 4096, 4096),
        (1, 1024, 1024),
    ],
)
def test_blocks_are_an_eighth_within_limits(elements: int, cap: int, block: int) -> None:
    groups = Driven().declare(0, tensors(w=(elements,)), block_elements_max=cap).groups
    assert groups[0].block_elements == block


def test_padding_to_64_bytes_counts_in_the_block_size() -> None:
    count = 8 * SMALLEST // 32
    many = named({f"t{i}": (17,) for i in range(count + 1)})  # each takes 32 elements
    assert Driven().declare(0, many[:-1]).groups[0].block_elements == SMALLEST
    assert Driven().declare(0, many).groups[0].block_elements == 2 * SMALLEST


@pytest.mark.parametrize("consistency", ["bsp", "asp", "ssp:4", "ssp:0", "bsp:k=2", "avg:H=16"])
def test_known_modes_open_a_store(consistency: str) -> None:
    core = Declarations(Counters())
    assert core.step(OpenStore(1, "job", "main", consistency, 0))


@pytest.mark.parametrize("consistency", ["", "ssp", "ssp:", "ssp:-1", "ssp:x", "BSP", "avg:16", "avg:H=0"])
def test_unknown_modes_are_refused(consistency: str) -> None:
    with pytest.raises(UsageError, match="consistency mode is not known"):
        Declarations(Counters()).step(OpenStore(1, "job", "main", consistency, 0))


def test_opening_a_store_with_another_consistency_names_both() -> None:
    driven = Driven()
    with pytest.raises(UsageError, match="rank_0=bsp, rank_3_asks=asp"):
        driven.step(OpenStore(1, "job", "main", "asp", 3))


def test_a_restart_knows_what_was_declared_granted_and_sealed() -> None:
    driven = Driven()
    driven.declare(0, WB)
    driven.seal(0)
    driven.declare(0, tensors("float64", c=(2, 3)))
    again = Driven.__new__(Driven)
    again.core, again.records, again.rank_zero = Declarations(Counters()), {}, True
    again.store_id = driven.store_id
    again.core.restore(driven.records)
    again.core.validate()
    assert again.core.groups(1) == driven.core.groups(1)
    assert again.declare(1, WB).sealed
    assert not again.declare(1, tensors("float64", c=(2, 3))).granted
    assert driven.answers(again.seal(0, 2)) == {1: None}


def test_whole_tensors_are_placed_once_and_come_back_after_a_restart() -> None:
    driven, parts = Driven(), tuple(place(range(2), 256).values())
    wide = tensors(a=(SMALLEST,), b=(2 * SMALLEST,), c=(SMALLEST,))
    (group,) = driven.declare(0, wide, layout="whole", runs=parts).groups
    assert [home < 128 for home in group.homes].count(True) in (1, 2)
    (again,) = driven.declare(1, wide, layout="whole", runs=parts[:1]).groups
    assert again == group
    (beside,) = driven.declare(0, tensors(d=(4 * SMALLEST,)), layout="whole", runs=parts).groups
    core = Declarations(Counters())
    core.restore(driven.records)
    assert [g.homes for g in core.groups(driven.store_id)] == [group.homes, beside.homes]


def test_another_layout_is_told_with_both() -> None:
    driven = Driven()
    driven.declare(0, WB)
    with pytest.raises(UsageError, match=r"another layout .*rank_0_declared=blocks, rank_1_declares=whole"):
        driven.declare(1, WB, layout="whole", runs=tuple(place(range(2), 256).values()))
    with pytest.raises(UsageError, match=r"too large for layout=.whole"):
        driven.declare(0, tensors(huge=(1 << 24,)), layout="whole")


def test_what_servers_refuse_is_not_declared_any_more_and_who_waits_is_told() -> None:
    driven = Driven()
    driven.declare(0, WB)
    driven.declare(1, WB)
    driven.await_seal(1)
    driven.step(Seal(1, bytes([1]), 1, "no room"))
    assert driven.declare(0, WB).granted, "it is granted to another, who has not said so"
    effects = driven.step(Seal(1, bytes([0]), 1, "beta is 2"))
    assert [str(e.error) for e in effects if isinstance(e, Refuse)] == [
        "the servers do not take the tensors of an init (reason=beta is 2)"
    ]
    assert driven.answers(driven.step(Seal(1, bytes([1]), 1, "beta is 2"))) == {1: None}, "another has said so"
    assert driven.declare(0, tensors(w=(3,), b=(5,)), rule=b"adam").granted
