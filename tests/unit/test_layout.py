"""Layout: every element of every tensor lies in exactly one segment, aligned, and both sides find it there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import layout, limits
from windlass_proto.errors import UsageError
from windlass_proto.layout import GroupLayout, TensorSpec

SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=12)
DTYPES = st.sampled_from(["float32", "float64"])


@st.composite
def groups(draw: st.DrawFn) -> GroupLayout:
    shapes = draw(SHAPES)
    tensors = tuple(TensorSpec(f"t{i}", shape) for i, shape in enumerate(shapes))
    return GroupLayout(draw(st.integers(0, 2**32 - 1)), draw(DTYPES), tensors, draw(st.sampled_from([64, 1024])), 256)


@given(groups())
def test_segments_cover_every_element_of_every_tensor_once(group: GroupLayout) -> None:
    seen = [np.zeros(tensor.elements, np.int64) for tensor in group.tensors]
    for block in group.blocks:
        for segment in block.segments:
            seen[segment.tensor][segment.tensor_begin : segment.tensor_begin + segment.elements] += 1
    for counts in seen:
        np.testing.assert_array_equal(counts, 1)


@given(groups())
def test_segments_tile_their_block_and_blocks_tile_the_group(group: GroupLayout) -> None:
    flat = 0
    for b, block in enumerate(group.blocks):
        assert (block.index, block.flat_begin) == (b, flat)
        assert 0 < block.elements <= group.block_elements
        at = 0
        for segment in block.segments:
            assert segment.begin == at
            assert segment.end - segment.begin >= segment.elements >= 0
            at = segment.end
        assert at == block.elements
        flat += block.elements
    assert flat == group.flat_elements


@given(groups())
def test_segments_begin_on_cache_lines_and_pad_less_than_one(group: GroupLayout) -> None:
    line = limits.ALIGN_BYTES // group.dtype.itemsize
    for block in group.blocks:
        for segment in block.segments:
            assert segment.begin % line == 0
            assert segment.end % line == 0
            assert segment.end - segment.begin - segment.elements < line


@given(groups())
def test_segments_of_a_tensor_follow_its_elements(group: GroupLayout) -> None:
    for tensor, places in enumerate(group.segments_of):
        at = 0
        for b, s in places:
            segment = group.blocks[b].segments[s]
            assert (segment.tensor, segment.tensor_begin) == (tensor, at)
            at += segment.elements
        assert at == group.tensors[tensor].elements


@given(groups())
def test_views_and_segments_name_the_same_elements(group: GroupLayout) -> None:
    flat = np.arange(group.flat_elements, dtype=group.dtype)
    views = group.views(flat)
    for block in group.blocks:
        for segment in block.segments:
            whole = views[group.tensors[segment.tensor].name].reshape(-1)
            part = whole[segment.tensor_begin : segment.tensor_begin + segment.elements]
            begin = block.flat_begin + segment.begin
            np.testing.assert_array_equal(part, flat[begin : begin + segment.elements])


def test_a_small_group_lies_where_it_always_has() -> None:
    tensors = (TensorSpec("w", (10, 100)), TensorSpec("b", (3,)), TensorSpec("none", (0, 5)), TensorSpec("s", ()))
    group = GroupLayout(7, "float32", tensors, 1024, 256)
    assert group.flat_begins == (0, 1008, 1024, 1024, 1040)
    assert [(b.flat_begin, b.elements, b.vshard) for b in group.blocks] == [(0, 1024, 0x12), (1024, 16, 0x92)]
    assert [(s.tensor, s.begin, s.end) for s in group.blocks[0].segments] == [(0, 0, 1008), (1, 1008, 1024)]
    assert [(s.tensor, s.elements, s.end) for s in group.blocks[1].segments] == [(3, 1, 16)]
    assert group.segments_of == (((0, 0),), ((0, 1),), (), ((1, 0),))


@given(st.integers(0, 2**40))
def test_blocks_are_an_eighth_rounded_up_to_a_power_of_two_within_the_limits(elements: int) -> None:
    block = layout.block_elements_for(elements)
    assert limits.BLOCK_ELEMENTS_MIN <= block <= limits.BLOCK_ELEMENTS_MAX
    assert block & (block - 1) == 0
    if limits.BLOCK_ELEMENTS_MIN < block < limits.BLOCK_ELEMENTS_MAX:
        assert block / 2 < elements / 8 <= block


def test_a_smaller_largest_block_is_kept_to() -> None:
    assert layout.block_elements_for(2**30, 4096) == 4096
    assert layout.block_elements_for(1, 4096) == 4096


@given(st.integers(0, 2**40), st.sampled_from([4, 8]))
def test_padding_fills_whole_cache_lines(elements: int, itemsize: int) -> None:
    padded = layout.padded(elements, itemsize)
    assert padded * itemsize % 64 == 0
    assert 0 <= padded - elements < 64 // itemsize


@pytest.mark.parametrize("name", ["float8", "int32", "complex64", ""])
def test_other_dtypes_are_refused_with_what_is_supported(name: str) -> None:
    with pytest.raises(UsageError, match="float32 or float64"):
        layout.dtype_named(name)


@given(SHAPES, DTYPES, st.sampled_from([64, 1024]))
def test_the_layout_whole_cuts_no_tensor_and_fills_blocks_with_neighbours(
    shapes: list[tuple[int, ...]], dtype: str, block_elements: int
) -> None:
    tensors = tuple(TensorSpec(f"t{i}", shape) for i, shape in enumerate(shapes))
    group = GroupLayout(5, dtype, tensors, block_elements, 256, whole=True)
    assert all(len(places) <= 1 for places in group.segments_of)
    assert sum(block.elements for block in group.blocks) == group.flat_elements
    for before, block in zip(group.blocks, group.blocks[1:], strict=False):
        assert block.flat_begin == before.flat_begin + before.elements
        first = block.segments[0]
        assert before.elements + first.end - first.begin > block_elements, "there was room in the block before"
    for block in group.blocks:
        assert len(block.segments) == 1 or block.elements <= block_elements


def test_blocks_of_whole_tensors_lie_where_they_were_placed() -> None:
    tensors = tuple(TensorSpec(f"t{i}", (900,)) for i in range(3))
    group = GroupLayout(5, "float32", tensors, 1024, 256, whole=True, homes=(7, 250, 7))
    assert [block.vshard for block in group.blocks] == [7, 250, 7]


def test_a_whole_tensor_of_more_than_a_frame_is_refused_in_words() -> None:
    most = limits.WHOLE_TENSOR_BYTES_MAX // 4
    layout.check_whole("w", most, "float32")
    for dtype, elements in (("float32", most + 1), ("float64", most // 2 + 1), ("float16", most + 1)):
        with pytest.raises(UsageError, match=r"too large for layout=.whole. \(tensor=w, bytes=660602\d\d.*Split it"):
            layout.check_whole("w", elements, dtype)


def test_a_layout_that_there_is_not_is_refused_with_the_nearest() -> None:
    assert [layout.layout_named(name) for name in ("", "blocks", "whole")] == ["blocks", "blocks", "whole"]
    with pytest.raises(UsageError, match="Did you mean whole"):
        layout.layout_named("hole")
