"""The program of a recorded ``atlas chat``: questions are effects, so that it can be replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, Token
from typing import Any, Final, Self, cast

import click

from atlas.app import Atlas
from atlas.core.effects import effect
from atlas.providers.conversation import ChatOptions
from atlas.typing import JSON

__all__ = ["Questions", "converse"]


class Questions:
    """Where the questions of a conversation come from, inside its ``with`` block.

    Args:
        prompts: The questions; None: a person is asked.
        silent: Whether nothing of the conversation is printed.
        echo: Whether questions are printed: not those that a person has just typed.
        read: Yields what a person types; needed when ``prompts`` is None.
    """

    def __init__(
        self,
        prompts: Sequence[str] | None,
        *,
        silent: bool = False,
        echo: bool = True,
        read: Callable[[], Iterator[str]] | None = None,
    ) -> None:
        self.silent = silent
        self.echo = echo and not silent
        self._prompts = prompts
        self._read = read or _typed
        self._left: Iterator[str] | None = None

    def next(self) -> str | None:
        """Return the next question, None when there is none."""
        if self._left is None:
            self._left = iter(self._prompts) if self._prompts is not None else self._read()
        return next(self._left, None)

    def __enter__(self) -> Self:
        self._token: Token[Questions] = _QUESTIONS.set(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _QUESTIONS.reset(self._token)


def _typed() -> Iterator[str]:
    while question := click.prompt("", default="", prompt_suffix="> ", show_default=False):
        yield question.strip()


_QUESTIONS: Final[ContextVar[Questions]] = ContextVar("atlas_questions")


_NOBODY: Final = Questions(())


@effect("chat.question", pure=True)
async def next_question() -> str | None:
    """Return what is asked next, None when the conversation is over."""
    return await asyncio.to_thread(_QUESTIONS.get(_NOBODY).next)


async def converse(app: Atlas, **options: JSON) -> None:
    """Answer one question after the other, each with all that was said before in view.

    Args:
        app: The application.
        **options: For each answer; see `ChatOptions`.
    """
    # Any: options come back from the log as JSON, and are checked when they are used
    talk = app.conversation(**cast("ChatOptions", cast("Any", options)))
    shown = _QUESTIONS.get(_NOBODY)
    while (question := await next_question()) is not None:
        if shown.echo:
            click.secho(f"› {question}", fg="bright_black", err=True)
        async for token in talk.chat(question):
            if not shown.silent:
                click.echo(token, nl=False)
        if not shown.silent:
            click.echo()
