"""An environment in which the bench's clusters and the user's do not know of each other.

`windlass up` records its cluster for the user below XDG_STATE_HOME and `windlass down` ends the one recorded
there; sockets lie below XDG_RUNTIME_DIR. Both are moved into a folder of the bench's own, and the launcher's
variables are not handed on: otherwise a bench would be refused because the user has a cluster up, would end
that cluster when tidying, or would push its gradients into it. The kernel cache stays where it is: warm.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOVED = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")


def inherited() -> dict[str, str]:
    """This process's environment without any WINDLASS_ variable."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WINDLASS_")}


def moved_into(folder: Path) -> dict[str, str]:
    """The variables that keep a cluster's record and sockets inside `folder`."""
    return dict.fromkeys(MOVED, str(folder))


@contextmanager
def own_folder() -> Iterator[Path]:
    """A short private folder (a Unix socket's path ends at 107 bytes), gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="wlb", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
