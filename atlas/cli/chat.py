"""``atlas chat``: one question and its answer, or a conversation, streamed as it is made."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from atlas.app import Atlas
from atlas.cli.options import json_option, model_options
from atlas.core.messages import Event
from atlas.core.schema import to_json
from atlas.providers.conversation import Conversation
from atlas.providers.reply import Reply, SyncReply

HELP = "Ctrl-C stops an answer, Ctrl-D or an empty line ends the conversation."


@click.command()
@click.argument("prompt", nargs=-1)
@model_options
@click.option("-s", "--system", metavar="TEXT", help="Instructions the model is given first.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0: always the likeliest word.")
@click.option("-v", "--verbose", is_flag=True, help="Say which model answers, and how fast.")
@json_option
def chat(
    *,
    prompt: tuple[str, ...],
    provider: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Ask a model and stream its answer.

    Without PROMPT the question is read from standard input; in a terminal that becomes a
    conversation. With --json every event of the stream is printed as one JSON object a line.
    """
    interactive = not prompt and sys.stdin.isatty()
    with Atlas(provider=provider, model=model) as app:
        if as_json:
            app.bus.subscribe("stream.**", print_event)
        talk = app.conversation(
            system=system or "", max_tokens=max_tokens, temperature=temperature
        )
        if verbose and not as_json:
            click.secho(f"{app.describe()}", fg="bright_black", err=True)
        questions = read_questions() if interactive else iter([" ".join(prompt) or sys.stdin.read()])
        for question in questions:
            answer(talk, question, as_json=as_json, verbose=verbose or interactive)


def read_questions() -> Iterator[str]:
    """Yield what the user types, until they end it."""
    click.secho(HELP, fg="bright_black", err=True)
    while True:
        try:
            question = input("\n› ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not question:
            return
        yield question


def answer(talk: Conversation, question: str, *, as_json: bool, verbose: bool) -> None:
    """Stream one answer to standard output; Ctrl-C stops this answer only."""
    reply = talk.chat_sync(question)
    try:
        for token in reply:
            if not as_json:
                click.echo(token, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        reply.cancel()
    if as_json:
        return
    click.echo()
    if verbose:
        click.secho(summary(reply), fg="bright_black", err=True)
