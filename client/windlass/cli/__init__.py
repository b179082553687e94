"""The command line: one module a command or noun, imported when it runs.

Exit status, for every command: 0 done; 1 what was asked could not be done (three lines say why); 2 the command line
itself was wrong; 130 Ctrl-C. `windlass run` ends with the status of the first worker that failed.

`windlass status` answers at once: a command's module is imported when it is named, and bodies import what they need.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

_ROLE: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
# Command -> its module and what is said of its command line.
_COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "up": ("windlass.cli.up", {}),
    "down": ("windlass.cli.up", {}),
    "run": ("windlass.cli.run", {"allow_interspersed_args": False}),  # what follows the script is the script's
    "status": ("windlass.cli.status", {}),
    "doctor": ("windlass.cli.doctor", {}),
    "env": ("windlass.cli.environment", {}),
    "version": ("windlass.cli.environment", {}),
    "server": ("windlass.cli.roles", _ROLE),  # further flags are the role's own
    "scheduler": ("windlass.cli.roles", _ROLE),
}

_HELP = """A parameter-server cluster for Python training loops.

Exit status: 0 done; 1 it could not be done, three lines say why; 2 the command line was wrong;
130 Ctrl-C. `run` ends with the status of the first worker that failed (128 + n after signal n).
"""


def application(names: Iterable[str]) -> typer.Typer:
    """The command line with these commands; a command costs some milliseconds, so one that is named comes alone."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in names:
        module, settings = _COMMANDS[name]
        app.command(name, context_settings=settings)(getattr(importlib.import_module(module), name))
    return app


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error as well.")] = False,
) -> None:
    if debug:
        os.environ["WINDLASS_DEBUG"] = "1"


def main() -> None:
    """Run the command that `sys.argv` names and exit with its status."""
    from windlass.cli.complaint import complain
    from windlass_proto.errors import WindlassError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    try:
        application([asked] if asked in _COMMANDS else _COMMANDS)(prog_name="windlass")
    except WindlassError as error:
        if os.environ.get("WINDLASS_DEBUG"):
            import traceback

            traceback.print_exc()
        sys.exit(complain(error))
    except BrokenPipeError:  # the reader of our output (`windlass status | head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        sys.exit(getattr(stopped, "status", 130))
