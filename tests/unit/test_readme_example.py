"""The program in the README is run as a stranger would run it: saved to a file, in a folder of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from windlass.local_cluster import child_environment

README = Path(__file__).resolve().parents[2] / "README.md"
RUN_S = 90.0

pytestmark = pytest.mark.cluster


def first_program(markdown: str) -> str:
    """The first Python block that begins with the import of windlass."""
    found = re.search(r"^```python\n(import windlass as wl\n.*?)^```$", markdown, re.DOTALL | re.MULTILINE)
    assert found is not None, "the README has no block that begins with `import windlass as wl`"
    return found[1]


def test_the_readmes_program_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(first_program(README.read_text(encoding="utf-8")), encoding="utf-8")
    environ = {name: value for name, value in child_environment().items() if not name.startswith("WINDLASS_")}
    environ |= {"OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    [run_dir] = (tmp_path / "runs").iterdir()
    assert (run_dir / "metrics.jsonl").read_text(encoding="utf-8").count("\n") > 100


def test_blocks_before_the_program_are_passed_over() -> None:
    assert first_program(
        "```python\nwl.x()\n```\n\n```python\nimport windlass as wl\n\nwl.y()\n```\n```python\n```\n"
    ) == ("import windlass as wl\n\nwl.y()\n")
