"""Receipts: what `EventBus.publish` hands back, and how to wait for the handlers.

`Receipt` itself is the receipt of a message that needed plain handlers only, none of which failed:
it is made for every publish and therefore holds nothing but the message. The subclasses here hold
more; users see one type.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NoReturn, Self, TypeVar, cast

from atlas.core.causality import CURRENT
from atlas.core.inner_loop import HERE, here
from atlas.core.messages import Message
from atlas.errors import (
    BusError,
    HandlersFailedError,
    RecursionLimitError,
    ValidationError,
    WaitTimeoutError,
)

__all__ = [
    "Dropped",
    "Joint",
    "Receipt",
    "Settled",
    "checked_timeout",
    "loop_of",
    "receipt_of",
    "text_of",
]

M_co = TypeVar("M_co", bound=Message, covariant=True)
M = TypeVar("M", bound=Message)
ReceiptT = TypeVar("ReceiptT", bound="Receipt[Any]")

_running_loop = asyncio._get_running_loop
_current_cause = CURRENT.get
_place = HERE.get
_LONGEST_SHOWN = 500


def checked_timeout(method: str, seconds: object) -> float | None:
    """Return how long to wait at most; None also for what is longer than any clock counts.

    Raises:
        ValidationError: It is no number of seconds.
    """
    if seconds is None:
        return None
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or math.isnan(cast("float", seconds)):
        raise ValidationError(method, "timeout", seconds, "a number of seconds, or None")
    timeout = cast("float", seconds)
    return None if timeout > threading.TIMEOUT_MAX else timeout


def loop_of(method: str, instead: str = "") -> AbstractEventLoop:
    """Return the loop of asyncio that runs here.

    Raises:
        BusError: None does.
    """
    loop = _running_loop()
    if loop is None:
        raise BusError(
            f"`{method}` needs asyncio's event loop, and none runs here (as under trio). "
            f"{instead or 'Subscribe a plain handler that tells you.'}"
        )
    return loop


def text_of(error: BaseException, form: Callable[[object], str] = str) -> str:
    """Return the text of an error, also of one that fails when it is asked for it."""
    try:
        return form(error)
    except Exception as failure:  # noqa: BLE001  # what a handler raised may do anything
        return f"<a {type(error).__qualname__}, whose text fails with {type(failure).__qualname__}>"


def _shown(error: BaseException) -> str:
    # Bounded: a handler may raise what became of its own publishes, whose text holds that of theirs,
    # and so on; each repr would double the quotes' backslashes of the one inside.
    text = text_of(error, repr)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


class Receipt(Generic[M_co]):
    """What became of one published message. Awaitable, from any loop, any number of times.

    Awaiting (or `wait`) ends when every reliable handler of the message has ended, however it
    ended; it does not raise what handlers raised (see `errors` and `raise_for_errors`), with one
    exception: a `RecursionLimitError`, because then the message was not handled to the end.
    Awaited on the loop its async handlers belong to, idle handlers run in the awaiting task:
    started in priority order, one after another until one suspends; from there the rest go on
    side by side. Cancelling that task cancels the handler running in it and no other.

    Attributes:
        message: The message as it was published (stamped).
    """

    __slots__ = ("message",)

    message: M_co

    @property
    def done(self) -> bool:
        """Whether every reliable handler has ended."""
        return True

    @property
    def dropped(self) -> bool:
        """Whether a middleware dropped the message, so that nobody received it."""
        return False

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What handlers have raised so far, in the order in which they failed."""
        return ()

    def raise_for_errors(self) -> Self:
        """Return the receipt if no handler has failed so far.

        Raises:
            HandlersFailedError: At least one failed; ``errors`` has all, ``__cause__`` the first.
        """
        errors = self.errors
        if errors:
            names = ", ".join(_shown(error) for error in errors)
            raise HandlersFailedError(
                f"{len(errors)} handler(s) of {self.message!r} failed: {names}.", errors=errors
            ) from errors[0]
        return self

    def wait(self, timeout: float | None = None) -> Self:
        """Block this thread until every reliable handler has ended.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            WaitTimeoutError: Time is up. The handlers go on.
            BusError: This thread runs the loop that has to run the handlers, which would wait for
                itself; ``await`` the receipt there instead.
        """
        timeout = checked_timeout("wait", timeout)
        if not self.done:
            self._refuse_deadlock()
            ended = threading.Event()
            self.when_done(ended.set)
            if not ended.wait(timeout):
                self._time_is_up(timeout or 0.0)
        return self._checked()

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once when every reliable handler has ended; at once if they have.

        It is called in the thread that ends the last handler and must not block or raise.
        """
        callback()

    def __await__(self) -> Generator[Any, Any, Self]:
        if _place() is not None and here() is not None:
            return (yield from answered(self))
        return self

    def __repr__(self) -> str:
        state = "done" if self.done else "pending"
        return f"<Receipt of {type(self.message).__name__}: {state}, {len(self.errors)} errors>"

    def _refuse_deadlock(self) -> None:
        return

    def _checked(self) -> Self:
        for error in self.errors:
            if isinstance(error, RecursionLimitError):
                raise error
        return self

    def _time_is_up(self, timeout: float) -> NoReturn:
        raise WaitTimeoutError(
            f"The handlers of {self.message!r} have not all ended within {timeout} seconds.",
            timeout=timeout,
        )

    def _loops(self) -> Iterator[AbstractEventLoop]:
        return iter(())

    def _needed(self) -> AbstractContextManager[object]:
        """Return a block in which the handler running here waits for what becomes of the message."""
        return contextlib.nullcontext()


def receipt_of(message: M) -> Receipt[M]:
    """Return the receipt of a message that nothing more is to be known about."""
    receipt: Receipt[M] = Receipt()
    receipt.message = message
    return receipt


class Dropped(Receipt[M_co]):
    """The receipt of a message that a middleware dropped."""

    __slots__ = ()

    @property
    def dropped(self) -> bool:
        """Whether a middleware dropped the message: it did."""
        return True


class Settled(Receipt[M_co]):
    """The receipt of a message whose plain handlers are through, at least one of them failed."""

    __slots__ = ("failures",)

    def __init__(self, message: M_co) -> None:
        self.message = message
        self.failures: list[BaseException] = []

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What handlers have raised, in the order in which they failed."""
        return tuple(self.failures)

    def fail(self, error: BaseException) -> None:
        """Note that a handler failed."""
        self.failures.append(error)

    def __await__(self) -> Generator[Any, Any, Self]:
        if _place() is not None and here() is not None:
            return (yield from answered(self))
        return self._checked()


class Joint(Receipt[M_co]):
    """The receipt of a message with async handlers on several loops: one part for each."""

    __slots__ = ("failures", "parts")

    def __init__(self, message: M_co, parts: Sequence[Receipt[M_co]]) -> None:
        self.message = message
        self.parts: Sequence[Receipt[M_co]] = parts
        self.failures: list[BaseException] = []

    @property
    def done(self) -> bool:
        """Whether every reliable handler has ended."""
        return all(part.done for part in self.parts)

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What handlers have raised so far: plain ones, then loop by loop."""
        return (*self.failures, *(error for part in self.parts for error in part.errors))

    def fail(self, error: BaseException) -> None:
        """Note that a plain handler failed."""
        self.failures.append(error)

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once when every reliable handler has ended; at once if they have."""
        ended = itertools.count(1).__next__
        many = len(self.parts)

        def one_ended() -> None:
            if ended() == many:
                callback()

        for part in self.parts:
            part.when_done(one_ended)

    def __await__(self) -> Generator[Any, Any, Self]:
        if _place() is not None and here() is not None:
            return (yield from answered(self))
        for part in self.parts:
            yield from part.__await__()
        return self._checked()

    def _refuse_deadlock(self) -> None:
        for part in self.parts:
            if not part.done:
                part._refuse_deadlock()

    @contextlib.contextmanager
    def _needed(self) -> Iterator[None]:
        with contextlib.ExitStack() as blocks:
            for part in self.parts:
                blocks.enter_context(part._needed())
            yield


class Answered(Receipt[M_co]):
    """What awaiting a receipt gives inside a run: with the errors that were recorded."""

    __slots__ = ("failures", "is_strict")

    def __init__(
        self, message: M_co, failures: Sequence[BaseException], *, is_strict: bool
    ) -> None:
        self.message = message
        self.failures: tuple[BaseException, ...] = tuple(failures)
        self.is_strict: bool = is_strict

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What handlers had raised when the run was recorded."""
        return self.failures

    def _checked(self) -> Self:
        return self.raise_for_errors() if self.is_strict else super()._checked()


# What comes back stands for the receipt, whichever type that is.
def answered(receipt: ReceiptT) -> Generator[Any, Any, ReceiptT]:
    """Await a receipt inside a run, which records what came of it: the handlers are outside."""
    place = here()
    assert place is not None

    async def settle() -> list[object]:
        is_strict = False
        try:
            await receipt
        except HandlersFailedError:
            is_strict = True
        except RecursionLimitError:
            pass
        return [is_strict, *receipt.errors]

    supervisor = place.inner.supervisor
    is_over = receipt.done and not receipt.errors
    waiting = supervisor.wait_outside(place, "receipt", settle, nothing=[False], is_over=is_over)
    is_strict, *errors = yield from waiting.__await__()
    answered = Answered(receipt.message, errors, is_strict=is_strict)._checked()
    return cast("ReceiptT", answered)
