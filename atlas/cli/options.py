"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """Add ``--provider`` and ``--model``."""
    command = click.option(
        "-m",
        "--model",
        metavar="NAME",
        help="Model to ask; for the local provider also the path of a GGUF file. "
        "[default: $ATLAS_MODEL, else the provider's own]",
    )(command)
    return click.option(
        "-p",
        "--provider",
        metavar="NAME",
        help="anthropic, openai, ollama, local, scripted or an installed third-party one. "
        "[default: $ATLAS_PROVIDER, else what a key or a running Ollama suggests, else local]",
    )(command)


def json_option(command: Command) -> Command:
    """Add ``--json`` as the parameter ``as_json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON for programs instead of text."
    )(command)


def db_option(command: Command) -> Command:
    """Add ``--db``, a log that must exist."""
    return click.option(
        "--db",
        metavar="LOG",
        envvar="ATLAS_DB",
        default="runs.db",
        show_default="$ATLAS_DB, else runs.db",
        help="The log: a file, or postgresql://user@host/database.",
    )(command)
