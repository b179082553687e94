"""The command line: one module a command or noun, imported when it runs.

Exit status, for every command: 0 done; 1 what was asked could not be done (three lines say why); 2 the command line
itself was wrong; 130 Ctrl-C. `windlass run` ends with the status of the first worker that failed.

Here stand only names and signatures, so that `windlass status` answers at once: bodies import what they need.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from windlass.cli.doctor import doctor
from windlass.cli.environment import env, version
from windlass.cli.roles import scheduler, server
from windlass.cli.run import run
from windlass.cli.status import status
from windlass.cli.up import down, up

_HELP = """A parameter-server cluster for Python training loops.

Exit status: 0 done; 1 it could not be done, three lines say why; 2 the command line was wrong;
130 Ctrl-C. `run` ends with the status of the first worker that failed (128 + n after signal n).
"""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error as well.")] = False,
) -> None:
    if debug:
        os.environ["WINDLASS_DEBUG"] = "1"


app.command()(up)
app.command()(down)
# What follows the script, or a role's own flags, is not ours to read.
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command()(status)
app.command()(doctor)
app.command()(env)
app.command()(version)
_ROLE_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_ROLE_SETTINGS)(server)
app.command(context_settings=_ROLE_SETTINGS)(scheduler)


def main() -> None:
    """Run the command that `sys.argv` names and exit with its status."""
    from windlass.cli.complaint import complain
    from windlass_proto.errors import WindlassError

    try:
        app(prog_name="windlass")
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
