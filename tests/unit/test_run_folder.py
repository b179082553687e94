"""The run folder's files, and scalars on their way to it, with a scheduler that merges in this process."""

from __future__ import annotations

import json
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest

from windlass import loss_figure
from windlass.member import Member
from windlass.run_folder import RunFolder, config_text
from windlass.scalar_log import ScalarLog
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.gen import control_pb2 as pb

LOG_S_MAX = 20e-6


def records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


class Alone:
    """The control link of a job of one worker: what is logged comes back at once, unless the scheduler is `away`."""

    def __init__(self) -> None:
        self.control = self
        self.session = bytes(16)
        self.on_metrics: Any = None
        self.away = False
        self.received: list[pb.LogRecord] = []

    def log(self, request: pb.LogRequest, timeout_s: float) -> pb.Ack:
        if self.away:
            raise UnavailableError("the scheduler cannot be reached")
        assert len(request.records) <= 1024
        self.received += request.records
        self.on_metrics(pb.Metrics(job="job", records=request.records))
        return pb.Ack()

    def watches(self) -> list[Any]:
        return []


def scalar_log(member: Alone, run: RunFolder) -> ScalarLog:
    return ScalarLog(cast("Member", member), run)


@pytest.fixture(scope="module", autouse=True)
def fonts_of_matplotlib(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Open the font files that matplotlib keeps open, lest the first test to draw be charged."""
    folder = tmp_path_factory.mktemp("fonts")
    (folder / "metrics.jsonl").write_text('{"step": 1, "time": 0, "loss": 1.0}\n', encoding="utf-8")
    assert loss_figure.draw(folder) == ""


# The files


def test_metrics_are_json_lines_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "a", main=True)
    run.metric(1, 12.5, {"loss": 0.5, "rate": float("inf")})
    run.metric(2, 13.5, {"loss": float("nan")})
    run.flush()
    assert records(run.path / "metrics.jsonl") == [
        {"step": 1, "time": 12.5, "loss": 0.5, "rate": None},
        {"step": 2, "time": 13.5, "loss": None},
    ]
    run.close()


def test_a_flush_appends_and_a_second_folder_continues_the_file(tmp_path: Path) -> None:
    for step in (1, 2):
        run = RunFolder(tmp_path, main=True)
        run.metric(step, 0.0, {"x": 1.0})
        run.flush()
        run.close()
    assert [record["step"] for record in records(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_run_that_logs_nothing_leaves_no_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "a", main=True)
    run.event("member_joined", "worker 1 joined")
    run.flush()
    run.close()
    assert not (tmp_path / "runs").exists()


def test_events_that_came_before_the_folder_are_in_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", main=True)
    run.event("member_ended", "worker 1 ended: connection lost", unix_s=3.0)
    run.metric(1, 0.0, {"x": 1.0})
    run.failed(ValueError("no such digit\nsecond line"))
    run.close()
    started, ended, last = records(run.path / "events.jsonl")
    assert started["kind"] == "run_started"
    assert ended == {"time": 3.0, "kind": "member_ended", "text": "worker 1 ended: connection lost"}
    assert (last["kind"], last["text"]) == ("run_ended", "failed: ValueError: no such digit")


def test_the_launchers_config_stays(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("format = 1\n", encoding="utf-8")
    run = RunFolder(tmp_path, main=True, facts={"job": "mine"})
    run.metric(1, 0.0, {"x": 1.0})
    run.close()
    assert (tmp_path / "config.toml").read_text(encoding="utf-8") == "format = 1\n"


def test_a_config_is_toml_whatever_the_arguments_hold(tmp_path: Path) -> None:
    facts: dict[str, str | int | list[str]] = {"script": 'a"b\\c\x7f\n.py', "arguments": ["--name", "é"], "workers": 2}
    run = RunFolder(tmp_path / "a", main=True, facts=facts)
    run.metric(1, 0.0, {"x": 1.0})
    run.close()
    found = tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))
    assert (found["format"], found["run"]) == (1, facts)
    assert tomllib.loads(config_text({"run": {}})) == {"format": 1, "run": {}}


def test_other_workers_write_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, main=False)
    run.metric(1, 0.0, {"loss": 1.0})
    run.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").touch()
    run = RunFolder(tmp_path / "runs" / "a", main=True)
    for step in range(3):
        run.metric(step, 0.0, {"loss": 1.0})
        run.flush()
    run.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(run.path) in said


# The figure


def test_the_losses_are_drawn_and_other_scalars_are_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", main=True)
    run.metric(1, 0.0, {"accuracy": 0.5})
    run.close()
    assert not (run.path / "loss.png").exists()
    again = RunFolder(run.path, main=True)
    for step in range(100):
        again.metric(step, 0.0, {"test_loss": 1 / (step + 1), "loss": float("nan") if step == 50 else -1.0})
    again.close()
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0, "loss": 1.0}\n{"step": 2, "ti', encoding="utf-8")
    assert loss_figure.draw(tmp_path) == ""
    assert (tmp_path / "loss.png").exists()


def test_without_matplotlib_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0, "loss": 1.0}\n', encoding="utf-8")
    assert loss_figure.draw(tmp_path) == (
        "no loss.png: matplotlib is not installed; pip install 'windlass[plot]' adds it"
    )


# The way there


def test_what_is_logged_is_in_the_file_while_the_run_goes_on(tmp_path: Path) -> None:
    log = scalar_log(Alone(), RunFolder(tmp_path / "a", main=True))
    log.put(1, {"loss": 0.5})
    written, deadline, pause = tmp_path / "a" / "metrics.jsonl", time.monotonic() + 5.0, threading.Event()
    while not (written.exists() and written.stat().st_size) and time.monotonic() < deadline:
        pause.wait(0.01)
    assert records(written)[0]["loss"] == 0.5
    log.close()


def test_the_last_steps_are_written_at_close_many_in_a_call(tmp_path: Path) -> None:
    member, run = Alone(), RunFolder(tmp_path / "a", main=True)
    log = scalar_log(member, run)
    for step in range(5000):
        log.put(step, {"loss": float(step)}, weight=32.0)
    log.close()
    run.close()
    assert [record["loss"] for record in records(run.path / "metrics.jsonl")] == list(range(5000))
    assert {record.weight for record in member.received} == {32.0}


def test_what_never_came_back_merged_is_written_as_it_was_logged(tmp_path: Path) -> None:
    member, run = Alone(), RunFolder(tmp_path / "a", main=True)
    member.away = True
    log = scalar_log(member, run)
    log.put(1, {"loss": 3.0})
    log.put(1, {"accuracy": 0.5})
    log.put(2, {"loss": 2.0})
    log.close()
    run.close()
    found = [{k: v for k, v in record.items() if k != "time"} for record in records(run.path / "metrics.jsonl")]
    assert found == [{"step": 1, "loss": 3.0}, {"step": 1, "accuracy": 0.5}, {"step": 2, "loss": 2.0}]


def test_what_could_not_be_sent_is_sent_when_the_scheduler_is_back(tmp_path: Path) -> None:
    member, run = Alone(), RunFolder(tmp_path / "a", main=True)
    member.away = True
    log = scalar_log(member, run)
    log.put(1, {"loss": 3.0})
    member.away = False
    log.put(2, {"loss": 2.0})
    log.close()
    run.close()
    assert [record.step for record in member.received] == [1, 2]
    assert [record["step"] for record in records(run.path / "metrics.jsonl")] == [1, 2]


def test_a_value_that_is_no_number_raises_in_the_call(tmp_path: Path) -> None:
    log = scalar_log(Alone(), RunFolder(tmp_path / "a", main=True))
    try:
        with pytest.raises(UsageError, match=r"name=loss, type=NoneType"):
            log.put(1, {"loss": None})
    finally:
        log.close()


def test_logging_costs_the_training_loop_less_than_20_microseconds(tmp_path: Path) -> None:
    log = scalar_log(Alone(), RunFolder(tmp_path / "a", main=True))
    rounds = []
    for part in range(10):
        began = time.perf_counter()
        for step in range(200):
            log.put(200 * part + step, {"loss": 0.5, "accuracy": 0.9})
        rounds.append((time.perf_counter() - began) / 200)
    log.close()
    assert min(rounds) < LOG_S_MAX
