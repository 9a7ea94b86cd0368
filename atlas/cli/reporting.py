"""How errors are told: one sentence for people, one object for programs."""

from __future__ import annotations

import json
from typing import Any

import click

from atlas.errors import AtlasError


def report(error: AtlasError, *, as_json: bool) -> None:
    """Print an error: one sentence for people, one object for programs."""
    if as_json:
        click.echo(json.dumps({"error": facts(error)}, ensure_ascii=False))
        return
    click.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(str(error), err=True)


def facts(error: AtlasError) -> dict[str, Any]:
    """Return an error's type, text and those of its attributes that JSON can hold."""
    known = {
        name: value
        for name, value in vars(error).items()
        if value not in (None, "") and isinstance(value, str | int | float | bool)
    }
    return {"type": type(error).__name__, "message": str(error)} | known
