"""The watch over a plateau: when lr is due to be lowered."""

from __future__ import annotations

import math
from typing import Any

import pytest

from windlass import schedule
from windlass.plateau import PlateauWatch
from windlass.schedule import Chain, Plateau
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import SGD
from windlass_proto.schedules import from_message_untrusted, to_message


def due_after(plateau: Plateau, values: list[float]) -> list[int]:
    """After which of `values` lr is lowered."""
    watch, found = PlateauWatch(plateau), []
    for i, value in enumerate(values):
        watch.observe({"other": 0.0, plateau.metric: value})
        if watch.due:
            found.append(i)
            watch.lowered(watch.plateau.lowered())
    return found


def test_lr_is_due_after_more_than_patience_values_that_are_no_better() -> None:
    assert due_after(Plateau(1.0, "loss", patience=2), [5, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3]) == [4, 7, 11]
    assert due_after(Plateau(1.0, "loss", patience=0), [5, 4, 3, 3]) == [3]


def test_better_is_by_more_than_the_threshold_and_may_be_more() -> None:
    assert due_after(Plateau(1.0, "loss", patience=0, threshold=0.1), [10, 9.5, 8.9]) == [1]
    assert due_after(Plateau(1.0, "acc", patience=0, rises=True), [0.5, 0.6, 0.55]) == [2]
    assert due_after(Plateau(1.0, "loss", patience=1), [math.nan, math.nan, 1.0]) == [1]


def test_what_is_not_logged_is_not_observed() -> None:
    watch = PlateauWatch(Plateau(1.0, "loss", patience=0))
    for _ in range(9):
        watch.observe({"accuracy": 0.0})
    assert not watch.due


def test_lowering_ends_at_its_end() -> None:
    plateau = Plateau(1.0, "loss", factor=0.5, end=0.3)
    rates = [plateau.lr]
    while plateau.lowered() != plateau:
        plateau = plateau.lowered()
        rates.append(plateau.lr)
    assert rates == [1.0, 0.5, 0.3]
    assert plateau.value(10**6) == 0.3
    assert Plateau(0.1, "loss", end=0.3).lowered().lr == 0.1, "it never rises"


def test_a_plateau_comes_back_from_its_message() -> None:
    plateau = Plateau(1.0, "loss", 0.5, 3, 0.01, 0.1, rises=True)
    assert from_message_untrusted(to_message(plateau)) == plateau


@pytest.mark.parametrize(
    "wrong",
    [{"metric": ""}, {"metric": 3}, {"metric": "x" * 300}, {"factor": 1.0}, {"patience": -1}, {"rises": "yes"}],
    ids=str,
)
def test_a_bad_value_is_a_usage_error(wrong: dict[str, Any]) -> None:
    untyped: Any = schedule
    with pytest.raises(UsageError, match="Plateau takes"):
        untyped.Plateau(**({"lr": 1.0, "metric": "loss"} | wrong))
    with pytest.raises(UsageError, match="schedules of the step"):
        Chain([(Plateau(1.0, "loss"), 5)])


def test_a_plateau_lowers_lr_and_nothing_else() -> None:
    with pytest.raises(UsageError, match=r"as lr, and as nothing else.*weight_decay"):
        SGD(lr=0.1, weight_decay=Plateau(0.1, "loss"))
