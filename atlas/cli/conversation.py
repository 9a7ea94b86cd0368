"""The program of a recorded ``atlas chat``: questions are effects, so that it can be replayed."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from queue import Empty, SimpleQueue
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

_LONGEST_WAIT_S: Final = 0.1


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
        self._is_reading = False
        self._is_answering = False
        self._is_stopped = False

    def next(self) -> str | None:
        """Return the next question, None when there is none. Not on the thread that serves."""
        self._begin(None)
        if self._prompts is not None:
            question = next(self._prompts, None)
            self._begin(question)
            return question
        asked: Future[str | None] = Future()
        self._asked.put(asked)
        return asked.result()

    def left(self) -> list[str]:
        """Return, once, those of the prompts given that nobody asked for."""
        return [] if self._prompts is None else list(self._prompts)

    def _begin(self, question: str | None) -> None:
        """Count a question as being answered; None: none is."""
        self._is_stopped = False
        self._is_answering = question is not None

    async def stop(self) -> None:
        """Wait until the person wants no more of the answer that is being made."""
        self._stop = asyncio.Event()
        if self._is_stopped:  # before anybody waited for it
            self._stop.set()
        try:
            await self._stop.wait()
        finally:
            self._stop = None

    def serve(self, loop: asyncio.AbstractEventLoop, give_up: Callable[[], object]) -> None:
        """Ask the person what is to be asked, until `end`; an interrupt stops the answer.

        Args:
            loop: Where the answers are made.
            give_up: Called there at an interrupt while no answer is made, or at a second one.
        """

        def interrupted(*_signal: object) -> None:
            if self._is_reading:
                raise KeyboardInterrupt
            loop.call_soon_threadsafe(self._interrupt, give_up)

        with _interrupts(interrupted):
            while (asked := self._next_asked()) is not None:
                question = None
                with suppress(click.Abort, KeyboardInterrupt):
                    question = self._read()
                self._begin(question)
                asked.set_result(question)

    def _next_asked(self) -> Future[str | None] | None:
        """Wait for who asks for a question; None: nobody will any more."""
        while True:
            # Not for ever: an interrupt that comes right before the waiting begins is noticed when it ends.
            with suppress(Empty):
                return self._asked.get(timeout=_LONGEST_WAIT_S)

    def _read(self) -> str | None:
        try:
            self._is_reading = True
            return next(self._typed, None)
        finally:
            self._is_reading = False

    def _interrupt(self, give_up: Callable[[], object]) -> None:
        """Stop the answer, also one that is about to begin. On the loop."""
        if self._is_stopped or not self._is_answering:
            give_up()
            return
        self._is_stopped = True
        if self._stop is not None:
            self._stop.set()

    def end(self) -> None:
        """Let `serve` return."""
        self._asked.put(None)

    def __enter__(self) -> Self:
        self._token: Token[Questions] = _QUESTIONS.set(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _QUESTIONS.reset(self._token)


@contextmanager
def _interrupts(handle: Callable[..., object]) -> Iterator[None]:
    """Have interrupts handled where the main thread is, instead of raised there.

    An exception could be raised anywhere: between two questions, or when one was taken and not asked.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # nobody is interrupted here, or nobody is to be
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
