"""Write the pages of docs/reference that follow from the code: ``python docs/generate.py [--check]``.

- ``public-names.md``: every public name with the first sentence of its docstring;
- ``command-line.md``: every command's own help.

``messages.md`` is written by ``atlas schema``. A test fails when a page is not what this writes.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType

import click

from atlas.cli.__main__ import root

REFERENCE = Path(__file__).parent / "reference"
PACKAGES = [
    "atlas",
    "atlas.agents",
    "atlas.core",
    "atlas.core.schema",
    "atlas.knowledge",
    "atlas.providers",
    "atlas.testing",
]
MODULES = [
    "atlas.agents.messages",
    "atlas.errors",
    "atlas.knowledge.messages",
    "atlas.providers.context",
    "atlas.providers.messages",
    "atlas.container",
]


def first_sentence(thing: object) -> str:
    """Return the first paragraph's first sentence of a docstring, on one line."""
    if type(thing).__module__ == "typing" or not getattr(thing, "__doc__", None):
        return "A type; see where it is defined."
    paragraph = " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return (sentence + stop).strip().replace("|", "\\|")


def names_of(module: ModuleType) -> list[str]:
    """Return a module's public names: its ``__all__``, else the classes it defines."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    return sorted(getattr(module, "__all__", [n for n in own if not n.startswith("_")]))


def public_names() -> str:
    """Return the page of all public names."""
    lines = [
        "# Public names",
        "",
        "Written by `docs/generate.py`; each name has its own docstring.",
    ]
    for place in [*PACKAGES, *MODULES]:
        module = importlib.import_module(place)
        lines += ["", f"## `{place}`", "", first_sentence(module), "", "| name | |", "|---|---|"]
        for name in names_of(module):
            lines.append(f"| `{name}` | {first_sentence(getattr(module, name))} |")
    return "\n".join(lines) + "\n"


def helps(command: click.Command, path: str, parent: click.Context | None) -> list[str]:
    """Return the help of a command and of those below it."""
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    context.terminal_width = context.max_content_width = 100
    lines = ["", f"## `{path}`", "", "```text", command.get_help(context), "```"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            lines += helps(below, f"{path} {name}", context)
    return lines


def command_line() -> str:
    """Return the page of all commands."""
    lines = [
        "# The `atlas` command",
        "",
        "Written by `docs/generate.py` from the commands themselves.",
    ]
    return "\n".join([*lines, *helps(root, "atlas", None)]) + "\n"


PAGES = {"public-names.md": public_names, "command-line.md": command_line}


def main() -> int:
    """Write the pages, or with ``--check`` say which of them are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path, text = REFERENCE / name, page()
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"docs/reference/{name} is out of date; run `make docs`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
