"""The programs of docs/training.md run as a reader would run them: one after the other, in a folder of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from windlass.local_cluster import child_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
RUN_S = 120.0

pytestmark = pytest.mark.cluster


def test_every_block_runs_and_says_what_the_page_says(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    environ = {name: value for name, value in child_environment().items() if not name.startswith("WINDLASS_")}
    environ |= {"OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    [figures] = [line.split() for line in lines if re.fullmatch(r"0\.\d+ 0\.\d+", line)]
    assert figures[0] == figures[1] > "0.85"
    assert "4" in lines, "the second run has the figures of four epochs"
    assert sum(line.startswith("epoch ") for line in lines) == 5 + 2, "Progress writes a line an epoch"
    assert (tmp_path / "trace.json").is_file()
