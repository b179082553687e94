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


def programs(markdown: str) -> list[str]:
    """The Python blocks that begin with the import of windlass."""
    found = re.findall(r"^```python\n(import windlass as wl\n.*?)^```$", markdown, re.DOTALL | re.MULTILINE)
    assert found, "the README has no block that begins with `import windlass as wl`"
    return [str(each) for each in found]


@pytest.mark.parametrize(("number", "lines_min"), [(0, 100), (1, 10)], ids=["own loop", "own model"])
def test_the_readmes_programs_run_alone(number: int, lines_min: int, tmp_path: Path) -> None:
    program = programs(README.read_text(encoding="utf-8"))[number]
    (tmp_path / "train.py").write_text(program, encoding="utf-8")
    environ = {name: value for name, value in child_environment().items() if not name.startswith("WINDLASS_")}
    environ |= {"OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    [run_dir] = (tmp_path / "runs").iterdir()
    assert (run_dir / "metrics.jsonl").read_text(encoding="utf-8").count("\n") >= lines_min


def test_blocks_before_the_program_are_passed_over() -> None:
    assert programs("```python\nwl.x()\n```\n\n```python\nimport windlass as wl\n\nwl.y()\n```\n```python\n```\n") == [
        "import windlass as wl\n\nwl.y()\n"
    ]
