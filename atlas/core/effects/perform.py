"""`perform` and `@effect`: how code says that something is a side effect, and the clock and chance.

Inside a run an effect is recorded, or answered from the recording. Outside of runs it is simply performed.
"""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import random as python_random
import time
import uuid as python_uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar, cast, get_args, overload

from atlas.core import effect_layers
from atlas.core.effect_layers import (
    EffectCall,
    Layer,
    Retry,
    Timeout,
    checked_layers,
    checked_names,
)
from atlas.core.effects.codec import Redactor
from atlas.core.effects.comparing import Alike
from atlas.core.effects.entries import Declared
from atlas.core.effects.pending import Pending, PendingStream
from atlas.core.effects.run import RunContext
from atlas.core.inner_loop import here, outside_context
from atlas.errors import EffectError

__all__ = [
    "Effect",
    "EffectStream",
    "current_effect",
    "current_run",
    "effect",
    "hide",
    "monotonic",
    "now",
    "now_ns",
    "perform",
    "random",
    "stream",
    "uuid",
]

P = ParamSpec("P")
T = TypeVar("T")

_DECLARED: Final[tuple[str, ...]] = get_args(Declared)
_CURRENT: ContextVar[EffectCall | None] = ContextVar("atlas_effect", default=None)


@dataclass(frozen=True, slots=True)
class Effect:
    """A side effect, as a value: what it is and what is asked.

    Attributes:
        kind: What it is, in a word: ``"weather"``.
        request: What is asked: anything with a JSON form. In a replay it has to be the same.
        declared: What performing it twice would do: nothing (``"pure"``), nothing more
            (``"idempotent"``), or something (``"external"``).
        redact: Names of fields, at any depth of the request or of what it gives, that are not
            written down. In what it gives, the run too finds `REDACTED` in their place.
        layers: Around it, the outermost first.
        alike: Whether a fork may repeat what came of another request instead, up to where it goes on
            live: a function of the recorded request and this one, as JSON values. None: it may not.

    Raises:
        EffectError: The kind is no text, or it is declared to be something else.
        ConfigurationError: The names or the layers are none.
    """

    kind: str
    request: object = None
    declared: Declared = "external"
    redact: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    alike: Alike | None = None

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        if self.declared not in _DECLARED:
            known = ", ".join(map(repr, _DECLARED))
            raise EffectError(
                f"Effect {self.kind!r} is declared to be {self.declared!r}. Declare one of {known}."
            )
        # one is made for every tool call, with nothing to check in it
        if self.redact != ():
            checked_names(self.redact, "redact")
        if self.layers != ():
            checked_layers(self.layers)


def _check_kind(kind: object) -> None:
    if not (isinstance(kind, str) and kind):
        raise EffectError(f"The kind of an effect is {kind!r}. Say what it is, in a word.")


def _check_effect(effect: object) -> None:
    if not isinstance(effect, Effect):
        raise EffectError(
            f"{effect!r} is no effect. Give an Effect('weather', request), and then the function that "
            f"performs it; or put @effect above the function."
        )


def current_effect() -> EffectCall | None:
    """Return the effect that is being performed by the caller, or None."""
    return _CURRENT.get()


def hide(*secrets: object) -> None:
    """Keep secrets that the current effect has looked up out of what is recorded of it.

    Called by the code that performs an effect, for a key it will send, before it does. If what the
    effect gives, raises or notes repeats one, `REDACTED` stands there, for the run too. What is
    shorter than four characters is not looked for. Outside of a run it does nothing.

    Args:
        secrets: Texts, bytes, numbers; or containers of these, of which each is hidden.
    """
    call = _CURRENT.get()
    if call is not None:
        for secret in secrets:
            call.hide(secret)


def current_run() -> RunContext | None:
    """Return the run that the caller is in, or None."""
    place = here()
    return None if place is None else cast("RunContext", place.inner.supervisor)


# -- performing -----------------------------------------------------------------------------------


async def perform(effect: Effect, function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Perform an effect and return its result.

    Inside a run, what is returned was recorded: it is a copy, made from its JSON form. In a replay
    ``function`` is not called.

    Args:
        effect: What it is.
        function: Does it, outside of the run; gets ``args``.
        args: For the function.

    Raises:
        ReplayDiverged: In a replay: this is not what was recorded.
        EffectError: The request or the result has no JSON form.
        Exception: What the function raised, or the layers.
    """
    _check_effect(effect)
    return await perform_as(effect, effect.request, function, args)


async def perform_as(
    effect: Effect,
    asked: object,
    function: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],  # Any: whatever the function takes
) -> T:
    """Perform an effect with another request: for who performs one of a kind again and again.

    So the effect itself, and all that is checked of it, is made once. See `perform` for the rest.
    """
    place = here()
    if place is None:
        call = EffectCall(effect.kind, effect.declared, "")
        return cast("T", await _call(effect.layers, call, function, args))
    run = cast("RunContext", place.inner.supervisor)
    run.check()
    redactor = Redactor(effect.redact, run.secrets)
    request = _request_text(effect.kind, asked, redactor)
    call = run.call(place, effect.kind, effect.declared, request, redactor)
    layers = run.layers + effect.layers

    async def work(pending: Pending) -> None:
        _CURRENT.set(call)  # in the context of the task that performs it
        if layers:
            result = await effect_layers.called(layers, call, lambda: function(*args))
        else:
            result = await function(*args)
        pending.give_result(result)

    pending = Pending(run, call, redactor, work)
    run.start(pending, effect.alike)
    result: T = await pending.result()
    return result


async def _call(
    layers: Sequence[Layer], call: EffectCall, function: Callable[..., Awaitable[Any]], args: Any
) -> Any:
    token = _CURRENT.set(call)
    try:
        if not layers:
            return await function(*args)
        return await effect_layers.called(layers, call, lambda: function(*args))
    finally:
        _CURRENT.reset(token)


class EffectStream(AsyncGenerator[T, None]):
    """The pieces of an effect: an async generator. The effect begins with the first piece asked for."""

    def __init__(
        self,
        effect: Effect,
        asked: object,
        function: Callable[..., AsyncIterator[T]],
        args: tuple[Any, ...],  # Any: whatever the function takes
    ) -> None:
        self._effect = effect
        self._asked = asked
        self._function = function
        self._args = args
        self._pending: PendingStream | None = None
        self._pieces: AsyncIterator[T] | None = None
        self._closed = False

    def __aiter__(self) -> EffectStream[T]:
        return self

    async def __anext__(self) -> T:
        if self._closed:
            raise StopAsyncIteration
        if self._pending is None and self._pieces is None:
            self._begin()
        try:
            if self._pending is not None:
                piece: T = await self._pending.next()
                return piece
            assert self._pieces is not None
            return await anext(self._pieces)
        except BaseException:
            self._closed = True
            raise

    def _begin(self) -> None:
        place = here()
        effect = self._effect
        if place is None:
            call = EffectCall(effect.kind, effect.declared, "")
            self._pieces = _pieces(effect.layers, call, self._function, self._args)
            return
        run = cast("RunContext", place.inner.supervisor)
        run.check()
        redactor = Redactor(effect.redact, run.secrets)
        request = _request_text(effect.kind, self._asked, redactor)
        call = run.call(place, effect.kind, effect.declared, request, redactor)
        layers = run.layers + effect.layers
        # not this object, which may be left and forgotten
        function, args = self._function, self._args

        async def work(pending: PendingStream) -> None:
            _CURRENT.set(call)  # in the context of the task that performs it
            if layers:
                pieces = effect_layers.streamed(layers, call, lambda: function(*args))
            else:
                pieces = function(*args)
            await pending.pump(pieces)

        pending = PendingStream(run, call, redactor, work)
        run.start(pending, effect.alike)
        self._pending = pending

    # Any: the protocol of generators; nothing can be sent into an effect
    async def asend(self, value: Any) -> T:
        """Return the next piece; nothing can be sent in."""
        if value is not None:
            raise TypeError("Nothing can be sent into an effect; iterate over it.")
        return await anext(self)

    async def athrow(self, *exception: Any) -> T:
        """Close the stream and raise the error here; nothing can be thrown into an effect."""
        await self.aclose()
        error = exception[0] if len(exception) == 1 else exception[1] or exception[0]()
        raise error

    async def aclose(self) -> None:
        """Stop: the effect is cancelled if it has not ended."""
        self._closed = True
        if self._pending is not None:
            self._pending.cancel()
        elif self._pieces is not None and hasattr(self._pieces, "aclose"):
            await self._pieces.aclose()

    def __del__(self) -> None:
        # Nobody reads it any more. When that happens is up to the garbage collector, so nothing of
        # it may show in the run; the function is stopped, and that noted.
        if self._pending is not None:
            self._pending.leave()


async def _pieces(
    layers: Sequence[Layer],
    call: EffectCall,
    function: Callable[..., AsyncIterator[T]],
    args: tuple[Any, ...],
) -> AsyncIterator[T]:
    _CURRENT.set(call)  # in the context of the task that performs it
    pieces = effect_layers.streamed(layers, call, lambda: function(*args))
    try:
        async for piece in pieces:
            yield piece
    finally:
        if hasattr(pieces, "aclose"):
            await pieces.aclose()


def stream(
    effect: Effect, function: Callable[..., AsyncIterator[T]], *args: Any
) -> EffectStream[T]:
    """Return the pieces of an effect that gives many; see `perform`.

    Each piece is recorded as it comes. Close it (``aclose``, ``aclosing``) if you leave it early.
    """
    _check_effect(effect)
    return stream_as(effect, effect.request, function, *args)


def stream_as(
    effect: Effect, asked: object, function: Callable[..., AsyncIterator[T]], *args: Any
) -> EffectStream[T]:
    """Return the pieces of an effect with another request; see `perform_as` and `stream`."""
    return EffectStream(effect, asked, function, args)


def _request_text(kind: str, asked: object, redactor: Redactor) -> str:
    try:
        return redactor.request(asked)
    except (TypeError, ValueError, RecursionError) as error:
        raise EffectError(
            f"Effect {kind!r} cannot be recorded: in its request {error}. Pass JSON values, "
            f"messages, frozen dataclasses, bytes, dates or the like, or name what is not part of the "
            f"request in `ignore`."
        ) from error


# -- the decorator --------------------------------------------------------------------------------


@overload
def effect(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def effect(
    kind: str | None = None,
    /,
    *,
    external: bool = False,
    idempotent: bool = False,
    pure: bool = False,
    redact: Collection[str] = (),
    ignore: Collection[str] = (),
    retry: Retry | int | None = None,
    timeout: float | None = None,
    layers: Sequence[Layer] = (),
    alike: Alike | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
# Any: either the function or its kind; the overloads above tell callers which
def effect(
    kind: Any = None,
    /,
    *,
    external: bool = False,
    idempotent: bool = False,
    pure: bool = False,
    redact: Collection[str] = (),
    ignore: Collection[str] = (),
    retry: Retry | int | None = None,
    timeout: float | None = None,
    layers: Sequence[Layer] = (),
    alike: Alike | None = None,
) -> Any:
    """Make a function an effect: in a run, each call is recorded, or answered from the recording.

    The request is the arguments by name, without ``self``. An ``async`` function is performed outside
    of the run; of an async generator function every piece is recorded; a plain function is called
    where it stands and blocks the loop as it always did.

    Args:
        kind: What it is; without it, the function's name.
        external: Performing it twice does something twice: never done without asking, see
            `RunContext`. This is how ``async`` functions are taken if nothing is said.
        idempotent: Performing it twice does nothing more, given
            ``current_effect().idempotency_key``. This is how plain functions are taken.
        pure: Performing it changes nothing.
        redact: Names of arguments, or of fields at any depth in them or in results, that are not
            written down. In results, the run too finds `REDACTED` in their place. Fields marked
            `SECRET` are never written down: in a request they need no naming, a result that has
            one is refused unless it is named here.
        ignore: Names of arguments that are no part of the request.
        retry: Attempts in all, or the layer itself.
        timeout: Seconds; for a generator, for each piece.
        layers: Around it, the outermost first; ``timeout`` and ``retry`` are inside of these.
        alike: Whether a fork may repeat what came of another request instead; see `Effect`.

    Raises:
        EffectError: Two of the declarations at once, or one that a plain function cannot keep.
        ConfigurationError: Names, layers or numbers make no sense.
    """
    if callable(kind):
        return effect()(kind)
    if kind is not None:
        _check_kind(kind)
    said = [name for name, yes in _said(external, idempotent, pure) if yes]
    if len(said) > 1:
        raise EffectError(f"An effect is one of {' and '.join(said)}, not both.")
    around = [*checked_layers(layers)]
    hidden, left_out = checked_names(redact, "redact"), checked_names(ignore, "ignore")
    if timeout is not None:
        around.append(Timeout(timeout))
    if retry is not None:
        around.append(retry if isinstance(retry, Retry) else Retry(retry))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        is_plain = not (
            inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        )
        if is_plain and (external or timeout is not None or retry is not None):
            raise EffectError(
                f"{function.__qualname__} is a plain function, which cannot wait until its start is "
                f"safely recorded, be timed out or retried. Make it `async` to declare it external."
            )
        declared = cast("Declared", said[0] if said else "idempotent" if is_plain else "external")
        request_of = _Request(function, left_out)
        name = kind or function.__name__
        template = Effect(name, None, declared, tuple(sorted(hidden)), tuple(around), alike)
        if inspect.isasyncgenfunction(function):
            return _stream_effect(function, template, request_of)
        return (_plain_effect if is_plain else _async_effect)(function, template, request_of)

    return decorate


def _said(external: bool, idempotent: bool, pure: bool) -> tuple[tuple[str, bool], ...]:
    return (("external", external), ("idempotent", idempotent), ("pure", pure))


class _Request:
    """Turns the arguments of a call into a request: names and values."""

    def __init__(self, function: Callable[..., Any], ignore: frozenset[str]) -> None:
        parameters = inspect.signature(function).parameters
        kinds = inspect.Parameter
        self._names = [
            name
            for name, one in parameters.items()
            if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ]
        self._many = len(self._names) + sum(
            one.kind is kinds.KEYWORD_ONLY for one in parameters.values()
        )
        self._ignore = ignore | (
            {self._names[0]} if self._names[:1] in (["self"], ["cls"]) else set()
        )
        self._defaults = {
            name: one.default
            for name, one in parameters.items()
            if one.default is not kinds.empty and name not in self._ignore
        }

    def __call__(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        request = dict(zip(self._names, args, strict=False))
        if options or len(args) < self._many:
            request = {**self._defaults, **request, **options}
        if len(args) > len(self._names):
            request["*"] = args[len(self._names) :]
        for name in self._ignore:
            request.pop(name, None)
        return request


def _async_effect(
    function: Callable[..., Any], template: Effect, request_of: _Request
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def perform_it(*args: Any, **options: Any) -> Any:
        if here() is None and not template.layers:
            return await function(*args, **options)
        asked = request_of(args, options)
        if options:
            return await perform_as(template, asked, functools.partial(function, **options), args)
        return await perform_as(template, asked, function, args)

    return perform_it


def _stream_effect(
    function: Callable[..., Any], template: Effect, request_of: _Request
) -> Callable[..., Any]:
    @functools.wraps(function)
    def begin_it(*args: Any, **options: Any) -> Any:
        asked = request_of(args, options)
        return stream_as(template, asked, functools.partial(function, *args, **options))

    return begin_it


def _plain_effect(
    function: Callable[..., Any], template: Effect, request_of: _Request
) -> Callable[..., Any]:
    @functools.wraps(function)
    def do_it(*args: Any, **options: Any) -> Any:
        place = here()
        if place is None:
            return function(*args, **options)
        run = cast("RunContext", place.inner.supervisor)
        redactor = Redactor(template.redact, run.secrets)
        request = _request_text(template.kind, request_of(args, options), redactor)
        layers = (*run.layers, *template.layers)

        def produce(call: EffectCall) -> Any:
            # what it calls is part of it, and no effect of the run again
            return outside_context().run(produce_here, call)

        def produce_here(call: EffectCall) -> Any:
            _CURRENT.set(call)
            return effect_layers.read(layers, call, lambda: function(*args, **options))

        return run.read(
            place,
            template.kind,
            produce,
            declared=template.declared,
            request=request,
            redactor=redactor,
            alike=template.alike,
        )

    return do_it


# -- clock and chance -------------------------------------------------------------------------


# Any: the value that was read
def _read(kind: str, produce: Callable[[], Any]) -> Any:
    place = here()
    if place is None:
        return produce()
    run = cast("RunContext", place.inner.supervisor)
    return run.read(place, kind, lambda _call: produce())


def now_ns() -> int:
    """Return the time, in ns since 1970 (UTC). In a run it is recorded, in a replay repeated."""
    return cast("int", _read("now", time.time_ns))


def now() -> dt.datetime:
    """Return the time, in UTC, to the microsecond. In a run it is recorded, in a replay repeated."""
    return _EPOCH + dt.timedelta(microseconds=now_ns() // 1000)


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def monotonic() -> float:
    """Return seconds from an arbitrary start. In a run it is recorded, in a replay repeated."""
    return cast("float", _read("monotonic", time.monotonic))


def random() -> python_random.Random:
    """Return a source of random numbers; in a run it follows from the run's seed."""
    run = _run_of_this_thread()
    return _RANDOM if run is None else run.random


_RANDOM = python_random.Random()


def uuid() -> python_uuid.UUID:
    """Return a random UUID (version 4); in a run it follows from the run's seed."""
    run = _run_of_this_thread()
    return python_uuid.uuid4() if run is None else run.uuid()


def _run_of_this_thread() -> RunContext | None:
    run = current_run()
    if run is not None:
        run.check()
    return run
