"""`windlass run`: environment and output of workers, one exit status, and that nothing outlives the run."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.shell import Shell, line_with

pytestmark = pytest.mark.cluster

PRINTS_ITS_PLACE = """
import json, os, sys
names = ("SCHEDULER", "JOB", "WORKERS", "RANK", "TOKEN_FILE", "RUN_DIR")
print(json.dumps({name: os.environ["WINDLASS_" + name] for name in names}))
print(json.dumps([os.environ["OMP_NUM_THREADS"], sys.argv[1:]]), file=sys.stderr)
"""
STARTS_ANOTHER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", flush=True)
"""
STARTS_ANOTHER_AND_STAYS = STARTS_ANOTHER + "time.sleep(600)"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
RANK_ONE_FAILS = "import os, sys, time\nif os.environ['WINDLASS_RANK'] == '1': sys.exit(7)\ntime.sleep(600)\n"
TRAINS = """
import numpy as np
import windlass as wl

with wl.connect() as cluster:
    store = cluster.store("model", consistency="bsp")
    params = store.init({"w": np.zeros(4096, np.float32)}, optimizer=wl.optim.SGD(lr=0.5))
    for _ in range(20):
        store.update({"w": params["w"] - 1}, out=params)
        cluster.log(loss=float(((params["w"] - 1) ** 2).mean()))
"""


def test_workers_get_their_place_and_their_lines_a_prefix(shell_with_cluster: Shell) -> None:
    shell = shell_with_cluster
    script = shell.script(PRINTS_ITS_PLACE)
    done = shell.windlass("run", "--workers", "2", "--name", "place", script, "--workers", "9", OMP_NUM_THREADS="3")
    assert done.status == 0, done.err
    shown = dict(re.findall(r"^\[worker (\d)\] (\{.*\})$", done.out, re.MULTILINE))
    places = {rank: json.loads(text) for rank, text in shown.items()}
    assert {rank: place["RANK"] for rank, place in places.items()} == {"0": "0", "1": "1"}
    for place in places.values():
        assert place["WORKERS"] == "2"
        assert place["JOB"] == "place"
        assert Path(place["RUN_DIR"]) == shell.cwd / "runs" / "place"
        assert Path(place["TOKEN_FILE"]).is_file()
    assert '[worker 0] ["3", ["--workers", "9"]]' in done.err
    assert "\x1b" not in done.out + done.err

    folder = shell.cwd / "runs" / "place"
    assert json.loads((folder / "logs" / "worker-1.log").read_text().splitlines()[0])["RANK"] == "1"
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["format"] == 1
    assert config["run"]["arguments"] == ["--workers", "9"]
    again = shell.windlass("run", "--name", "place", script)
    assert again.status == 1
    assert "there already" in again.err


def test_the_first_failure_is_the_status_and_ends_the_others(shell_with_cluster: Shell) -> None:
    shell = shell_with_cluster
    before = set(shell.processes())
    done = shell.windlass("run", "--workers", "2", shell.script(RANK_ONE_FAILS))
    assert done.status == 7
    assert "worker 1 failed with status 7" in done.out
    assert set(shell.processes()) == before


def test_a_worker_ended_by_a_signal_gives_the_shells_status(shell_with_cluster: Shell) -> None:
    shell = shell_with_cluster
    done = shell.windlass("run", shell.script("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"))
    assert done.status == 128 + signal.SIGSEGV
    assert "SIGSEGV" in done.out


def test_what_a_finished_worker_left_running_is_ended(shell_with_cluster: Shell) -> None:
    shell = shell_with_cluster
    before = set(shell.processes())
    done = shell.windlass("run", shell.script(STARTS_ANOTHER))
    assert done.status == 0, done.err
    assert set(shell.processes()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_a_run_with_a_private_cluster_is_ended(shell: Shell, number: signal.Signals) -> None:
    run = shell.start("run", "--workers", "2", "--servers", "1", shell.script(STARTS_ANOTHER_AND_STAYS))
    line_with(run, "started")
    line_with(run, "started")
    run.send_signal(number)
    status = run.wait(20)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    shell.await_nothing_left()


def test_a_training_run_shows_scalars_bytes_and_its_folder(shell: Shell) -> None:
    done = shell.windlass("run", "--workers", "2", "--servers", "1", "--name", "trained", shell.script(TRAINS))
    assert done.status == 0, done.out + done.err
    assert re.search(r"^step 20  loss \S+", done.out, re.MULTILINE), done.out
    assert "moved" in done.out
    assert "run folder runs/trained" in done.out
    assert (shell.cwd / "runs" / "trained" / "logs" / "server-0.log").is_file()
    shell.await_nothing_left()


def test_on_a_terminal_scalars_are_one_block_in_colour(shell_with_cluster: Shell) -> None:
    shell = shell_with_cluster
    shown = on_a_terminal(shell, "--workers", "2", shell.script(TRAINS))
    assert re.search(r"0 of 2 workers.*step 20", shown)
    assert COLOUR.search(shown)


def test_on_a_terminal_no_color_is_obeyed(shell_with_cluster: Shell) -> None:
    shell = shell_with_cluster
    shown = on_a_terminal(shell, "--workers", "2", shell.script("print('a line')"), NO_COLOR="1")
    assert "[worker 1] a line" in shown
    assert not COLOUR.search(shown)


def on_a_terminal(shell: Shell, *arguments: str, **variables: str) -> str:
    """What `windlass run` shows on a terminal of its own, once it has ended well."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "windlass", "run", *arguments],
        cwd=shell.cwd,
        env=shell.environment(TERM="xterm-256color", **variables),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as run:
        os.close(terminal)
        shown = _all_of(controller)
    assert run.returncode == 0, shown
    return shown


def _all_of(controller: int) -> str:
    """What a terminal showed until its last process closed it."""
    shown = b""
    with os.fdopen(controller, "rb", buffering=0) as terminal:
        while True:
            try:
                received = terminal.read(65536)
            except OSError:  # Linux: the other side is closed
                break
            if not received:
                break
            shown += received
    return shown.decode(errors="replace")


def test_a_script_that_is_not_there_is_a_usage_error(shell: Shell) -> None:
    done = shell.windlass("run", "gone.py")
    assert done.status == 2
    assert "there is no script gone.py" in done.err


def test_an_unreachable_scheduler_is_named_with_the_setting_it_came_from(shell: Shell) -> None:
    variables = {"WINDLASS_SCHEDULER": "127.0.0.1:1", "WINDLASS_TOKEN_FILE": "token"}
    done = shell.windlass("run", shell.script("print('never')"), **variables)
    assert done.status == 1
    assert "127.0.0.1:1" in done.err
    assert "$WINDLASS_SCHEDULER" in done.err
    assert "never" not in done.out
