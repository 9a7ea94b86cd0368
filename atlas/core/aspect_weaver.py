"""AspectWeaver: put advice around functions from outside, and take it off again without a trace.

For what concerns many functions and belongs into none of them: timing, tracing, limits, faults in a
test. A woven function keeps its kind (a coroutine function stays one, an async generator still takes
``asend``, ``athrow`` and ``aclose``), its name, its documentation and its signature. Undoing a weave
restores the very object that was there, whatever order weaves are undone in.

What a program always does belongs into its code or into a middleware of the bus, not here.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import threading
import types
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

from atlas.errors import ConfigurationError, nearest_name

__all__ = ["Around", "AspectWeaver", "Call", "Weave"]


class Call(NamedTuple):
    """One call of a woven function, as advice sees it.

    Attributes:
        name: What is called: ``"Class.method"``, or the qualified name of a function.
        args: The positional arguments; the first is the instance or the class for a method that was
            woven on its class.
        kwargs: The keyword arguments.
        notes: Empty at the start of each call, for advice to remember something until its end.
    """

    name: str
    args: tuple[Any, ...]  # Any: of whatever function is woven; so below
    kwargs: Mapping[str, Any]
    notes: dict[str, Any]


# Any: advice is written for functions of every signature.
Around: TypeAlias = Callable[[Call, Callable[[Call], Any]], Any]
"""Takes a call and ``proceed``, which goes on with it, or with one that was changed by
``call._replace(args=...)``; returns what the caller gets. Of the same kind as the function."""

Before: TypeAlias = Callable[[Call], Any]
After: TypeAlias = Callable[[Call, Any], Any]
OnError: TypeAlias = Callable[[Call, BaseException], Any]

_Run: TypeAlias = Callable[[Call], Any]


class _Kind(enum.Enum):
    FUNCTION = "a plain function"
    COROUTINE = "a coroutine function"
    GENERATOR = "a generator function"
    ASYNC_GENERATOR = "an async generator function"


@dataclass(frozen=True, slots=True, eq=False)
class _Advice:
    before: Before | None
    after: After | None
    around: Around | None
    on_error: OnError | None
    order: int


_NO_ADVICE = _Advice(None, None, None, None, 0)


class Weave:
    """Advice that was woven; what `AspectWeaver.weave` returns.

    Attributes:
        names: The names of what was woven, sorted.
    """

    def __init__(self, joints: Mapping[str, _Joint], advice: _Advice) -> None:
        self.names: tuple[str, ...] = tuple(sorted(joints))
        self._joints = list(joints.values())
        self._advice = advice

    @property
    def is_active(self) -> bool:
        """Whether the advice is still in place."""
        return bool(self._joints)

    def undo(self) -> None:
        """Take the advice off; calls that have begun end with it. Doing it again does nothing.

        The last weave undone puts the original object back. If something else was put over a woven
        function meanwhile, it is left there, and what is below it has no advice any more.
        """
        with _weaving:
            while self._joints:
                self._joints.pop().remove(self._advice)


class AspectWeaver:
    """Weaves advice into classes, modules and objects, and can undo all it wove.

    Any number of weavers may weave the same function. Weaving and undoing are thread-safe; a call
    keeps the advice it began with.
    """

    def __init__(self) -> None:
        self._weaves: list[Weave] = []

    def weave(
        self,
        target: object,
        pattern: str = "*",
        *,
        before: Before | None = None,
        after: After | None = None,
        around: Around | None = None,
        on_error: OnError | None = None,
        order: int = 0,
    ) -> Weave:
        """Put advice around the functions of ``target`` whose names match.

        The advice runs in the order ``before``, ``around``, and then ``after`` or ``on_error``.
        What advice raises, the caller gets. A generator begins when it is first advanced.

        Args:
            target: A class (its subclasses that do not override a method are woven with it), a
                module, or an object (then it alone).
            pattern: Names, with ``*`` and ``?``. Names with two leading underscores are only matched
                by a pattern that has them too.
            before: Called with the `Call` before it.
            after: Called with the `Call` and its result when it ends normally. A generator that is
                closed early ends normally, with the result None.
            around: Called in the place of the function; see `Around`.
            on_error: Called with the `Call` and whatever it raised, cancellation too; the error
                goes on to the caller.
            order: Of several weaves, the one with the lowest order is outermost; among equals the
                one woven last. ``before``, ``after`` and ``on_error`` may be coroutine functions if
                the function is asynchronous.

        Raises:
            ConfigurationError: Nothing matches, there is no advice, the advice does not suit the
                kind of a function, or an attribute of ``target`` cannot be replaced.
        """
        advice = _Advice(before, after, around, on_error, order)
        if not (before or after or around or on_error):
            raise ConfigurationError(
                "There is no advice to weave. Give before, after, around or on_error."
            )
        if not isinstance(pattern, str):
            raise ConfigurationError(
                f"The pattern is {pattern!r}. Write names as text, with * and ? for the rest."
            )
        for given in (before, after, around, on_error):
            if given is not None and not callable(given):
                raise ConfigurationError(
                    f"The advice {given!r} cannot be called. Give a function of the call."
                )
        with _weaving:
            found = _matching(target, pattern)
            for name in found:
                _check_kinds(advice, name, _kind(_function(_raw(target, name))))
            weave = _woven(target, found, advice)
            self._weaves = [each for each in self._weaves if each.is_active] + [weave]
        return weave

    @contextlib.contextmanager
    def woven(
        self,
        target: object,
        pattern: str = "*",
        *,
        before: Before | None = None,
        after: After | None = None,
        around: Around | None = None,
        on_error: OnError | None = None,
        order: int = 0,
    ) -> Iterator[Weave]:
        """Weave as `weave` does for the length of a ``with`` block, and undo it at its end."""
        weave = self.weave(
            target,
            pattern,
            before=before,
            after=after,
            around=around,
            on_error=on_error,
            order=order,
        )
        try:
            yield weave
        finally:
            weave.undo()

    def close(self) -> None:
        """Undo everything this weaver wove and that is still in place."""
        while self._weaves:
            self._weaves.pop().undo()


# -- where advice is put --------------------------------------------------------------------------

_weaving = threading.RLock()  # weavers share joints, so they share the lock


@dataclass(eq=False, slots=True)
class _Joint:
    """One woven attribute: what it was, and the advice around it now."""

    target: Any  # Any: attributes of anything are set
    name: str
    raw: Any  # the object to put back
    own: bool  # whether the target itself had it, or inherited it
    kind: _Kind
    call_original: _Run
    run: _Run
    wrapper: object = None
    advice: list[_Advice] = field(default_factory=list)

    def add(self, advice: _Advice) -> None:
        self.advice.append(advice)
        self._compose()

    def remove(self, advice: _Advice) -> None:
        self.advice.remove(advice)
        self._compose()
        if not self.advice and _joint_at(self.target, self.name) is self:
            if self.own:
                setattr(self.target, self.name, self.raw)
            else:
                delattr(self.target, self.name)

    def _compose(self) -> None:
        run = self.call_original
        # Innermost first: of equal orders, the one woven first.
        for advice in sorted(self.advice, key=lambda each: -each.order):
            run = _LAYERS[self.kind](advice, run)
        self.run = run


def _woven(target: object, names: list[str], advice: _Advice) -> Weave:
    done: dict[str, _Joint] = {}
    try:
        for name in names:
            joint = _joint_at(target, name) or _joined(target, name)
            joint.add(advice)
            done[name] = joint
    except BaseException:
        Weave(done, advice).undo()
        raise
    return Weave(done, advice)


def _joint_at(target: object, name: str) -> _Joint | None:
    raw = vars(target).get(name) if hasattr(target, "__dict__") else None
    function = _function(raw)
    joint = getattr(function, "_atlas_joint", None)
    # Another wrapper that was put over ours has copied its attributes.
    return joint if isinstance(joint, _Joint) and joint.wrapper is function else None


# Any: attributes are read from and set on anything.
def _joined(target: Any, name: str) -> _Joint:
    """Put a wrapper without advice in the place of an attribute."""
    raw = _raw(target, name)
    function = _function(raw)
    own = name in vars(target) if hasattr(target, "__dict__") else False
    if isinstance(target, type):
        shown = f"{target.__name__}.{name}"
        original = function if own else _inherited(target, name, raw)
    else:
        shown = getattr(function, "__qualname__", name)
        original = function
    joint = _Joint(
        target, name, raw, own, _kind(function), _unpacked(original), _unpacked(original)
    )
    wrapper: Any = _WRAPPERS[joint.kind](joint, shown)
    functools.update_wrapper(wrapper, function)
    wrapper._atlas_joint = joint
    joint.wrapper = wrapper
    rewrap = type(raw) if isinstance(raw, classmethod | staticmethod) else _itself
    try:
        setattr(target, name, rewrap(wrapper))
    except (AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"{shown} cannot be woven, because {target!r} does not let its attributes be set "
            f"({error}). Weave its class, or a subclass."
        ) from error
    return joint


def _itself(function: Any) -> Any:  # Any: whatever is given comes back
    return function


def _unpacked(function: Callable[..., Any]) -> _Run:
    return lambda call: function(*call.args, **call.kwargs)


def _inherited(cls: type, name: str, raw: object) -> Callable[..., Any]:
    """Call what the class inherits at the time of the call: it may be woven itself by then."""

    def call_static(*args: Any, **kwargs: Any) -> Any:  # Any: as the function has it
        return getattr(super(cls, cls), name)(*args, **kwargs)

    def call_bound(this: object, *args: Any, **kwargs: Any) -> Any:  # Any: as above
        return getattr(super(cls, this), name)(*args, **kwargs)

    return call_static if isinstance(raw, staticmethod) else call_bound


# -- finding functions ----------------------------------------------------------------------------


def _matching(target: object, pattern: str) -> list[str]:
    names = [
        name
        for name in dir(target)
        # Statically: looking for functions must not compute the properties of an object.
        if inspect.isroutine(_function(inspect.getattr_static(target, name, None)))
    ]
    if isinstance(target, types.ModuleType):
        # What a module imported from another one is not its own to weave.
        names = [n for n in names if getattr(_raw(target, n), "__module__", "") == target.__name__]
    hidden = pattern.startswith("__")
    found = [n for n in names if fnmatchcase(n, pattern) and (hidden or not n.startswith("__"))]
    if not found:
        raise ConfigurationError(
            f"{target!r} has no function that matches {pattern!r}{nearest_name(pattern, names)}. "
            f"Functions: {', '.join(name for name in names if not name.startswith('__')) or 'none'}."
        )
    return found


def _raw(target: object, name: str) -> object:
    """Return an attribute as it stands in a class, or as an object or module gives it."""
    if isinstance(target, type):
        return next((vars(cls)[name] for cls in target.__mro__ if name in vars(cls)), None)
    return getattr(target, name, None)


# Any: a raw attribute may be anything.
def _function(raw: Any) -> Any:
    return raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw


# Any: as above.
def _kind(function: Any) -> _Kind:
    if inspect.isasyncgenfunction(function):
        return _Kind.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(function):
        return _Kind.COROUTINE
    return _Kind.GENERATOR if inspect.isgeneratorfunction(function) else _Kind.FUNCTION


def _check_kinds(advice: _Advice, name: str, kind: _Kind) -> None:
    if advice.around is not None and _kind(advice.around) is not kind:
        raise ConfigurationError(
            f"{name!r} is {kind.value}, and its around advice {advice.around!r} is "
            f"{_kind(advice.around).value}. Write the advice as {kind.value}."
        )
    for observer in (advice.before, advice.after, advice.on_error):
        allowed = {_Kind.FUNCTION}
        if kind in (_Kind.COROUTINE, _Kind.ASYNC_GENERATOR):
            allowed.add(_Kind.COROUTINE)
        if observer is not None and _kind(observer) not in allowed:
            raise ConfigurationError(
                f"{name!r} is {kind.value}, and its advice {observer!r} is "
                f"{_kind(observer).value}. Write the advice as a plain function."
            )


# -- one layer of advice, for each kind of function -----------------------------------------------


def _function_layer(advice: _Advice, proceed: _Run) -> _Run:
    before, after, around, on_error = advice.before, advice.after, advice.around, advice.on_error

    def run(call: Call) -> Any:  # Any: what the function returns
        if before is not None:
            before(call)
        try:
            result = proceed(call) if around is None else around(call, proceed)
        except BaseException as error:
            if on_error is not None:
                on_error(call, error)
            raise
        if after is not None:
            after(call, result)
        return result

    return run


def _coroutine_layer(advice: _Advice, proceed: _Run) -> _Run:
    around = advice.around

    async def run(call: Call) -> Any:  # Any: what the function returns
        await _tell(advice.before, call)
        try:
            result = await (proceed(call) if around is None else around(call, proceed))
        except BaseException as error:
            await _tell(advice.on_error, call, error)
            raise
        await _tell(advice.after, call, result)
        return result

    return run


def _generator_layer(advice: _Advice, proceed: _Run) -> _Run:
    before, after, around, on_error = advice.before, advice.after, advice.around, advice.on_error

    def run(call: Call) -> Generator[Any, Any, Any]:  # Any: what the function yields and returns
        if before is not None:
            before(call)
        try:
            result = yield from (proceed(call) if around is None else around(call, proceed))
        except GeneratorExit:
            if after is not None:
                after(call, None)
            raise
        except BaseException as error:
            if on_error is not None:
                on_error(call, error)
            raise
        if after is not None:
            after(call, result)
        return result

    return run


def _async_generator_layer(
    advice: _Advice, proceed: _Run, make_call: Callable[..., Call] = _itself
) -> Callable[..., Any]:
    around = advice.around

    # Any: what the function takes and yields.
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call = make_call(*args, **kwargs)
        await _tell(advice.before, call)
        inner = proceed(call) if around is None else around(call, proceed)
        try:
            # There is no `yield from` here: each way into the generator is passed on by hand.
            reply = inner.asend(None)
            while True:
                item = await reply
                try:
                    sent = yield item
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001  it is the inner generator's to handle
                    reply = inner.athrow(error)
                else:
                    reply = inner.asend(sent)
        except StopAsyncIteration:
            pass
        except GeneratorExit:
            await _tell(advice.after, call, None)
            raise
        except BaseException as error:
            await _tell(advice.on_error, call, error)
            raise
        await _tell(advice.after, call, None)

    return run


# Any: advice of every signature.
async def _tell(advice: Callable[..., Any] | None, *args: object) -> None:
    if advice is not None:
        answer = advice(*args)
        if inspect.isawaitable(answer):
            await answer


_LAYERS: dict[_Kind, Callable[[_Advice, _Run], _Run]] = {
    _Kind.FUNCTION: _function_layer,
    _Kind.COROUTINE: _coroutine_layer,
    _Kind.GENERATOR: _generator_layer,
    _Kind.ASYNC_GENERATOR: _async_generator_layer,
}


# -- what stands in the place of a function -------------------------------------------------------
# Any: the wrapper has the signature of whatever it wraps.


def _function_wrapper(joint: _Joint, name: str) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return joint.run(Call(name, args, kwargs, {}))

    return wrapper


def _coroutine_wrapper(joint: _Joint, name: str) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await joint.run(Call(name, args, kwargs, {}))

    return wrapper


def _generator_wrapper(joint: _Joint, name: str) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from joint.run(Call(name, args, kwargs, {})))

    return wrapper


def _async_generator_wrapper(joint: _Joint, name: str) -> Callable[..., Any]:
    def proceed(call: Call) -> Any:
        return joint.run(call)  # looked up at each call: weaving changes it

    return _async_generator_layer(
        _NO_ADVICE, proceed, lambda *args, **kwargs: Call(name, args, kwargs, {})
    )


_WRAPPERS: dict[_Kind, Callable[[_Joint, str], Callable[..., Any]]] = {
    _Kind.FUNCTION: _function_wrapper,
    _Kind.COROUTINE: _coroutine_wrapper,
    _Kind.GENERATOR: _generator_wrapper,
    _Kind.ASYNC_GENERATOR: _async_generator_wrapper,
}
