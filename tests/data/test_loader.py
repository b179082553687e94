"""DataLoader: the same batches with any number of processes, and nothing left behind however a pass ends."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.data.loader_sets import Failing, augmented, with_process
from windlass_proto.errors import CorruptionError, UnavailableError, UsageError

pytestmark = pytest.mark.usefixtures("tracker_of_multiprocessing")
data = wl.data
untyped: Any = data
X = np.arange(40, dtype=np.float32).reshape(10, 4)
Y = np.arange(10)


def labels(loader: Any) -> list[list[int]]:
    return [batch[1].tolist() for batch in loader]


def test_batches_are_stacked_in_order_and_the_next_pass_is_the_next_epoch() -> None:
    loader = data.DataLoader(data.ArrayDataset(X, Y), 4)
    assert labels(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert loader.epoch == 1
    assert len(loader) == 3
    shuffled = data.DataLoader(data.ArrayDataset(X, Y), 4, shuffle=True, seed=3)
    epochs = [labels(shuffled), labels(shuffled)]
    assert [row for batch in epochs[1] for row in batch] == data.RandomSampler(10, seed=3).rows(1).tolist()
    shuffled.epoch = 0
    assert labels(shuffled) == epochs[0] != epochs[1]
    for x, y in shuffled:
        assert np.array_equal(x, X[y])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 4, "last_batch": "discard"}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"batch_size": 2, "sampler": [3, 1, -1]}, [[3, 1], [9]]),
        ({"batch_size": 3, "sampler": data.SplitSampler(10, 1, 3, even=False)}, [[1, 4, 7]]),
        ({"batch_sampler": [[1, 2], [5]]}, [[1, 2], [5]]),
        ({"batch_sampler": data.BatchSampler(data.SequentialSampler(3), 2)}, [[0, 1], [2]]),
    ],
)
def test_a_sampler_says_which_rows_come(options: dict[str, Any], expected: list[list[int]]) -> None:
    loader = data.DataLoader(data.ArrayDataset(X, Y), **options)
    assert labels(loader) == labels(loader) == expected
    assert len(loader) == len(expected)


def test_rows_left_over_begin_the_loaders_next_pass() -> None:
    loader = data.DataLoader(data.ArrayDataset(X, Y), 4, last_batch="rollover")
    assert labels(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loader) == 3
    assert labels(loader)[0] == [8, 9, 0, 1]


def test_leaves_of_samples_are_stacked_each_on_its_own() -> None:
    samples = [{"x": np.ones(2, np.float16), "rest": (True, 3, [0.5])} for _ in range(3)]
    [batch] = data.DataLoader(samples, 3)
    assert batch["x"].shape == (3, 2)
    assert batch["x"].dtype == np.float16
    flags, whole, [parts] = batch["rest"]
    assert [flags.dtype, whole.dtype, parts.dtype] == [np.bool_, np.int64, np.float32]
    assert parts.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([np.zeros(2), np.zeros(3)], "differ in their shape.*row=0.*other_row=1"),
        ([np.zeros(2), np.zeros(2, np.int64)], "dtype"),
        ([(1, 2), (1, 2, 3)], "number of parts"),
        ([{"a": 1}, {"b": 1}], "keys"),
        ([(1, 2), 3], "number of parts"),
        ([1, "two"], "not all numbers"),
        (["one", "two"], "not made of numbers"),
    ],
)
def test_samples_that_do_not_stack_are_refused_in_words(samples: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(data.DataLoader(samples, 2))


def test_an_error_in_a_sample_names_its_row_and_keeps_its_cause() -> None:
    with pytest.raises(UsageError, match=r"row=5.*ValueError: no picture of 5") as caught:
        list(data.DataLoader(Failing(8, 5, "raise"), 3))
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(CorruptionError, match="byte=7, row=5"):
        list(data.DataLoader(Failing(8, 5, "corrupt"), 3))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: data.DataLoader(data.ArrayDataset(X)), "batch_size"),
        (lambda: data.DataLoader(data.ArrayDataset(X), 4, num_workers=-1), "num_workers=-1"),
        (lambda: data.DataLoader(data.ArrayDataset(X), 4, num_workers=2, prefetch=0), "prefetch=0"),
        (lambda: untyped.DataLoader(X, 4, last_batch="role"), "Did you mean rollover"),
        (lambda: data.DataLoader(X, 4, shuffle=True, sampler=[1]), "also_given=shuffle"),
        (lambda: data.DataLoader(X, 4, batch_sampler=[[1]]), "also_given=batch_size"),
        (lambda: data.DataLoader(3, 4), "__getitem__"),
        (lambda: list(data.DataLoader(X, 4, sampler=[1, 10])), r"rows=\[10\], length=10"),
        (lambda: list(data.DataLoader(data.ArrayDataset(Y).transform(lambda y: y), 4, num_workers=1)), "top level"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_the_batches_are_the_same_with_any_number_of_processes() -> None:
    here = data.DataLoader(augmented(50), 8, shuffle=True, seed=5)
    ahead = data.DataLoader(augmented(50), 8, shuffle=True, seed=5, num_workers=2, prefetch=3)
    with ahead:
        for _ in range(2):
            for (x, y), (ours, expected) in zip(ahead, here, strict=True):
                assert np.array_equal(y, expected)
                assert np.array_equal(x, ours)
                assert x.dtype == ours.dtype
        kept = list(ahead)
    here.epoch = 2
    for (x, y), (ours, expected) in zip(kept, here, strict=True):
        assert np.array_equal(y, expected), "a batch that is kept is not written over"
        assert np.array_equal(x, ours)


def test_a_batch_larger_than_those_before_finds_room() -> None:
    sizes = [[0], list(range(2000)), [1], list(range(1999, -1, -1))]
    wide = data.ArrayDataset(np.arange(2000 * 64, dtype=np.float64).reshape(2000, 64))
    with data.DataLoader(wide, batch_sampler=sizes, num_workers=1, prefetch=1) as loader:
        for rows, batch in zip(sizes, loader, strict=True):
            assert np.array_equal(batch, wide.arrays[0][rows])


def test_a_batch_is_not_copied_for_the_loop_and_its_memory_is_used_again() -> None:
    with data.DataLoader(data.ArrayDataset(X), 1, num_workers=1, prefetch=1) as loader:
        places = [batch.ctypes.data for batch in loader]
        assert len(set(places)) <= 3
        first = next(iter(loader))
        first[:] = -1
        assert (first == -1).all(), "it is the loop's to write to"


def test_processes_last_in_a_with_block_and_a_pass_given_up_leaves_them_usable() -> None:
    with data.DataLoader(data.ArrayDataset(X), 2, collate=with_process, num_workers=1) as loader:
        first, *_ = [batch["process"] for batch in loader]
        for batch in loader:
            assert batch["process"] == first != os.getpid()
            break
        again = list(loader)
        assert {batch["process"] for batch in again} == {first}
        assert [batch["mean"][0] for batch in again] == [2.0, 10.0, 18.0, 26.0, 34.0]
        stacked, nothing, text = again[1]["many"]
        assert np.array_equal(stacked, X[2:4])
        assert (nothing, text) == (None, "text")


def test_an_error_in_a_process_arrives_with_its_row_and_traceback_after_the_batches_before_it() -> None:
    loader = iter(data.DataLoader(Failing(9, 7, "raise"), 3, num_workers=1))
    assert [next(loader)[0, 0] for _ in range(2)] == [0.0, 3.0]
    with pytest.raises(UsageError, match=r"row=7.*ValueError: no picture of 7") as caught:
        next(loader)
    [note] = caught.value.__notes__
    assert 'raise ValueError(f"no picture of {index}")' in note
    assert list(loader) == []


@pytest.mark.parametrize(
    ("what", "timeout_s", "said"), [("die", 60.0, "ended.*exit_status=-9"), ("wait", 0.3, "not made in time")]
)
def test_a_process_that_dies_or_does_not_answer_is_an_error(what: str, timeout_s: float, said: str) -> None:
    loader = data.DataLoader(Failing(9, 4, what), 3, num_workers=1, timeout_s=60.0)
    batches = iter(loader)
    next(batches)
    loader_of(batches)._timeout_s = timeout_s
    with pytest.raises(UnavailableError, match=said):
        list(batches)


def loader_of(batches: Any) -> Any:
    """The crew of a pass under way."""
    return batches.gi_yieldfrom.gi_frame.f_locals["crew"]


def test_a_pass_that_is_given_up_ends_its_processes() -> None:
    loader = data.DataLoader(data.ArrayDataset(X), 1, num_workers=1)
    for _ in loader:
        break
    gc.collect()  # what is left is found by the check that follows every test
    batches = iter(loader)
    held = next(batches)
    del batches
    assert np.array_equal(held[0], X[0]), "its memory lasts as long as it does"
