"""Entry point of the ``atlas`` command.

Each command is a module beside this one, imported when it is called: ``atlas --help`` must not
wait for a vendor SDK. Errors that Atlas raises on purpose become one sentence and exit code 1;
wrong usage exits with 2, an interrupt with 130.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import click

from atlas.cli.reporting import report
from atlas.errors import AtlasError

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "agents": ("agents:agents", "Look at what agents do in a run, and decide what waits for you."),
    "chat": ("chat:chat", "Ask a model and stream its answer."),
    "collections": ("knowledge:collections", "List the collections of a knowledge base."),
    "diff": ("runs:diff", "Compare two runs: where they part, and what each does from there."),
    "export": ("runs:export", "Write a run into a file of JSON lines."),
    "fork": ("replay:fork", "Repeat a run up to one of its events, then go on live."),
    "import": ("runs:import_", "Store a run that was exported."),
    "ingest": ("knowledge:ingest", "Read documents into a knowledge base."),
    "profile": ("profile:profile", "Look at profiles, the settings of an assistant."),
    "providers": (
        "providers:providers",
        "Show every provider: is it configured, does it answer, which models has it.",
    ),
    "repair": ("repair:repair", "Keep what is good of a damaged log."),
    "replay": ("replay:replay", "Repeat a run without asking a model or touching the world."),
    "resume": ("replay:resume", "Go on with a run whose process died."),
    "runs": ("runs:runs", "List the runs in a log."),
    "schema": ("schema:schema", "Show, export and check the schemas of all messages."),
    "search": ("knowledge:search", "Find the passages that answer a question best."),
    "show": ("runs:show", "Show what happened in a run, and what was known at any moment."),
    "verify": ("runs:verify", "Check that a log is what was written."),
}
"""The commands: where each is (module beside this one, and function), and what it does."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without importing any."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None when there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"atlas.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(
    name="atlas",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="atlas", prog_name="atlas")
def root() -> None:
    """Event-driven LLM applications: chat, and see everything that happens."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``atlas`` command and exit the process.

    Args:
        arguments: The command line without the program's name; default: the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no terminal has every character
            stream.reconfigure(errors="backslashreplace")
    try:
        code = root.main(args=given, prog_name="atlas", standalone_mode=False)
        if sys.stdout is not None:  # None: the shell has closed it (`atlas … >&-`)
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except AtlasError as error:
        report(error, as_json="--json" in given)
        code = 1
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        code = 130
    except BrokenPipeError:
        # The reader went away (`atlas chat … | head`). Python would complain once more when it
        # flushes standard output at exit, so hand it a place to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
