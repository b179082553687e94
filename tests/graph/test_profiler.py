"""Profiles and monitors: what they see, what they write, and that nobody else pays for them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph.compile import compiled
from windlass_graph.device import CPU
from windlass_graph.observation import WATCH
from windlass_graph.profiler import Profile
from windlass_graph.program import Program
from windlass_graph.tensor_type import TensorType
from windlass_proto.errors import UsageError

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def program() -> Program:
    hidden = wl.sym.sin(wl.sym.matmul(wl.sym.Variable("x"), wl.sym.Variable("w"), name="product"), name="wave")
    known = {"x": TensorType((3, 4), "float32"), "w": TensorType((4, 5), "float32")}
    return compiled(wl.sym.sum(hidden, axis=0, name="total").graph, known)


def run(one: Program, times: int = 1, w: float = 0.5) -> None:
    for _ in range(times):
        one.run({"x": X, "w": np.full((4, 5), w, np.float32)})


def test_a_profile_has_a_row_for_each_node_and_op() -> None:
    one = program()
    with wl.profiler.profile() as profile:
        run(one, 3)
        wl.nd.exp(wl.nd.array(X))
    rows = {row.name: row for row in profile.rows()}
    assert set(rows) == {"product", "wave", "total", "exp"}
    assert (rows["product"].op, rows["product"].calls, rows["product"].nbytes) == ("matmul", 3, 3 * 3 * 5 * 4)
    assert rows["exp"].calls == 1
    assert profile.runs == 3
    assert [row.total_us for row in profile.rows()] == sorted((row.total_us for row in rows.values()), reverse=True)
    for row in rows.values():
        assert 0 < row.mean_us == pytest.approx(row.total_us / row.calls)
        assert row.p95_us <= row.total_us
    table = str(profile).splitlines()
    assert len(table) == 5
    assert table[0].split()[:3] == ["op", "name", "calls"]


def test_what_ran_before_and_after_is_not_in_a_profile() -> None:
    one = program()
    run(one)
    with wl.profiler.profile() as profile:
        pass
    run(one)
    assert profile.rows() == []
    assert WATCH.observers == ()


def test_the_95th_percentile_is_that_of_sorted_calls() -> None:
    profile = Profile()
    for lasted_us in range(100):
        profile.ran(event(lasted_us * 1000))
    [row] = profile.rows()
    assert row.p95_us == 95
    assert row.mean_us == 49.5


def event(lasted_ns: int) -> Any:
    from windlass_graph.observation import Ran

    return Ran("step", "sin", "wave", "", (), 4, CPU, 0, lasted_ns)


def check_trace(trace: dict[str, Any]) -> None:
    """The rules of the Trace Event Format that viewers rely on."""
    assert trace["displayTimeUnit"] in ("ms", "ns")
    named = set()
    spans: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for each in trace["traceEvents"]:
        assert isinstance(each["pid"], int)
        assert isinstance(each["tid"], int)
        assert isinstance(each["name"], str)
        if each["ph"] == "M":
            assert each["name"] in ("process_name", "thread_name")
            assert isinstance(each["args"]["name"], str)
            named.add((each["pid"], each["tid"]))
            continue
        assert each["ts"] >= 0
        if each["ph"] == "C":
            assert all(isinstance(value, int) for value in each["args"].values())
            continue
        assert each["ph"] == "X"
        assert each["dur"] >= 0
        spans.setdefault((each["pid"], each["tid"]), []).append((each["ts"], each["ts"] + each["dur"]))
    assert set(spans) <= named
    for listed in spans.values():
        listed.sort(key=lambda span: (span[0], -span[1]))
        open_until: list[float] = []
        for begin, end in listed:  # on one track spans lie apart or within each other
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)


def test_a_trace_is_in_the_trace_event_format_with_a_track_for_each_thread(tmp_path: Path) -> None:
    one = program()
    with wl.profiler.profile() as profile:
        run(one, 2)
        other = threading.Thread(target=run, args=(one, 2), name="second")
        other.start()
        other.join()
    profile.save(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    check_trace(trace)
    tracks = {each["args"]["name"] for each in trace["traceEvents"] if each["name"] == "thread_name"}
    assert tracks == {"MainThread on cpu:0", "second on cpu:0"}
    steps = [each for each in trace["traceEvents"] if each.get("cat") == "step"]
    assert len(steps) == 4 * 3
    assert len({each["tid"] for each in steps}) == 2
    assert next(each for each in steps if each["name"] == "wave")["args"]["op"] == "sin"


def test_results_are_the_same_under_a_profile() -> None:
    one = program()
    feeds = {"x": X, "w": np.full((4, 5), 0.5, np.float32)}
    [plain] = one.run(feeds)
    with wl.profiler.profile():
        [watched] = one.run(feeds)
    np.testing.assert_array_equal(watched, plain)


def test_backward_steps_and_completed_gradients_are_seen() -> None:
    x = wl.nd.array(X)
    x.attach_grad()
    with wl.profiler.profile() as profile:
        with wl.autograd.record():
            loss = wl.nd.sin(x).sum()
        loss.backward()
    assert {"sin", "sum", "cos", "multiply"} <= {row.name for row in profile.rows()}


def test_a_monitor_reads_matching_nodes_every_so_many_runs() -> None:
    one = program()
    with wl.Monitor(interval=2, stat="max_abs", pattern="w*") as monitor:
        run(one, 5)
    assert [(at, name) for at, name, _ in monitor.rows] == [(0, "wave"), (2, "wave"), (4, "wave")]
    expected = np.abs(np.sin(X @ np.full((4, 5), 0.5, np.float32))).max()
    assert all(value == pytest.approx(float(expected)) for _, _, value in monitor.rows)


def test_a_monitor_finds_the_first_node_that_is_not_finite() -> None:
    with wl.Monitor(stat="not_finite") as monitor, np.errstate(all="ignore"):
        run(program(), w=np.inf)
    assert next(name for _, name, value in monitor.rows if value) == "product"


def test_a_statistic_may_be_a_function() -> None:
    with wl.Monitor(stat=lambda x: float(x.shape[0]), pattern="total") as monitor:
        run(program())
    assert monitor.rows == [(0, "total", 5.0)]


def test_a_monitor_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UsageError, match="no statistic 'mean_absolute'"):
        wl.Monitor(stat="mean_absolute")
    with pytest.raises(UsageError, match="every run or fewer"):
        wl.Monitor(interval=0)


def test_a_monitor_whose_pattern_matched_nothing_says_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="product"), wl.Monitor(pattern="prodcut"):
        run(program())
    assert WATCH.observers == ()
