"""The programs of docs/nn.md, as one script, print what stands below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from windlass.local_cluster import child_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nn.md"
RUN_S = 120.0


def test_the_pages_programs_print_what_it_says(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    programs, printed = (
        "".join(re.findall(rf"^```{kind}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)) for kind in ("python", "text")
    )
    (tmp_path / "page.py").write_text(programs, encoding="utf-8")
    environ = {name: value for name, value in child_environment().items() if not name.startswith("WINDLASS_")}
    environ |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
