"""Lazy rows: rows that are named are stepped as in the dense tensor, and nothing else of it is touched."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs import capabilities
from tests.rules.conftest import ROW_SPECS, SPECS, TRUST_SPECS
from windlass_proto.consistency import Consistency
from windlass_proto.errors import UsageError
from windlass_proto.memory import aligned_zeros
from windlass_proto.row_pieces import RowPieces
from windlass_proto.rule_specs import DCASGD, RULES, SGD, Adam, RuleSpec, check_dense, check_lazy
from windlass_rules.registry import RULE_MODULES, build
from windlass_rules.rows import build_rows
from windlass_server.dense_memory import HostMemory, Values
from windlass_server.dense_rows import NamedRows
from windlass_server.lazy_rows import LazyRows, spread
from windlass_server.share_events import Source

ASP = Consistency.parse("asp")
LAZY = [spec for spec in SPECS if type(spec) is not DCASGD]
BEFORE = 64  # elements of another tensor that lie before the segment in its block


class Named(NamedTuple):
    """Who names which rows with which gradients, and what that is as gradients of the whole segment."""

    sources: list[Source]
    dense: list[Source]
    touched: np.ndarray


class Segment:
    """Weights and slots of a block, one segment of which are elements [begin, end) of a tensor of rows."""

    def __init__(self, spec: RuleSpec, dtype: str, begin: int, end: int, width: int) -> None:
        self.spec = spec
        self.kernels = build(spec, dtype)
        self.lazy = LazyRows(self.kernels, build_rows(spec, dtype))
        self.pieces = RowPieces(begin, end, width)
        random, size = np.random.default_rng(7), BEFORE + end - begin + BEFORE
        self.w = aligned_zeros(size, dtype)
        self.w[:] = random.standard_normal(size)
        self.slots = tuple(aligned_zeros(size, dtype) for _ in self.kernels.slots)
        for values in self.slots:
            values[:] = np.abs(random.standard_normal(size))

    def named(self, rows: list[list[int]], seed: int = 0) -> Named:
        """A source for each list of rows, of weights 1, 3, 5."""
        random, (begin, end, width) = np.random.default_rng(seed), self.pieces
        row_of = np.arange(begin, end) // width
        sources, dense = [], []
        for i, chosen in enumerate(rows):
            mine = np.isin(row_of, chosen)
            whole = np.where(mine, random.standard_normal(end - begin), 0).astype(self.w.dtype)
            names = NamedRows(self.pieces, np.array(sorted(set(chosen)), np.uint64), int(mine.sum()), end - begin)
            sources.append(Source(Values(whole[mine], None, names), 0, 2.0 * i + 1))
            dense.append(Source(Values(whole, None), 0, 2.0 * i + 1))
        return Named(sources, dense, np.isin(row_of, [row for chosen in rows for row in chosen]))

    def arrays(self) -> list[np.ndarray]:
        return [array.copy() for array in (self.w, *self.slots)]

    def step_lazily(self, named: Named, update: int) -> None:
        scalars = self.kernels.scalars(self.spec, update)
        self.lazy.update(self.w, self.slots, BEFORE, named.sources, 4.0, scalars)

    def step_dense(self, named: Named, update: int) -> None:
        scalars, count = self.kernels.scalars(self.spec, update), self.pieces.end - self.pieces.begin
        memory = HostMemory(self.kernels)
        memory.update(self.w, self.slots, BEFORE, count, tuple(named.dense), 0, 4.0, scalars, None)


def check(spec: RuleSpec, dtype: str, span: tuple[int, int, int], rows: list[list[int]]) -> None:
    for update in (1, 2, 9):
        lazily, dense = Segment(spec, dtype, *span), Segment(spec, dtype, *span)
        before, named = lazily.arrays(), lazily.named(rows, seed=update)
        lazily.step_lazily(named, update)
        dense.step_dense(named, update)
        touched = np.zeros(lazily.w.size, bool)
        touched[BEFORE:-BEFORE] = named.touched
        for was, found, due in zip(before, lazily.arrays(), dense.arrays(), strict=True):
            assert found[touched].tobytes() == due[touched].tobytes(), "named rows are stepped as in a dense tensor"
            assert found[~touched].tobytes() == was[~touched].tobytes(), "and no others"


@pytest.mark.parametrize("spec", LAZY, ids=str)
def test_named_rows_get_the_bits_of_the_dense_step_and_others_stay(spec: RuleSpec, dtype: str) -> None:
    check(spec, dtype, (10, 333, 16), [[0, 3, 4, 20], [3, 19, 7], []])


@pytest.mark.parametrize(
    ("span", "rows"),
    [
        pytest.param((0, 40, 1), [[0, 39, 7]], id="a vector's values"),
        pytest.param((14, 700, 7), [[2, 50, 99]], id="whole rows"),
        pytest.param((17, 100, 40), [[0, 1, 2], [2], [0]], id="cut at both ends"),
        pytest.param((6_000, 31_000, 5_000), [[1, 2, 6], [6, 3]], id="longer rows than a table's"),
        pytest.param((100, 164, 1_000), [[0], [0]], id="inside of one row"),
        pytest.param((0, 64, 8), [[], []], id="no row"),
    ],
)
def test_rows_are_found_however_the_segment_cuts_them(
    span: tuple[int, int, int], rows: list[list[int]], dtype: str
) -> None:
    check(Adam(lr=0.1, weight_decay=0.1), dtype, span, rows)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), begin=st.integers(0, 100), size=st.integers(1, 300), width=st.integers(1, 60))
def test_any_rows_of_any_segment(data: st.DataObject, begin: int, size: int, width: int) -> None:
    held = RowPieces(begin, begin + size, width).rows
    some = st.lists(st.sampled_from(list(held)), max_size=8, unique=True)
    check(
        SGD(lr=0.1, momentum=0.9),
        "float32",
        (begin, begin + size, width),
        data.draw(st.lists(some, min_size=1, max_size=3)),
    )


def test_rows_beside_a_whole_gradient_are_part_of_it() -> None:
    segment = Segment(SGD(lr=1.0), "float32", 3, 50, 4)
    named = segment.named([[0, 5, 12], [5]])
    mixed = spread([named.sources[0], named.dense[1]], 47)
    assert [bool((a.buffer.array == b.buffer.array).all()) for a, b in zip(mixed, named.dense, strict=True)] == [
        True
    ] * 2


def test_every_rule_is_lazy_or_refused_as_the_table_says() -> None:
    for spec in [*SPECS, *ROW_SPECS, *TRUST_SPECS]:
        try:
            check_dense(spec, ASP)
            check_lazy(spec, "float32")
            said = "yes"
        except UsageError:
            said = "no"
        assert capabilities.lazily(RULE_MODULES[type(spec)].variant(spec)) == said, spec
    assert {type(spec) for spec in LAZY} | {DCASGD} | {*map(type, ROW_SPECS), *map(type, TRUST_SPECS)} == {
        *RULES.values()
    }


def test_what_cannot_be_lazy_is_refused_in_words() -> None:
    refused: list[tuple[Any, str, str]] = [
        (DCASGD(), "float32", "copies of the weights"),
        (TRUST_SPECS[0], "float32", "norm of a whole tensor"),
        (SGD(lr=1.0, clip_norm=1.0), "float32", "norm of a whole tensor"),
        (SGD(lr=1.0), "bfloat16", "travel whole"),
    ]
    for spec, dtype, why in refused:
        with pytest.raises(UsageError, match=why):
            check_lazy(spec, dtype)
