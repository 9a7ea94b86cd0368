"""``atlas ingest``, ``atlas search``, ``atlas collections``: a knowledge base from the terminal."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from atlas.cli.options import json_option
from atlas.errors import ConfigurationError
from atlas.knowledge import Hit, Ingested, IngestProgress, Knowledge, SearchOptions
from atlas.knowledge.loading import LARGEST, Loader, find_sources

Command = TypeVar("Command", bound=Callable[..., Any])


def knowledge_options(command: Command) -> Command:
    """Add ``--kb`` and ``--collection``."""
    command = click.option(
        "-c", "--collection", metavar="NAME", default="main", show_default=True, help="Which one."
    )(command)
    return kb_option(command)


def kb_option(command: Command) -> Command:
    """Add ``--kb``, the folder of a knowledge base."""
    return click.option(
        "--kb",
        metavar="FOLDER",
        envvar="ATLAS_KB",
        default="kb",
        show_default="$ATLAS_KB, else kb",
        help="The folder of the knowledge base.",
    )(command)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="PATHS…")
@knowledge_options
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=LARGEST,
    show_default=True,
    help="Largest file to read, also after unpacking.",
)
@json_option
def ingest(
    *, sources: tuple[str, ...], kb: str, collection: str, max_bytes: int, as_json: bool
) -> None:
    """Read documents into a knowledge base; those it has just so are no work.

    PATHS are files, folders, patterns such as 'docs/**/*.md', and URLs. What cannot be read is
    listed, and the others go on; it fails when nothing can be read. After an interruption, say it
    again.
    """
    # First, so that a wrong path does not leave an empty knowledge base behind.
    found = find_sources(sources)
    try:
        reading = Knowledge(kb, loader=Loader(max_bytes=max_bytes))
        with reading as knowledge, progress_bar(silent=as_json) as advance:
            done = knowledge.ingest_sync(*found, collection=collection, on_progress=advance)
    except KeyboardInterrupt:
        click.echo("Stopped. What is stored stays; say it again to go on.", err=True)
        raise
    if as_json:
        told = dataclasses.asdict(done) | {
            "skipped": [{"source": source, "reason": why} for source, why in done.skipped]
        }
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        summarise(done)
    if len(done.skipped) == len(found):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("query")
@knowledge_options
@click.option("-k", default=5, show_default=True, help="How many passages.")
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "dense", "keyword"]),
    default="hybrid",
    show_default=True,
    help="By meaning and words, by meaning, or by words.",
)
@click.option(
    "--where",
    metavar="CONDITION",
    help='Such as \'format == "markdown" and title contains "bus"\'.',
)
@click.option(
    "--at", metavar="VERSION", help="As of a version of the knowledge base, or a time (ISO 8601)."
)
@click.option("--explain", is_flag=True, help="Say how each score came about.")
@json_option
def search(
    *,
    query: str,
    kb: str,
    collection: str,
    k: int,
    mode: str,
    where: str | None,
    at: str | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Find the passages of a knowledge base that answer QUERY best."""
    options: SearchOptions = {
        "k": k,
        "collection": collection,
        "mode": mode,  # type: ignore[typeddict-item]  # click has checked it
        "where": where,
        "at": moment(at),
        "explain": explain,
    }
    with existing(kb) as knowledge:
        hits = knowledge.search_sync(query, **options)
    if as_json:
        click.echo(json.dumps([told(hit) for hit in hits], ensure_ascii=False, indent=2))
        return
    for number, hit in enumerate(hits, 1):
        show(number, hit, explain=explain)
    if not hits:
        click.echo("Nothing was found.")


@click.command()
@kb_option
@json_option
def collections(*, kb: str, as_json: bool) -> None:
    """List the collections of a knowledge base."""
    with existing(kb) as knowledge:
        rows = [
            dataclasses.asdict(info)
            | {
                "documents": len(documents := knowledge.documents(info.name)),
                "passages": sum(each.chunks for each in documents),
            }
            for info in knowledge.collections()
        ]
        version = knowledge.version
    if as_json:
        click.echo(json.dumps({"version": version, "collections": rows}, ensure_ascii=False))
        return
    for row in rows:
        click.echo(
            f"{row['name']:<20} {row['documents']:>7} documents {row['passages']:>8} passages  "
            f"{row['model']} ({row['dimension']})"
        )
    click.echo(f"version {version}")


def existing(kb: str) -> Knowledge:
    """Open a knowledge base that is there; looking for one must not make it."""
    if not (Path(kb) / "log.db").exists():
        raise ConfigurationError(
            f"There is no knowledge base in {kb!r}. Make one with `atlas ingest PATHS…`, or say "
            f"where it is with --kb."
        )
    return Knowledge(kb)


def moment(at: str | None) -> int | datetime | None:
    """Return the version or the time that ``--at`` names; a time without a zone is local."""
    if at is None or at.isdecimal():
        return None if at is None else int(at)
    try:
        time = datetime.fromisoformat(at)
    except ValueError as error:
        raise click.BadParameter(
            f"{at!r} is neither a version (a number) nor a time such as 2026-11-23T10:00.",
            param_hint="--at",
        ) from error
    return time.astimezone(UTC)


@contextmanager
def progress_bar(*, silent: bool) -> Iterator[Callable[[IngestProgress], None]]:
    """Show on standard error how far an ingest is; only in a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[done]}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        console=console,
        transient=True,
        disable=silent or not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None, done="", told="looking for documents")

        def advance(now: IngestProgress) -> None:
            bar.update(
                task,
                completed=now.share,
                total=1.0,
                done=f"{now.done}/{now.total}",
                told=pace(now),
            )

        yield advance


def pace(now: IngestProgress) -> str:
    """Return how fast an ingest is, what it is at, and how long it will take."""
    parts = []
    if now.chunks:
        parts.append(f"{now.per_second:.1f} documents/s")
    if now.waiting:
        parts.append(f"{now.embedded} of {now.waiting} passages embedded")
    if now.remaining is not None:
        parts.append(f"{now.remaining:.0f} s left")
    return ", ".join(parts) or f"{now.read} read"


def summarise(done: Ingested) -> None:
    """Print what an ingest did."""
    for source, why in done.skipped:
        click.secho("skipped ", fg="yellow", nl=False, err=True)
        click.echo(f"{shortened(source)}: {why}", err=True)
    click.echo(
        f"{done.ingested} new, {done.changed} changed, {done.unchanged} unchanged, "
        f"{len(done.skipped)} skipped; {done.chunks} passages ({done.embedded} embedded) in "
        f"{done.seconds:.1f} s; version {done.version}"
    )


def show(number: int, hit: Hit, *, explain: bool) -> None:
    """Print one passage."""
    click.secho(f"[{number}] {hit.heading}", bold=True, nl=False)
    click.secho(f"  {hit.score:.3f}", fg="green")
    click.secho(f"    {shortened(hit.citation)}", fg="cyan")
    begin = " ".join(hit.text.split())
    click.echo(f"    {begin if len(begin) <= 240 else begin[:239].rstrip() + '…'}")
    if explain:
        click.secho(f"    {reasons(hit)}", fg="bright_black")


def reasons(hit: Hit) -> str:
    """Return in a line how a score came about."""
    why = hit.explanation
    parts = []
    if why.similarity is not None:
        parts.append(f"meaning {why.similarity:.3f} (#{why.similarity_rank})")
    if why.words is not None:
        words = " + ".join(f"{each.term} {each.score:.2f}" for each in why.terms)
        place = f"#{why.words_rank}" if why.words_rank else "none"
        parts.append(f"words {why.words:.2f} ({place}{': ' + words if words else ''})")
    parts.append(
        f"fused {why.fused:.3f} - length {why.length_penalty:.3f} + heading {why.heading_boost:.3f}"
    )
    return "; ".join(parts)


def told(hit: Hit) -> dict[str, object]:
    """Return a passage for programs."""
    return dataclasses.asdict(hit) | {"citation": hit.citation, "metadata": dict(hit.metadata)}


def shortened(source: str) -> str:
    """Return a path as it is seen from here."""
    return source.removeprefix(os.getcwd() + os.sep)  # noqa: PTH109 - a prefix of a text
