"""Layers around effects: what may happen before, between and instead of performing one.

A layer is put around the performing itself, outside of the run: a replay runs none of them, for it has what
came of them. Their order is that of the list: the first is the outermost. A run's layers are around an effect's own,
and an effect's own are, from outside: those of its ``layers``, then `Timeout`, then `Retry`. So a budget in front
of a retry counts effects, one behind it attempts.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal, TypeAlias, cast

from atlas.core.alarms import Patience
from atlas.errors import BudgetExceededError, ConfigurationError, EffectDeniedError

__all__ = [
    "Ask",
    "Budget",
    "Deny",
    "DryRun",
    "EffectCall",
    "Layer",
    "Retry",
    "Timeout",
    "called",
    "checked_layers",
    "checked_names",
    "read",
    "streamed",
]

# Any: whatever the effect gives
Proceed: TypeAlias = Callable[[], Awaitable[Any]]
ProceedStream: TypeAlias = Callable[[], AsyncIterator[Any]]


def _nowhere(what: str, text: str) -> None:
    """Note nothing: outside of runs nobody writes."""


def _nothing(secret: object) -> None:
    """Hide nothing: outside of runs nothing is written."""


@dataclass(slots=True)
class EffectCall:
    """One effect that is being performed, as layers and its function see it.

    Attributes:
        kind: What it is.
        declared: ``"pure"``, ``"idempotent"`` or ``"external"``.
        request: Its canonical JSON, redacted.
        id: Its id in the run; "" outside of runs.
        run: The run's id; "" outside of runs.
        attempt: Which attempt this is, from 1.
        note: Writes something about it to the journal: what it is, in a word, and a text.
        hide: Keeps what it gives, raises and notes from now on free of a secret: see `hide`.
    """

    kind: str
    declared: Literal["pure", "idempotent", "external"]
    request: str
    id: str = ""
    run: str = ""
    attempt: int = 1
    note: Callable[[str, str], None] = field(default=_nowhere, repr=False)
    hide: Callable[[object], object] = field(default=_nothing, repr=False)

    @property
    def idempotency_key(self) -> str:
        """The same for the same effect of the same run however often it is performed.

        It is different for every other, and "" outside of runs.
        """
        return sha256(f"{self.run}\n{self.id}".encode()).hexdigest() if self.id else ""


class Layer:
    """The base of layers: hands everything on. Override what the layer is about.

    One layer serves many effects side by side; it keeps what belongs to one in local variables.
    """

    # Any: whatever the effect gives
    async def call(self, call: EffectCall, proceed: Proceed) -> Any:
        """Perform an effect with one result; ``proceed`` does, as often as it is called."""
        return await proceed()

    async def stream(self, call: EffectCall, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Perform an effect that gives pieces; ``proceed`` begins to."""
        async with aclosing(cast("Any", proceed())) as pieces:
            async for piece in pieces:
                yield piece

    # Any: whatever the effect gives
    def read(self, call: EffectCall, proceed: Callable[[], Any]) -> Any:
        """Perform an effect that is a plain function."""
        return proceed()


# -- putting layers around ------------------------------------------------------------------------


def called(layers: Sequence[Layer], call: EffectCall, proceed: Proceed) -> Awaitable[Any]:
    """Return an awaitable that performs an effect inside layers."""
    if len(layers) == 1:  # as that of a tool with a deadline
        return layers[0].call(call, proceed)
    for layer in reversed(layers):
        proceed = _with(layer.call, call, proceed)
    return proceed()


def streamed(
    layers: Sequence[Layer], call: EffectCall, proceed: ProceedStream
) -> AsyncIterator[Any]:
    """Return the pieces of an effect inside layers."""
    for layer in reversed(layers):
        proceed = _with(layer.stream, call, proceed)
    return proceed()


# Any: whatever the effect gives
def read(layers: Sequence[Layer], call: EffectCall, proceed: Callable[[], Any]) -> Any:
    """Perform a plain function inside layers."""
    for layer in reversed(layers):
        proceed = _with(layer.read, call, proceed)
    return proceed()


# Any: one shape for the three kinds of methods of a layer
def _with(method: Any, call: EffectCall, proceed: Any) -> Callable[[], Any]:
    return lambda: method(call, proceed)


# -- what they are given --------------------------------------------------------------------------


def checked_names(names: object, what: str) -> frozenset[str]:
    """Return names as a set.

    Raises:
        ConfigurationError: They are none, or one text, which would be taken for its letters.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigurationError(f"{what} is {names!r}. Give names, such as [{str(names)!r}].")
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise ConfigurationError(f"{what} has {name!r}. Give names, which are texts.")
    return frozenset(found)


def checked_layers(layers: object) -> tuple[Layer, ...]:
    """Return layers as a tuple.

    Raises:
        ConfigurationError: One is none.
    """
    found = tuple(layers) if isinstance(layers, Iterable) else (layers,)
    for layer in found:
        if not (isinstance(layer, Layer) and isinstance(layers, Iterable)):
            raise ConfigurationError(
                f"layers has {layer!r}. Give a list of objects whose class derives from Layer, such as "
                f"[Retry(3)]; see atlas.core.effect_layers."
            )
    return cast("tuple[Layer, ...]", found)


def _is_number(value: object) -> bool:
    """Return whether a value is a number from 0, maybe infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


# -- the layers -----------------------------------------------------------------------------------


_REFUSALS: Final = (EffectDeniedError, BudgetExceededError)


class Retry(Layer):
    """Performs an effect again when it failed. Each failed attempt is noted in the journal.

    A stream is begun again only if it failed before its first piece. What another layer refused
    (`EffectDeniedError`, `BudgetExceededError`) stays refused.

    Args:
        attempts: How many there are in all.
        wait: Seconds before the second attempt; doubled each time after.
        on: Errors after which another attempt makes sense.
    """

    def __init__(
        self,
        attempts: int = 3,
        *,
        wait: float = 0.5,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
    ) -> None:
        if type(attempts) is not int or attempts < 1:
            raise ConfigurationError(
                f"attempts is {attempts!r}. Give how many there are in all, an int that is at least one."
            )
        if not _is_number(wait) or wait == math.inf:
            raise ConfigurationError(f"wait is {wait!r}. Give a number of seconds from 0.")
        self.attempts = attempts
        self.wait = wait
        self.on = on

    async def call(self, call: EffectCall, proceed: Proceed) -> Any:
        """Perform the effect until it succeeds or the attempts are used up."""
        while True:
            try:
                return await proceed()
            except self.on as error:
                await self._next(call, error)

    async def stream(self, call: EffectCall, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Begin the stream until it gives a piece or the attempts are used up."""
        begun = False
        while True:
            try:
                async with aclosing(cast("Any", proceed())) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
            except self.on as error:
                if begun:
                    raise
                await self._next(call, error)
            else:
                return

    async def _next(self, call: EffectCall, error: Exception) -> None:
        number = call.attempt
        call.note("attempt", f"attempt {number} of {self.attempts} failed: {error!r}")
        if number >= self.attempts or isinstance(error, _REFUSALS):
            raise error
        await asyncio.sleep(self.wait * 2 ** (number - 1))
        call.attempt = number + 1


class Timeout(Layer):
    """Cancels an effect that takes too long; it fails with `TimeoutError`.

    Args:
        seconds: How long it may take; for a stream, how long each piece may.
    """

    def __init__(self, seconds: float) -> None:
        if not _is_number(seconds) or seconds == 0:
            raise ConfigurationError(f"seconds is {seconds!r}. Give a number above 0.")
        self.seconds = seconds

    async def call(self, call: EffectCall, proceed: Proceed) -> Any:
        """Perform the effect, for so long at most."""
        patience = Patience(self.seconds)
        try:
            with patience:
                return await proceed()
        except TimeoutError as error:
            if not patience.is_over:  # a limit of its own
                raise
            raise self._too_late(call) from error

    async def stream(self, call: EffectCall, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Hand on the pieces, each of which may take so long."""
        async with aclosing(cast("Any", proceed())) as pieces:
            while True:
                patience = Patience(self.seconds)
                try:
                    with patience:
                        piece = await anext(pieces)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    if not patience.is_over:
                        raise
                    raise self._too_late(call) from error
                yield piece

    def _too_late(self, call: EffectCall) -> TimeoutError:
        return TimeoutError(f"Effect {call.kind!r} took longer than {self.seconds} seconds.")


class Budget(Layer):
    """Lets effects pass until something is used up. Any thread.

    Args:
        calls: How many effects may pass; None for any number.
        limits: How much of other things may be used, by name: ``{"tokens": 10_000, "euro": 0.5}``.
        cost: Tells from an effect and its result what it used, by name. What has passed is counted
            when it is known, so that effects under way together may overshoot.
        kinds: The kinds it counts; None for all.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        limits: Mapping[str, float] | None = None,
        cost: Callable[[EffectCall, Any], Mapping[str, float]] | None = None,
        kinds: Collection[str] | None = None,
    ) -> None:
        self._limits = {**(limits or {}), **({} if calls is None else {"calls": calls})}
        for name, limit in self._limits.items():
            if not _is_number(limit):
                raise ConfigurationError(f"The limit of {name} is {limit!r}. Give a number from 0.")
        self._cost = cost
        self._kinds = None if kinds is None else checked_names(kinds, "kinds")
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}

    @property
    def used(self) -> Mapping[str, float]:
        """What has been used so far, by name."""
        with self._lock:
            return dict(self._used)

    def _enter(self, call: EffectCall) -> None:
        with self._lock:
            for name, limit in self._limits.items():
                used = self._used.get(name, 0)
                if used >= limit:
                    raise BudgetExceededError(
                        f"Effect {call.kind!r} was not performed: {used:g} of {limit:g} {name} are "
                        f"used. Raise the budget, or do with less."
                    )
            self._used["calls"] = self._used.get("calls", 0) + 1

    def _pay(self, call: EffectCall, result: Any) -> None:
        if self._cost is None:
            return
        cost = self._cost(call, result)
        with self._lock:
            for name, amount in cost.items():
                self._used[name] = self._used.get(name, 0) + amount

    def _counts(self, call: EffectCall) -> bool:
        return self._kinds is None or call.kind in self._kinds

    async def call(self, call: EffectCall, proceed: Proceed) -> Any:
        """Perform the effect if something is left."""
        if not self._counts(call):
            return await proceed()
        self._enter(call)
        result = await proceed()
        self._pay(call, result)
        return result

    async def stream(self, call: EffectCall, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Begin the stream if something is left; each piece may cost."""
        counts = self._counts(call)
        if counts:
            self._enter(call)
        async with aclosing(cast("Any", proceed())) as pieces:
            async for piece in pieces:
                if counts:
                    self._pay(call, piece)
                yield piece

    def read(self, call: EffectCall, proceed: Callable[[], Any]) -> Any:
        """Perform the function if something is left."""
        if not self._counts(call):
            return proceed()
        self._enter(call)
        result = proceed()
        self._pay(call, result)
        return result


class Deny(Layer):
    """Refuses effects of some kinds, or all but some.

    Args:
        kinds: The kinds refused.
        allow: The only kinds allowed, instead; ``[]`` refuses everything.

    Raises:
        ConfigurationError: Neither or both are given, or they are no names.
    """

    def __init__(
        self, kinds: Collection[str] | None = None, *, allow: Collection[str] | None = None
    ) -> None:
        if (kinds is None) == (allow is None):
            raise ConfigurationError(
                f"Deny was given kinds={kinds!r} and allow={allow!r}. Give the kinds that are refused, "
                f"or the only ones that are allowed; allow=[] refuses everything."
            )
        self._kinds = checked_names(kinds or (), "kinds")
        self._allow = None if allow is None else checked_names(allow, "allow")

    def _check(self, call: EffectCall) -> None:
        allowed = call.kind not in self._kinds if self._allow is None else call.kind in self._allow
        if not allowed:
            raise EffectDeniedError(f"Effects of kind {call.kind!r} are denied here.")

    async def call(self, call: EffectCall, proceed: Proceed) -> Any:
        """Perform the effect if its kind is allowed."""
        self._check(call)
        return await proceed()

    async def stream(self, call: EffectCall, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Begin the stream if its kind is allowed."""
        self._check(call)
        async for piece in super().stream(call, proceed):
            yield piece

    def read(self, call: EffectCall, proceed: Callable[[], Any]) -> Any:
        """Perform the function if its kind is allowed."""
        self._check(call)
        return proceed()


class Ask(Layer):
    """Asks before each effect; the decision is noted in the journal.

    Args:
        decide: Told the effect, returns True when it may be performed, else False; plain or
            ``async``. For effects that are plain functions it has to be plain.
        kinds: The kinds it asks about; None for all.
    """

    def __init__(
        self,
        decide: Callable[[EffectCall], bool | Awaitable[bool]],
        *,
        kinds: Collection[str] | None = None,
    ) -> None:
        if not callable(decide):
            raise ConfigurationError(f"decide is {decide!r}. Give a function of the effect.")
        self._decide = decide
        self._kinds = None if kinds is None else checked_names(kinds, "kinds")

    async def _check(self, call: EffectCall) -> None:
        if self._kinds is None or call.kind in self._kinds:
            answer = self._decide(call)
            self._judge(call, await answer if inspect.isawaitable(answer) else answer)

    def _judge(self, call: EffectCall, allowed: object) -> None:
        if not isinstance(allowed, bool):  # "no" is true, and so is a coroutine
            raise EffectDeniedError(
                f"Effect {call.kind!r} was not performed: asked about it, `decide` answered "
                f"{allowed!r}. Have it return True or False."
            )
        call.note("decision", "allowed" if allowed else "refused")
        if not allowed:
            raise EffectDeniedError(
                f"Effect {call.id or call.kind!r} ({call.kind}) was refused when asked about."
            )

    async def call(self, call: EffectCall, proceed: Proceed) -> Any:
        """Perform the effect if the answer is yes."""
        await self._check(call)
        return await proceed()

    async def stream(self, call: EffectCall, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Begin the stream if the answer is yes."""
        await self._check(call)
        async for piece in super().stream(call, proceed):
            yield piece

    def read(self, call: EffectCall, proceed: Callable[[], Any]) -> Any:
        """Perform the function if the answer is yes."""
        if self._kinds is None or call.kind in self._kinds:
            answer = self._decide(call)
            if inspect.isawaitable(answer):
                if inspect.iscoroutine(answer):
                    answer.close()
                raise EffectDeniedError(
                    f"Effect {call.kind!r} is a plain function, so who is asked about it has to "
                    f"answer at once, with True or False; the answer was {answer!r}."
                )
            self._judge(call, answer)
        return proceed()


class DryRun(Layer):
    """Performs nothing that changes anything: idempotent and external effects get a given answer.

    Attributes:
        skipped: The effects that were not performed, in order.

    Args:
        answers: What effects of a kind give instead: a value, or a function of the `EffectCall`. For a
            stream, a list of its pieces.
        default: What other kinds give; for a stream, nothing at all.
    """

    def __init__(self, answers: Mapping[str, object] | None = None, default: object = None) -> None:
        self._answers = dict(answers or {})
        self._default = default
        self.skipped: list[EffectCall] = []

    # Any: whatever the answer is
    def _answer(self, call: EffectCall, default: object) -> Any:
        self.skipped.append(call)
        call.note("dry_run", "not performed")
        answer = self._answers.get(call.kind, default)
        return answer(call) if callable(answer) else answer

    async def call(self, call: EffectCall, proceed: Proceed) -> Any:
        """Give the answer, unless the effect is pure."""
        if call.declared == "pure":
            return await proceed()
        return self._answer(call, self._default)

    async def stream(self, call: EffectCall, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Give the pieces of the answer, unless the effect is pure."""
        if call.declared == "pure":
            async for piece in super().stream(call, proceed):
                yield piece
            return
        for piece in self._answer(call, ()):
            yield piece

    def read(self, call: EffectCall, proceed: Callable[[], Any]) -> Any:
        """Give the answer, unless the function is pure."""
        return proceed() if call.declared == "pure" else self._answer(call, self._default)
