"""``atlas replay``, ``fork`` and ``resume``: run a recorded program again, in part or whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import click

from atlas.agents.messages import ApprovalAsked
from atlas.app import Atlas
from atlas.cli.conversation import Questions, hold
from atlas.cli.options import db_option, json_option, model_options
from atlas.cli.runs import opened, told
from atlas.core.run_session import RunSession, in_words
from atlas.typing import JSON

Command = TypeVar("Command", bound=Callable[..., Any])


def program_option(command: Command) -> Command:
    """Add ``--program``."""
    return click.option(
        "--program",
        metavar="NAME",
        help="What made the run: package.module:function or script.py:function. "
        "[default: as was recorded]",
    )(command)


@click.command()
@click.argument("run", required=False)
@db_option
@program_option
@click.option(
    "--pace",
    type=click.FloatRange(min=0, min_open=True),
    help="At the recorded pace times this; without it, as fast as possible.",
)
@json_option
def replay(
    *, run: str | None, db: str, program: str | None, pace: float | None, as_json: bool
) -> None:
    """Repeat RUN (default: the latest): no model is asked, nothing outside is touched.

    Fails at the first effect, or event, that is not as it was recorded.
    """

    async def again() -> None:
        async with Atlas(db, provider="scripted") as app:
            wanted = app.runs.latest() if run is None else app.runs[run]
            function, arguments = wanted.program(program)
            session, result, error = app.replaying(wanted.id, pace=pace), None, ""
            try:
                async with session:
                    result = await function(app, **arguments)
            except (Exception, asyncio.CancelledError) as raised:
                # A run that ended so, and ends so again, is the same too.
                error = in_words(raised)
                if wanted.ended is None or wanted.ended.error != error:
                    raise
            end = f"; it ends with {error}" if error else ""
            text = f"{wanted.id} was replayed: the same, byte for byte{end}."
            _tell(session, result, text, as_json, error=error)

    with opened(db):  # and not for writing, which a replay never does
        hold(again, Questions((), silent=as_json))


@click.command()
@click.argument("run")
@db_option
@click.option("--at", "number", type=click.IntRange(min=0), required=True, help="After this event.")
@model_options
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="What a chat is asked from there on, instead of asking you; may be given several times.",
)
@click.option(
    "--argument",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another value for an argument of the program, as JSON or plain text; several times.",
)
@program_option
@json_option
def fork(
    *,
    run: str,
    db: str,
    number: int,
    provider: str | None,
    model: str | None,
    prompts: tuple[str, ...],
    changes: tuple[str, ...],
    program: str | None,
    as_json: bool,
) -> None:
    """Repeat RUN up to one of its events, then go on live as a new run.

    What was recorded stays as it is. `atlas diff` compares the two. Exits with 1 when the program
    did not ask for a --prompt; the new run is kept, and is not what was wanted.
    """
    changed = dict(map(_argument, changes))
    questions = Questions(prompts or None, silent=as_json)
    unasked: list[str] = []

    async def anew() -> None:
        async with Atlas(db) as app:
            session, result = await app.fork(
                run, at=number, provider=provider, model=model, program=program, **changed
            )
            unasked.extend(questions.left())
            _tell(session, result, f"{session.id} is a fork of {run}.", as_json, unasked=unasked)

    run_it(db, anew, questions)
    for prompt in unasked:
        click.secho("Error: ", fg="red", bold=True, err=True, nl=False)
        click.echo(f"The program asked no question for --prompt {prompt!r}.", err=True)
    click.get_current_context().exit(1 if unasked else 0)


@click.command()
@click.argument("run")
@db_option
@program_option
@click.option(
    "--in-doubt",
    type=click.Choice(["raise", "retry", "ask"]),
    default="raise",
    show_default=True,
    help="What to do about an external effect of which nobody knows whether it happened; "
    "ask: wait for `atlas agents approve`.",
)
@json_option
def resume(*, run: str, db: str, program: str | None, in_doubt: Any, as_json: bool) -> None:
    """Go on with RUN, whose process died: what finished is not done again."""

    async def on() -> None:
        async with Atlas(db) as app:
            function, arguments = app.runs[run].program(program)
            if in_doubt == "ask":
                app.bus.subscribe(ApprovalAsked, lambda asked: _tell_question(asked, db))
            async with app.resume(run, in_doubt=in_doubt) as session:
                result = await function(app, **arguments)
            _tell(session, result, f"{run} is completed.", as_json)

    run_it(db, on, Questions(None, silent=as_json))


def _tell_question(asked: ApprovalAsked, db: str) -> None:
    if not asked.task:  # else it is a tool's, and told by the team
        click.echo(
            f"{asked.tool}({asked.arguments}) was begun, and nobody knows whether it happened. Say "
            f"`atlas agents approve --db {db} {asked.approval}` to do it again, with --refuse to "
            f"go on without.",
            err=True,
        )


_OPTIONS = frozenset({"at", "provider", "model", "program", "run"})


def _argument(text: str) -> tuple[str, JSON]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise click.BadParameter(f"{text!r} is no NAME=VALUE.", param_hint="--argument")
    if name in _OPTIONS:
        raise click.BadParameter(f"{name!r} is an option of the command.", param_hint="--argument")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run_it(db: str, work: Callable[[], Coroutine[Any, Any, None]], questions: Questions) -> None:
    """Run a coroutine on a log that exists; an interrupt stops an answer, or else cancels it."""
    with opened(db):  # one that is not there must not be made by a typing mistake
        pass
    hold(work, questions)


def _tell(
    session: RunSession,
    result: object,
    text: str,
    as_json: bool,
    *,
    error: str = "",
    unasked: Sequence[str] = (),
) -> None:
    if as_json:
        known: dict[str, object] = {"run": session.id, "exact": session.is_exact}
        known["result"] = repr(result)
        more = {"error": error, "unasked": list(unasked)}
        told(known | {name: fact for name, fact in more.items() if fact})
    else:
        click.secho(text, fg="bright_black", err=True)
