"""``atlas repair``: make a damaged log usable again."""

from __future__ import annotations

from dataclasses import asdict

import click

from atlas.cli.options import db_option, json_option
from atlas.cli.runs import opened, progress, told
from atlas.core.log.engine import Repair


@click.command()
@db_option
@json_option
def repair(*, db: str, as_json: bool) -> None:
    """Keep what is good of a damaged log: all before the first bad record.

    The damaged file is kept whole, beside the repaired one. Nobody else should have the log open
    meanwhile. A log that is not damaged is left as it is.
    """
    with opened(db) as (engine, _), progress("Verifying", silent=as_json) as tell:
        found = engine.verify(tell)
    done = Repair(found.records, 0, "")
    if not found.ok:
        with (
            opened(db, writable=True) as (engine, _),
            progress("Repairing", silent=as_json) as tell,
        ):
            done = engine.repair(tell)
    if as_json:
        told(asdict(done))
    elif found.ok:
        click.echo(f"{db} is what was written: {done.kept:,} records, nothing to repair.")
    else:
        click.echo(f"{db} has {done.kept:,} good records. {found.problem}")
        what = f"{done.set_aside:,} records are" if done.set_aside else "What cannot be read is"
        click.echo(f"{what} only in {done.saved_to or 'what is lost'} now.")
