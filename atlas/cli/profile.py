"""``atlas profile``: look at the settings of an assistant before they are used."""

from __future__ import annotations

import json
from pathlib import Path

import click

from atlas.cli.options import json_option
from atlas.providers.profile import load_chat_profile


@click.group()
def profile() -> None:
    """Look at profiles, the settings of an assistant; every command takes --json."""


@profile.command()
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
