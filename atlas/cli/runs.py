"""``atlas runs``, ``show``, ``diff``, ``verify``, ``export`` and ``import``: what is in a log."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, TextIO, TypeVar

import click

import atlas.agents.messages
import atlas.knowledge.messages  # noqa: F401  both: so that these are shown by name
from atlas.cli.options import db_option, json_option
from atlas.cli.trees import LONGEST, tree_lines
from atlas.core.log.controller import LOGS
from atlas.core.log.engine import Engine, Progress
from atlas.core.message_pages import OUTSIDE
from atlas.core.messages import Message
from atlas.core.patches import plain
from atlas.core.runs import UNREADABLE, Comparison, Run, Runs, is_doing, read_export
from atlas.core.schema.codec import encode
from atlas.errors import ErasedError
from atlas.providers.chat_state import ChatState, transitions

T = TypeVar("T")

_SHOWN = 20
_AT_ONCE = 200
_LONG = 5_000
"""Events; reading more takes long enough to show a bar."""

_DASH: Final = "-"


@contextmanager
def opened(db: str, *, writable: bool = False) -> Iterator[tuple[Engine, Runs[ChatState]]]:
    """Open a log and its runs; one that is only read is not changed, nor made."""
    engine = LOGS.open_log(db, read_only=None if writable else True)
    try:
        yield engine, Runs(engine, transitions, ChatState())
    finally:
        LOGS.close_log(engine)


def told(data: object) -> None:
    """Print JSON."""
    text = json.dumps(data, ensure_ascii=False, indent=2)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(data, indent=2)
    click.echo(text)


def facts_or_damage(run: Run[ChatState]) -> dict[str, Any]:
    """Return what is known of a run, be it no more than that it was erased or is damaged."""
    try:
        return facts(run)
    except ErasedError:
        return _unknown(run, "erased")
    except UNREADABLE as error:
        return _unknown(run, "damaged") | {"problem": str(error)}


def _unknown(run: Run[ChatState], status: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("name", "status", "events", "began", "parent", "forked_at", "program"))
    return {"run": run.id, **unknown, "status": status, "events": len(run)}


def facts(run: Run[ChatState]) -> dict[str, Any]:
    """Return what is known of a run as a whole."""
    began = run.time
    return {
        "run": run.id,
        "name": run.name,
        "status": "session" if run.name == "session" else run.status,
        "events": len(run),
        "began": None if began is None else began.isoformat(),
        "parent": run.parent,
        "forked_at": run.forked_at,
        "program": run.origin.program,
    }


@click.command()
@db_option
@click.option("-n", "--last", type=click.IntRange(min=1), default=_SHOWN, show_default=True)
@json_option
def runs(*, db: str, last: int, as_json: bool) -> None:
    """List the runs in a log, the latest last.

    Exits with 1 when one of them is damaged.
    """
    with opened(db) as (_, known):
        names = list(known)
        listed = [facts_or_damage(known[name]) for name in names[-last:]]
    damaged = [each for each in listed if each["status"] == "damaged"]
    if as_json:
        told(listed)
    else:
        _list(listed, len(names) - len(listed))
        for each in damaged:
            click.secho(f"{each['run']} is damaged: {each['problem']}", fg="red", err=True)
        if damaged:
            click.echo(
                "`atlas verify` names the first bad record. `atlas repair` keeps what is before it: "
                "save later runs with `atlas export`.",
                err=True,
            )
    click.get_current_context().exit(1 if damaged else 0)


def _list(listed: list[dict[str, Any]], earlier: int) -> None:
    if not listed:
        click.echo("There are no runs yet. Record one with `atlas chat --db`, or app.recording().")
        return
    width = max(len(each["run"]) for each in listed)
    for each in listed:
        began = each["began"][:19].replace("T", " ") if each["began"] else " " * 19
        of = f"  from {each['parent']} at {each['forked_at']}" if each["parent"] else ""
        click.echo(
            f"{each['run']:<{width}}  {began}  {each['status']:<10}  {each['events']:>6} events{of}"
        )
    if earlier:
        click.echo(f"{earlier} earlier ones are not shown; see --last.")


@click.command()
@click.argument("run", required=False)
@db_option
@click.option("--at", "number", type=int, help="Show the state after this event instead.")
@click.option(
    "--time",
    "moment",
    metavar="WHEN",
    help="Show the state at a time: 2026-11-23T10:00:00+00:00, or +2.5 (seconds after the start).",
)
@click.option("--all", "everything", is_flag=True, help="Show every token and piece by itself.")
@json_option
def show(
    *,
    run: str | None,
    db: str,
    number: int | None,
    moment: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Show what happened in RUN (default: the latest) as a tree, or its state at a moment."""
    if number is not None and moment is not None:
        raise click.UsageError("--at and --time are two ways to name a moment: give one of them.")
    with opened(db) as (_, known):
        found = known.latest() if run is None else known[run]
        if moment is not None:
            number = found.number_at(when(moment, found))
        if number is not None:
            state = plain(found.at(number))
            number += len(found) + 1 if number < 0 else 0
            if as_json:
                told({"run": found.id, "at": number, "state": state})
                return
            click.secho(f"{found.id} after event {number} of {len(found)}", bold=True)
            told(state)
            return
        if as_json:
            for encoded in _batches(map(encode, found.read())):
                click.echo(b"\n".join(encoded))
            return
        told_of = facts(found)
        click.secho(f"{found.id}  {told_of['status']}, {told_of['events']} events", bold=True)
        with progress("Reading", silent=len(found) < _LONG) as tell:
            lines = tree_lines(_counted(found, tell), everything=everything)
            first = list(itertools.islice(lines, 1))  # which is drawn when all are read
        for some in _batches(itertools.chain(first, lines)):
            click.echo("\n".join(some))


def _counted(run: Run[ChatState], tell: Progress) -> Iterator[Message]:
    """Yield the events of a run, and tell how many were read."""
    whole = len(run)
    for number, event in enumerate(run.read(), 1):
        if number % _AT_ONCE == 0:
            tell(number, whole)
        yield event
    tell(whole, whole)


def _batches(lines: Iterator[T]) -> Iterator[list[T]]:
    """Yield some lines at a time, to be printed together: every print is flushed."""
    while some := list(itertools.islice(lines, _AT_ONCE)):
        yield some


def when(text: str, run: Run[ChatState]) -> datetime:
    """Return the time that a text names.

    Raises:
        UsageError: It names none.
    """
    began = run.time
    try:
        if text.startswith("+") and began is not None:
            return began + timedelta(seconds=float(text))
        named = datetime.fromisoformat(text)
        return named if named.tzinfo is not None else named.astimezone()
    except (ValueError, OverflowError) as error:
        raise click.UsageError(
            f"--time is {text!r}. Write 2026-11-23T10:00:00+00:00, or +2.5 for seconds after the "
            f"start of the run."
        ) from error


@click.command()
@click.argument("one", metavar="RUN")
@click.argument("other", metavar="RUN")
@db_option
@click.option("-n", "--lines", type=click.IntRange(min=1), default=_SHOWN, show_default=True)
@json_option
def diff(*, one: str, other: str, db: str, lines: int, as_json: bool) -> None:
    """Compare two runs: what both did up to where they part, then each from there.

    Ids, moments and durations differ each time, and are not compared. Exits with 1 when they differ.
    """
    with opened(db) as (_, known):
        is_short = sum(len(known[each]) for each in (one, other)) < _LONG
        with progress("Comparing", silent=as_json or is_short) as tell:
            compared = known.compare(one, other, tell)
        events = [_doings(known[each]) for each in (one, other)]
    if as_json:
        told(
            {
                "same": compared.same,
                "shared": compared.shared,
                one: list(compared.lines[compared.shared :]),
                other: list(compared.other_lines[compared.shared :]),
            }
        )
    elif compared.same:
        click.echo(f"{one} and {other} did the same: {len(compared.lines)} events.")
    else:
        click.echo(f"The same for {compared.shared} events, then they part:")
        width = max(30, shutil.get_terminal_size().columns // 2 - 2)
        parting = _parting(compared, events, width)
        click.secho(f"  {one:<{width}}  {other}", bold=True)
        texts = [list(_drawn(each[compared.shared + 1 :])) for each in events]
        rows = [parting, *itertools.zip_longest(*texts, fillvalue="")]
        for left, right in rows[:lines]:
            click.echo(f"  {_cut(left, width):<{width}}  {_cut(right, width)}")
        if len(rows) > lines:
            click.echo(f"  … {len(rows) - lines} more; see --lines.")
    click.get_current_context().exit(0 if compared.same else 1)


def _doings(run: Run[ChatState]) -> list[Message]:
    """Return what `Run.lines` has lines of."""
    return [event for event in run.held() if is_doing(event) and OUTSIDE not in event.meta.headers]


def _drawn(events: list[Message], *, longest: int = LONGEST) -> Iterator[str]:
    return tree_lines(events, numbers=False, longest=longest)


def _parting(compared: Comparison, events: list[list[Message]], width: int) -> tuple[str, str]:
    """Return the first two events that differ, in words, from shortly before they do."""
    shared = compared.shared
    left, right = (
        next(_drawn(each[shared : shared + 1], longest=sys.maxsize), "(nothing more)")
        for each in events
    )
    if left == right:  # it shows in what is not for people
        left, right = compared.lines[shared], compared.other_lines[shared]
    pairs = zip(left, right, strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if alike > width * 2 // 3:
        cut = alike - width // 3
        return f"…{left[cut:]}", f"…{right[cut:]}"
    return left, right


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


@click.command()
@db_option
@json_option
def verify(*, db: str, as_json: bool) -> None:
    """Check that every record of a log is what was written; exits with 1 if one is not."""
    with opened(db) as (engine, _), progress("Verifying", silent=as_json) as tell:
        found = engine.verify(tell)
    if as_json:
        told(
            {
                "ok": found.ok,
                "records": found.records,
                "erased": found.erased,
                "notes": found.notes,
                "bad_position": found.bad_position,
                "problem": found.problem,
            }
        )
    elif found.ok:
        erased = f", {found.erased:,} of them erased" if found.erased else ""
        left = found.notes
        noted = f"; {left:,} notes are to be entered by who writes there next" if left else ""
        click.echo(f"{db} is what was written: {found.records:,} records{erased}{noted}.")
    else:
        click.secho(f"Position {found.bad_position}: {found.problem}", fg="red", err=True)
    click.get_current_context().exit(0 if found.ok else 1)


@contextmanager
def progress(label: str, *, silent: bool) -> Iterator[Progress]:
    """Show a bar on standard error while something long goes on, if that is a terminal."""
    if silent or not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def tell(done: int, everything: int) -> None:
            bar.length = max(everything, 1)
            bar.update(done - bar.pos)

        yield tell


@click.command()
@click.argument("run")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@db_option
@json_option
def export(*, run: str, file: str, db: str, as_json: bool) -> None:
    """Write RUN into FILE (-: standard output) as JSON lines.

    It is whole with what it shares with a run it was forked from.
    """
    with opened(db) as (_, known):
        found = known[run]
        with progress("Exporting", silent=as_json) as tell:
            if file == _DASH:
                with _as_utf8(sys.stdout) as target:
                    count = found.export(target, tell)
            else:
                count = found.export(file, tell)
    if file == _DASH:
        click.echo(f"{count} events of {run}.", err=True)
    elif as_json:
        told({"run": run, "file": file, "events": count})
    else:
        click.echo(f"{count} events of {run} are in {file}.")


@contextmanager
def _as_utf8(stream: TextIO) -> Iterator[TextIO]:
    """Give standard output as a file of exports, which are UTF-8 whatever the terminal is."""
    text = io.TextIOWrapper(stream.buffer, "utf-8", newline="\n")
    try:
        yield text
        text.flush()
    finally:
        text.detach()


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, allow_dash=True))
@db_option
@json_option
def import_(*, file: str, db: str, as_json: bool) -> None:
    """Store the run in FILE (-: standard input), which `atlas export` wrote; it is checked whole before."""
    with progress("Importing", silent=as_json) as tell:
        exported = read_export(sys.stdin.buffer if file == _DASH else file, tell)
    with opened(db, writable=True) as (_, known):  # not before: what is refused makes no log
        made = known.store(exported)
        count = len(made)
    if as_json:
        told({"run": made.id, "db": db, "events": count})
    else:
        click.echo(f"Run {made.id} with {count} events is in {db}.")
