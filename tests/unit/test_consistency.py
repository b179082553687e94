"""Consistency modes: what may be asked for, and what is said about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto.consistency import BOUND_MAX, Consistency, Mode
from windlass_proto.errors import UsageError


def test_the_three_families_are_read() -> None:
    assert Consistency.parse("bsp") == Consistency(Mode.BSP)
    assert Consistency.parse("asp") == Consistency(Mode.ASP)
    assert Consistency.parse("ssp:4") == Consistency(Mode.SSP, 4)
    assert Consistency.parse("ssp:0") == Consistency(Mode.SSP, 0)
    assert Consistency.parse(f"ssp:{BOUND_MAX}").bound == BOUND_MAX


@given(st.integers(0, BOUND_MAX))
def test_a_mode_is_read_as_it_is_written(bound: int) -> None:
    for mode in (Consistency(Mode.BSP), Consistency(Mode.ASP), Consistency(Mode.SSP, bound)):
        assert Consistency.parse(str(mode)) == mode


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BSP",
        "bsp:",
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
