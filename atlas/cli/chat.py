"""``atlas chat``: one question and its answer, or a conversation, streamed as it is made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any, cast

import click

from atlas.app import Atlas
from atlas.cli.conversation import Questions, converse, hold
from atlas.cli.options import json_option, model_options
from atlas.cli.reporting import report
from atlas.core.messages import Event
from atlas.core.runs import RunStarted
from atlas.core.schema.codec import encode
from atlas.errors import ProviderError
from atlas.providers.conversation import ChatOptions, Conversation
from atlas.providers.messages import StreamCancelled, StreamCompleted, StreamFailed
from atlas.providers.reply import SyncReply
from atlas.providers.views import event_line

HELP = "Ctrl-C stops an answer, Ctrl-D or an empty line ends the conversation."


@click.command()
@click.argument("prompt", nargs=-1)
@model_options
@click.option("--profile", metavar="FILE", help="Settings; whatever is said here wins over them.")
@click.option("-s", "--system", metavar="TEXT", help="Instructions the model is given first.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0: always the likeliest word.")
@click.option(
    "--db",
    metavar="LOG",
    help="Record the conversation as a run in this log, which `atlas show` and `atlas replay` read.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say which model answers, and how fast.")
@json_option
@click.option(
    "--view",
    type=click.Choice(["public"]),
    help="With --json: events as this view shows them; public hides what is said.",
)
def chat(
    *,
    prompt: tuple[str, ...],
    provider: str | None,
    model: str | None,
    profile: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    db: str | None,
    verbose: bool,
    as_json: bool,
    view: str | None,
) -> None:
    """Ask a model and stream its answer.

    Without PROMPT the question is read from standard input; in a terminal that becomes a
    conversation. With --json every event of the stream is printed as one JSON object a line.
    """
    if view and not as_json:
        raise click.UsageError("--view is a view of events: add --json.")
    interactive = not prompt and sys.stdin.isatty()
    said = {"system": system, "max_tokens": max_tokens, "temperature": temperature}
    # None says nothing, so that the profile may.
    options = {name: value for name, value in said.items() if value is not None}
    if db is not None:
        if as_json:
            raise click.UsageError("--json and --db do not go together: see `atlas show --json`.")
        questions = None if interactive else [given(prompt)]
        app = Atlas(db, provider=provider, model=model, profile=profile)
        asked = Questions(questions, read=read_questions, echo=False)
        hold(lambda: record(app, options, verbose=verbose or interactive), asked)
        return
    with Atlas(provider=provider, model=model, profile=profile) as app:
        if verbose and not as_json:
            click.secho(app.describe(), fg="bright_black", err=True)
        talk = app.conversation(**cast("ChatOptions", options))
        for question in read_questions() if interactive else [given(prompt)]:
            try:
                if as_json:
                    print_events(app, talk, question, view)
                else:
                    print_answer(talk, question, verbose=verbose or interactive)
            except ProviderError as error:
                if not interactive:
                    raise
                # The conversation is as it was before the question, which can be asked again.
                report(error, as_json=as_json)


async def record(app: Atlas, options: Mapping[str, Any], *, verbose: bool) -> None:
    """Hold a conversation and record it as a run."""
    async with app:
        if verbose:
            click.secho(app.describe(), fg="bright_black", err=True)
        begun: list[RunStarted] = []
        with app.bus.subscribe(RunStarted, begun.append):
            try:
                await app.record(converse, name="chat", **options)
            finally:  # also when it was broken off
                for run in begun:
                    click.secho(f"recorded as {run.run}", fg="bright_black", err=True)


def given(prompt: tuple[str, ...]) -> str:
    """Return the question from the command line, else from standard input."""
    question = (" ".join(prompt) if prompt else sys.stdin.read()).strip()
    if not question:
        raise click.UsageError("There is no question: give PROMPT, or text on standard input.")
    return question


def can_show(text: str) -> bool:
    """Return whether standard output has the characters of a text."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def read_questions() -> Iterator[str]:
    """Yield what the user types, until they end it."""
    click.secho(HELP, fg="bright_black", err=True)
    # Unlike click.echo, input() fails where the terminal's encoding lacks a character.
    sign = "\n› " if can_show("›") else "\n> "
    while True:
        try:
            question = input(sign).strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not question:
            return
        yield question


def print_answer(talk: Conversation, question: str, *, verbose: bool) -> None:
    """Stream one answer to standard output; Ctrl-C stops this answer only."""
    reply = talk.chat_sync(question)
    try:
        for token in reply:
            click.echo(token, nl=False)
    except KeyboardInterrupt:
        reply.cancel()
    click.echo()
    if verbose:
        click.secho(summary(reply), fg="bright_black", err=True)


def print_events(app: Atlas, talk: Conversation, question: str, view: str | None) -> None:
    """Print every event of one answer as a line of JSON: its name, fields and place in the log."""
    written: Callable[[Event], str | bytes] = partial(event_line, view=view) if view else encode
    # Through a queue: printed by a handler, an error of standard output would be the bus's affair.
    events: SimpleQueue[Event] = SimpleQueue()
    with app.bus.subscribe("stream.**", events.put):
        reply = talk.chat_sync(question)
        event = None
        while not isinstance(event, StreamCompleted | StreamCancelled | StreamFailed):
            event = events.get()
            click.echo(written(event))
    reply.result()


def summary(reply: SyncReply) -> str:
    """Return one line on how the answer was made."""
    usage, timing = reply.usage, reply.timing
    facts = [
        str(reply.finish_reason),
        None if usage.output_tokens is None else f"{usage.output_tokens} tokens",
        None if timing.first_token is None else f"first after {timing.first_token:.2f} s",
        None if timing.tokens_per_second is None else f"{timing.tokens_per_second:.0f} per second",
    ]
    return " · ".join(fact for fact in facts if fact)
