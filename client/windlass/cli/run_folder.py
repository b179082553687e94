"""The run folder `runs/<name>/`: made by the launcher, filled by the launcher (logs) and by worker 0 (the rest).

    config.toml      what was run
    logs/            worker-<rank>.log, and the servers' own if the cluster is private
    metrics.jsonl, loss.png, checkpoints/    written by the library in worker 0

A public, versioned format: a reader of format 1 ignores keys it does not know.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from windlass.cli.complaint import USAGE, CommandError
from windlass.run_folder import ConfigValue, config_text

_NAMES_A_SECOND_MAX: Final = 1000


def make(parent: Path, name: str | None, script: Path) -> Path:
    """Make the folder of a new run; without a `name` it is the script's and the time.

    Raises:
        CommandError: if a run of that name is there, or the folder cannot be made.
    """
    if name is not None and (not name or name in (".", "..") or "/" in name):
        raise CommandError(
            f"{name!r} is no name for a run",
            why="it becomes a folder below runs/",
            next_move="Use letters, digits, dots, dashes and underscores.",
            status=USAGE,
        )
    stem = name or f"{script.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        for again in range(_NAMES_A_SECOND_MAX):
            folder = parent / (f"{stem}-{again + 1}" if again else stem)
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if name is None:
                    continue
                break
            (folder / "logs").mkdir()
            return folder.resolve()
    except OSError as cause:
        raise CommandError(
            f"the run folder {parent / stem} cannot be made",
            why=cause.strerror or str(cause),
            next_move="Run from a folder that you can write to.",
        ) from cause
    raise CommandError(
        f"a run called {stem} is there already",
        why=f"{parent / stem} exists, and a run's folder is never written over",
        next_move="Choose another --name, or remove that folder.",
    )


def write_config(folder: Path, tables: Mapping[str, Mapping[str, ConfigValue]]) -> None:
    """Write config.toml; worker 0 then leaves it as it is."""
    (folder / "config.toml").write_text(config_text(tables), encoding="utf-8")
