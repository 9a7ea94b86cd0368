"""``atlas profile``: look at the settings of an assistant, and take over those of a new template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from atlas.cli.options import json_option
from atlas.cli.toml import toml_text
from atlas.core.diff_synchronizer import MISSING, DiffSynchronizer, Strategy, SyncPlan, path_text
from atlas.core.profiles import read_tables
from atlas.providers.profile import load_chat_profile


@click.group()
def profile() -> None:
    """Look at profiles, the settings of an assistant; every command takes --json."""


@profile.command(short_help="Check a profile, and show its values.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@json_option
def show(*, file: Path, origin: bool, as_json: bool) -> None:
    """Check the profile FILE, and show each of its values; secrets are masked."""
    loaded = load_chat_profile(file)
    if not as_json:
        click.echo(loaded.show(origin=origin))
        return
    told: dict[str, object] = {"values": loaded.masked()}
    if origin:
        told["origins"] = {key: str(where) for key, where in loaded.origins.items()}
        told["files"] = [str(each) for each in loaded.files]
    click.echo(json.dumps(told, ensure_ascii=False, indent=2))


@profile.command(short_help="Take over what changed in a template.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("mine", type=click.Path(path_type=Path))
@click.argument("theirs", type=click.Path(path_type=Path))
@click.option(
    "--prefer",
    type=click.Choice(["mine", "theirs"]),
    help="Who wins where both changed the same value. [default: nobody; it is a conflict]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the result to this file."
)
@json_option
def merge(
    *,
    base: Path,
    mine: Path,
    theirs: Path,
    prefer: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Take what changed from template BASE to template THEIRS over into MINE.

    MINE is a profile that was made from BASE and edited since. The result is written as TOML,
    without the comments; the files themselves, what they extend and their ${VARIABLES} are left
    as they are. Conflicts are listed, nothing is written then, and the exit code is 1.
    """
    preferred: dict[str | None, Strategy] = {None: "fail", "mine": "ours", "theirs": "theirs"}
    edited = read_tables(mine)
    plan = DiffSynchronizer(conflicts=preferred[prefer]).plan(
        read_tables(base), edited, read_tables(theirs)
    )
    if plan.unresolved:
        tell_conflicts(plan, as_json=as_json)
        click.get_current_context().exit(1)
    merged = cast("Mapping[str, Any]", plan.apply(edited))  # Any: whatever a file may say
    text = toml_text(merged)
    taken = [str(operation) for operation in plan.ours]
    if output is not None:
        _write(output, text)
    if as_json:
        click.echo(json.dumps({"merged": merged, "taken": taken}, ensure_ascii=False, default=str))
    elif output is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{output} is written, with {len(taken)} change{'s' * (len(taken) != 1)} taken.")


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise click.FileError(str(output), error.strerror or str(error)) from error


def tell_conflicts(plan: SyncPlan, *, as_json: bool) -> None:
    """Print where both sides changed the same value."""
    if as_json:
        told = [
            {"path": path_text(each.path)}
            | {
                side: None if value is MISSING else value
                for side, value in (
                    ("base", each.base),
                    ("mine", each.ours),
                    ("theirs", each.theirs),
                )
            }
            for each in plan.unresolved
        ]
        click.echo(json.dumps({"conflicts": told}, ensure_ascii=False, default=str))
        return
    for each in plan.unresolved:
        base, ours, theirs = map(shown, (each.base, each.ours, each.theirs))
        click.echo(
            f"{path_text(each.path)}: {base} became {ours} in mine and {theirs} in theirs; "
            f"edit one of them, or say --prefer.",
            err=True,
        )


def shown(value: object) -> str:
    """Return one side of a conflict as text."""
    return "nothing" if value is MISSING else repr(value)
