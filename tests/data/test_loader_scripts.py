"""Loaders in scripts of their own: one that lacks its guard, and one that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

WAIT_S = 30.0
START = """
import numpy as np
import windlass as wl

def main():
    loader = wl.data.DataLoader(wl.data.ArrayDataset(np.arange(1000)), 1, num_workers=2)
    for batch in loader:
        if batch[0] == 0:
            import multiprocessing
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            input()
"""


def script(folder: Path, text: str) -> list[str]:
    path = folder / "train.py"
    path.write_text(text, encoding="utf-8")
    return [sys.executable, str(path)]


def test_a_script_without_its_guard_is_told_so(tmp_path: Path) -> None:
    done = subprocess.run(
        script(tmp_path, START + "\nmain()\n"), cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ended before it was ready" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr


def test_a_process_that_imports_its_script_joins_no_cluster(tmp_path: Path) -> None:
    connects = "\nif __name__ == '__mp_main__':\n    wl.connect('127.0.0.1:9')\nmain()\n"
    done = subprocess.run(
        script(tmp_path, START + connects), cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 1
    assert "would join the cluster as one worker more" in done.stderr


def test_processes_end_with_the_script_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        script(tmp_path, START + '\nif __name__ == "__main__":\n    main()\n'),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        children = [int(pid) for pid in running.stdout.readline().split()]
        running.kill()
    assert len(children) == 2
    pause, deadline = threading.Event(), time.monotonic() + WAIT_S
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        pause.wait(0.02)
    assert not [pid for pid in children if alive(pid)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
