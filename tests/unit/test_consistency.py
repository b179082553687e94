"""Consistency modes: what may be asked for, and what is said about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto.consistency import BOUND_MAX, NEEDED_MAX, Consistency, Mode
from windlass_proto.errors import UsageError


def test_the_three_families_are_read() -> None:
    assert Consistency.parse("bsp") == Consistency(Mode.BSP)
    assert Consistency.parse("asp") == Consistency(Mode.ASP)
    assert Consistency.parse("ssp:4") == Consistency(Mode.SSP, 4)
    assert Consistency.parse("ssp:0") == Consistency(Mode.SSP, 0)
    assert Consistency.parse(f"ssp:{BOUND_MAX}").bound == BOUND_MAX


def test_backup_workers_are_read_with_what_becomes_of_late_pushes() -> None:
    assert Consistency.parse("bsp:k=3") == Consistency(Mode.BSP, needed=3)
    assert Consistency.parse("bsp:k=3,late=drop") == Consistency(Mode.BSP, needed=3)
    assert Consistency.parse("bsp:k=3,late=fold") == Consistency(Mode.BSP, needed=3, folds=True)
    assert str(Consistency.parse("bsp:k=03,late=drop")) == "bsp:k=3"


def test_averaging_is_read_with_how_far_workers_are_pulled() -> None:
    assert Consistency.parse("avg:H=16") == Consistency(Mode.BSP, every=16)
    assert Consistency.parse("avg:H=16,elastic=0.25") == Consistency(Mode.BSP, every=16, elastic=0.25)
    for text in ("avg:H=1", "avg:H=16,elastic=0.1", "avg:H=7,elastic=1e-05"):
        assert str(Consistency.parse(text)) == text


@pytest.mark.parametrize(("text", "apart"), [("bsp", 0), ("ssp:0", 0), ("ssp:4", 4), ("asp", None), ("bsp:k=1", None)])
def test_a_mode_says_how_far_apart_workers_may_be(text: str, apart: int | None) -> None:
    assert Consistency.parse(text).apart == apart


@given(st.integers(0, BOUND_MAX))
def test_a_mode_is_read_as_it_is_written(bound: int) -> None:
    backup = Consistency(Mode.BSP, needed=bound % NEEDED_MAX + 1, folds=bool(bound & 1))
    for mode in (Consistency(Mode.BSP), Consistency(Mode.ASP), Consistency(Mode.SSP, bound), backup):
        assert Consistency.parse(str(mode)) == mode


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BSP",
        "bsp:",
        "bsp:3",
        "bsp:k=",
        "bsp:k=0",
        "bsp:k=-1",
        "bsp:k=3,",
        "bsp:k=3,late=keep",
        "bsp:k=\u0663",
        f"bsp:k={NEEDED_MAX + 1}",
        "asp:k=3",
        "avg",
        "avg:16",
        "avg:H=0",
        f"avg:H={BOUND_MAX + 1}",
        "avg:H=16,elastic=0",
        "avg:H=16,elastic=1",
        "avg:H=16,elastic=1e",
        "avg:H=16,elastic=..",
        "asp:1",
        "ssp",
        "ssp:",
        "ssp:-1",
        "ssp:+1",
        "ssp: 1",
        "ssp:1.0",
        "ssp:four",
        "ssp:1_0",
        "ssp:\u0664",
        "ssp:\u00b2",
        f"ssp:{BOUND_MAX + 1}",
        "ssp:" + "9" * 5000,
    ],
)
def test_anything_else_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(UsageError, match="ssp:N") as caught:
        Consistency.parse(text)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=20))
def test_any_text_is_a_mode_or_a_usage_error(text: str) -> None:
    try:
        mode = Consistency.parse(text)
    except UsageError:
        return
    assert Consistency.parse(str(mode)) == mode
