"""``atlas schema``: the published contract of all messages, and whether the code still keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from atlas.cli.options import json_option
from atlas.core.messages import Message, message_class
from atlas.core.schema.export import MEND, broken_promises, discover
from atlas.core.schema.export import check as check_contract
from atlas.core.schema.export import export as export_contract
from atlas.core.schema.export import release as release_contract
from atlas.core.schema.jsonschema import json_schema
from atlas.core.schema.reference import reference
from atlas.core.schema.samples import invalid_samples, valid_samples
from atlas.errors import SchemaError

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def schema() -> None:
    """Show, export, check and release the schemas of all messages; every command takes --json."""


def package_option(command: Command) -> Command:
    """Add ``--package``."""
    return click.option(
        "--package",
        metavar="NAME",
        default="atlas",
        show_default=True,
        help="Where to look for messages: every module of it that declares some is imported.",
    )(command)


def check_option(command: Command) -> Command:
    """Add ``--check`` as the parameter ``only_check``."""
    return click.option(
        "--check",
        "only_check",
        is_flag=True,
        help="Write nothing; list what differs from the code, and exit with 1 if anything does.",
    )(command)


def folder_argument(command: Command) -> Command:
    """Add the folder of the contract as ``path``."""
    return click.argument(
        "path", type=click.Path(file_okay=False, path_type=Path), default="schemas"
    )(command)


@schema.command("list")
@package_option
@json_option
def list_messages(*, package: str, as_json: bool) -> None:
    """List every message: its name, its version, and what it says."""
    found = discover(package)
    if as_json:
        click.echo(json.dumps([facts(cls) for cls in found], ensure_ascii=False, indent=2))
        return
    width = max((len(cls.message_name) for cls in found), default=0)
    for cls in found:
        click.echo(f"{cls.message_name:<{width}}  {cls.message_version}  {summary(cls)}")


@schema.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="[default: the latest]")
@package_option
@json_option
def show(*, name: str, version: int | None, package: str, as_json: bool) -> None:
    """Show one message: its fields, the values they hold, and a sample.

    With --json: its JSON Schema, and payloads that every reader must take or refuse.
    """
    discover(package)
    cls = message_class(name, version)
    if as_json:
        contract = {"valid": valid_samples(cls), "invalid": invalid_samples(cls)}
        told = facts(cls) | {"schema": json_schema(cls), "samples": contract}
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    page = reference([cls])
    click.echo(page[page.index("\n## ") + 1 :], nl=False)  # without the introduction of the page


@schema.command()
@folder_argument
@check_option
@package_option
@json_option
def export(*, path: Path, only_check: bool, package: str, as_json: bool) -> None:
    """Write JSON Schema 2020-12 and samples of every message into the folder PATH.

    PATH is by default ./schemas. A change that breaks a released version is refused.
    """
    messages = discover(package)
    if only_check:
        tell_differences(path, check_contract(path, messages), as_json=as_json)
        return
    tell_changes(path, export_contract(path, messages), as_json=as_json)


@schema.command()
@folder_argument
@package_option
@json_option
def check(*, path: Path, package: str, as_json: bool) -> None:
    """Check that the code still reads every released version in the folder PATH.

    PATH is by default ./schemas. Exits with 1, and names each field, if it does not. What is not
    released yet may change; `export --check` tells of that too.
    """
    broken = broken_promises(path, discover(package))
    if as_json or not broken:
        tell_differences(path, broken, as_json=as_json, agrees="keeps every released version")
        return
    tell_differences(path, [*broken, MEND], as_json=False)


@schema.command()
@click.argument("label")
@folder_argument
@package_option
@json_option
def release(*, label: str, path: Path, package: str, as_json: bool) -> None:
    """Mark every version in the folder PATH that is not released yet as released in LABEL.

    LABEL is the version of your package, say. PATH is by default ./schemas. Refused if the folder
    differs from the code, or if a version released before would be broken.
    """
    messages = discover(package)
    broken = broken_promises(path, messages)
    if broken:
        raise SchemaError(
            f"{label!r} would break what was released before: {'; '.join(broken)}. {MEND}"
        )
    if differences := check_contract(path, messages):
        raise SchemaError(
            f"{str(path)!r} is not what the code says, so {label!r} was not released: "
            f"{' '.join(differences)} Write it with `atlas schema export`, and look at the changes."
        )
    marked = release_contract(path, label)
    if as_json:
        told = {"path": str(path), "label": label, "released": marked}
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    for line in marked or ["Every version was released already."]:
        click.echo(line)


@schema.command()
@click.argument(
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default="docs/reference/messages.md",
)
@check_option
@package_option
@json_option
def docs(*, path: Path, only_check: bool, package: str, as_json: bool) -> None:
    """Write the reference of every message as the Markdown page PATH.

    PATH is by default ./docs/reference/messages.md.
    """
    page = reference(discover(package))
    is_current = path.is_file() and path.read_text(encoding="utf-8") == page
    if only_check:
        found = [] if is_current else [f"{path.name} differs from the code: write it anew."]
        tell_differences(path, found, as_json=as_json)
        return
    if not is_current:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", newline="\n")
    tell_changes(path, [] if is_current else [path.name], as_json=as_json)


def facts(cls: type[Message]) -> dict[str, Any]:
    """Return what a list says of a message."""
    return {
        "name": cls.message_name,
        "version": cls.message_version,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "summary": summary(cls),
    }


def summary(cls: type[Message]) -> str:
    """Return the first line of a message's documentation."""
    return (cls.__doc__ or "").strip().partition("\n")[0]


def tell_differences(
    path: Path,
    differences: Sequence[str],
    *,
    as_json: bool,
    agrees: str = "agrees with the code",
) -> None:
    """Print what differs; exit with 1 if anything does."""
    if as_json:
        told = {"path": str(path), "differences": list(differences)}
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        for line in differences or [f"{path} {agrees}."]:
            click.echo(line)
    if differences:
        click.get_current_context().exit(1)


def tell_changes(path: Path, changed: Sequence[str], *, as_json: bool) -> None:
    """Print which files were written."""
    if as_json:
        told = {"path": str(path), "changed": list(changed)}
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    for line in changed or [f"{path} agreed with the code already."]:
        click.echo(line)
