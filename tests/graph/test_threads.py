"""Loops shared among threads: every item once, errors to the caller, and no thread left behind."""

from __future__ import annotations

import threading

import pytest

from windlass_graph.threads import NBYTES_MIN, Threads


@pytest.mark.parametrize("items", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_item_is_worked_on_once(items: int, count: int) -> None:
    done: list[int] = []
    threads = Threads(count)
    for _ in range(3):
        threads.share(lambda begin, end: done.extend(range(begin, end)), items, NBYTES_MIN)
    threads.stop()
    assert sorted(done) == sorted(list(range(items)) * 3)


def test_parts_run_at_once() -> None:
    threads, both = Threads(2), threading.Barrier(2)

    def work(begin: int, end: int) -> None:
        both.wait(10)

    threads.share(work, 2, NBYTES_MIN)
    threads.stop()


def test_little_work_stays_in_the_callers_thread() -> None:
    found = []
    Threads(4).share(lambda *part: found.append((part, threading.current_thread())), 9, NBYTES_MIN - 1)
    assert found == [((0, 9), threading.current_thread())]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_a_part_reaches_the_caller_after_all_parts_ended(failing: int) -> None:
    threads, ended = Threads(2), []

    def work(begin: int, end: int) -> None:
        ended.append(begin)
        if begin == failing:
            raise ArithmeticError(begin)

    with pytest.raises(ArithmeticError):
        threads.share(work, 2, NBYTES_MIN)
    assert sorted(ended) == [0, 1]
    threads.share(lambda begin, _: ended.append(begin), 2, NBYTES_MIN)
    threads.stop()
    assert len(ended) == 4


def test_threads_without_work_end_by_themselves_and_start_again() -> None:
    threads, names = Threads(2), []
    for _ in range(2):
        threads.share(lambda *_: names.append(threading.current_thread()), 2, NBYTES_MIN)
        for thread in {*names} - {threading.current_thread()}:
            thread.join(10)
            assert not thread.is_alive()
    assert len({*names}) == 3


def test_several_callers_share_at_once() -> None:
    threads = Threads(3)
    ends: list[list[int]] = [[], [], [], []]

    def call(k: int) -> None:
        for _ in range(50):
            threads.share(lambda begin, end: ends[k].append(end - begin), 10, NBYTES_MIN)

    callers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    threads.stop()
    assert [sum(found) for found in ends] == [500] * 4
