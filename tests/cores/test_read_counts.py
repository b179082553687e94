"""Read counts: how stale a push is, for each segment, from the number of the read that it was made from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_server.read_counts import COUNTS_MAX, READS_MIN, ReadCounts, alike, staleness


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["read", "push"]), st.integers(0, 2), st.integers(1, 3)), max_size=40))
def test_staleness_is_the_updates_of_the_segment_since_the_read(events: list[tuple[str, int, int]]) -> None:
    reads, updates, shown = ReadCounts(3), [0, 0, 0], dict[int, list[int]]()
    for what, begin, count in events:
        if what == "read":
            number = reads.number_of(updates)
            assert shown.setdefault(number, list(updates)) == updates, "one number shows one thing"
        for seg in range(begin, min(3, begin + count)) if what == "push" else ():
            for number, then in shown.items():
                assert staleness(reads.counts(number), seg, updates[seg] + 1) == updates[seg] - then[seg]
            updates[seg] += 1


def test_reads_that_show_the_same_have_one_number() -> None:
    reads = ReadCounts(2)
    assert [reads.number_of([5, 5]), reads.number_of([5, 5]), reads.number_of([5, 6])] == [1, 1, 2]


def test_what_is_not_known_is_not_stale() -> None:
    reads = ReadCounts(2)
    reads.number_of([5, 5])
    for number in (0, 2, 1 << 40):
        assert staleness(reads.counts(number), 0, 9) == 0


def test_a_read_older_than_those_that_are_kept_counts_as_the_oldest() -> None:
    reads = ReadCounts(COUNTS_MAX)
    for update in range(20):
        reads.number_of([update, 0])
    assert reads.kept == READS_MIN
    assert staleness(reads.counts(1), 0, 20) == 19 - (20 - READS_MIN)


def test_what_was_read_before_other_values_were_served_is_not_known() -> None:
    reads = ReadCounts(1)
    old = reads.number_of([7])
    reads.begin_anew()
    assert reads.counts(old) is None
    new = reads.number_of([7])
    assert (reads.counts(old), reads.counts(new)) == (None, 7)


def test_segments_that_a_read_showed_alike_are_updated_in_one_call() -> None:
    assert [alike((1, 1, 2, 2, 1), at, 5) for at in (0, 2, 4)] == [2, 4, 5]
    assert [alike(counts, 1, 4) for counts in (None, 3, (9, 1, 1, 1, 1))] == [4, 4, 4]
