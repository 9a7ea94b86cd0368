"""The program of a recorded ``atlas chat``: questions are effects, so that it can be replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import ContextVar, Token
from queue import SimpleQueue
from typing import Any, Final, Self, TypeVar, cast

import click

from atlas.app import Atlas
from atlas.core.effects import effect
from atlas.core.loop_thread import LoopThread
from atlas.providers.conversation import ChatOptions
from atlas.providers.reply import Reply
from atlas.typing import JSON

__all__ = ["Questions", "converse", "hold"]

T = TypeVar("T")


class Questions:
    """Where the questions of a conversation come from, inside its ``with`` block.

    Args:
        prompts: The questions; None: a person is asked, by `hold`.
        silent: Whether nothing of the conversation is printed.
        echo: Whether questions are printed: not those that a person has just typed.
        read: Yields what a person types.
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
        self.echo: bool = echo and not silent
        self._prompts = None if prompts is None else iter(prompts)
        self._typed = (read or _typed)()
        self._asked: SimpleQueue[Future[str | None] | None] = SimpleQueue()
        self._stop: asyncio.Event | None = None

    def next(self) -> str | None:
        """Return the next question, None when there is none. Not on the thread that serves."""
        if self._prompts is not None:
            return self._begun(next(self._prompts, None))
        asked: Future[str | None] = Future()
        self._asked.put(asked)
        return asked.result()

    def left(self) -> list[str]:
        """Return, once, those of the prompts given that nobody asked for."""
        return [] if self._prompts is None else list(self._prompts)

    async def stop(self) -> None:
        """Wait until the person wants no more of the answer that is being made."""
        await (self._stop or asyncio.Event()).wait()

    def serve(self, loop: asyncio.AbstractEventLoop, give_up: Callable[[], object]) -> None:
        """Ask the person what is to be asked, until `end`; an interrupt stops the answer.

        Args:
            loop: Where the answers are made.
            give_up: Called there at an interrupt while no answer is made, or at a second one.
        """
        asked: Future[str | None] | None = None
        while True:
            try:
                if asked is None or asked.done():
                    asked = self._asked.get()
                if asked is None:
                    return
                question = None
                with suppress(click.Abort):
                    question = next(self._typed, None)
                asked.set_result(self._begun(question))
            except KeyboardInterrupt:  # wherever it comes
                stop = self._stop
                if stop is None or stop.is_set():  # a second one gives up
                    loop.call_soon_threadsafe(give_up)
                else:
                    loop.call_soon_threadsafe(stop.set)

    def _begun(self, question: str | None) -> str | None:
        # From here on an interrupt is about this answer, also before anybody waits to be stopped.
        self._stop = None if question is None else asyncio.Event()
        return question

    def end(self) -> None:
        """Let `serve` return."""
        self._asked.put(None)

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


def hold(work: Callable[[], Coroutine[Any, Any, T]], questions: Questions) -> T:
    """Run a coroutine in a thread of its own, and ask its questions in this one.

    An interrupt reaches only the main thread, and a thread that waits for what a person types
    cannot be called back.

    Raises:
        KeyboardInterrupt: There was one while no answer was being made.
    """
    thread = LoopThread.start("atlas-chat")

    async def whole() -> T:
        tasks.append(asyncio.current_task())
        try:
            return await work()
        finally:
            questions.end()

    def give_up() -> None:
        for task in tasks:
            cast("asyncio.Task[T]", task).cancel()

    tasks: list[object] = []
    try:
        with questions:
            done = asyncio.run_coroutine_threadsafe(whole(), thread.loop)
        questions.serve(thread.loop, give_up)
        return done.result()
    except CancelledError as error:
        raise KeyboardInterrupt from error
    finally:
        thread.close()


@effect("chat.question", pure=True)
async def next_question() -> str | None:
    """Return what is asked next, None when the conversation is over."""
    return await asyncio.to_thread(_QUESTIONS.get(_NOBODY).next)


@effect("chat.stop", pure=True)
async def asked_to_stop() -> None:
    """Wait until no more of an answer is wanted."""
    await _QUESTIONS.get(_NOBODY).stop()


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
        reply = talk.chat(question)
        stopping = asyncio.create_task(_stop(reply))
        try:
            async for token in reply:
                if not shown.silent:
                    click.echo(token, nl=False)
        finally:
            stopping.cancel()
        if not shown.silent:
            click.echo()


async def _stop(reply: Reply) -> None:
    await asked_to_stop()
    await reply.cancel()
