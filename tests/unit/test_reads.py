"""Reads: which weights a worker's gradients are made from, segment by segment."""

from __future__ import annotations

from windlass.reads import RUNS_MAX, Read, Reads

TABLE = 9


def taken(*runs: tuple[int, int, int]) -> Reads:
    """Reads of segments [begin, end) of one block under a number, in this order."""
    reads = Reads({TABLE})
    for begin, end, number in runs:
        reads.take(Read(1, 0, begin, end, number))
    return reads


def test_a_gradient_is_made_from_the_newest_read_of_its_segments() -> None:
    reads = taken((0, 5, 3), (0, 5, 4), (1, 2, 6))
    assert [reads.number_of(1, 0, *span) for span in [(0, 1), (1, 2), (3, 5)]] == [4, 6, 4]


def test_segments_read_at_different_times_count_from_the_oldest() -> None:
    reads = taken((0, 2, 3), (2, 4, 7), (1, 3, 8))
    assert [reads.number_of(1, 0, *span) for span in [(0, 4), (1, 4), (1, 3)]] == [3, 7, 8]


def test_what_was_not_read_is_unknown() -> None:
    reads = taken((0, 2, 3))
    assert [reads.number_of(*place) for place in [(1, 0, 0, 3), (1, 1, 0, 1), (2, 0, 0, 1)]] == [0, 0, 0]


def test_a_band_is_read_whole_whatever_the_ids() -> None:
    reads = taken()
    reads.take(Read(TABLE, 0, 0, 100, 5))
    assert reads.number_of(TABLE, 0, 0, 250) == 5


def test_few_runs_are_kept_however_tensors_are_read() -> None:
    reads = taken(*((seg, seg + 1, seg + 1) for seg in range(RUNS_MAX + 1)))
    assert [reads.number_of(1, 0, seg, seg + 1) for seg in (0, 1, RUNS_MAX)] == [0, 2, RUNS_MAX + 1]
