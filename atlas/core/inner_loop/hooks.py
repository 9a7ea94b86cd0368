"""The methods of an event loop that are wrapped while runs are open on it.

Of that one loop object only; when the last run on it has ended, it is as it was.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from atlas.core.alarms import clock_of
from atlas.core.inner_loop.place import HERE

if TYPE_CHECKING:
    from atlas.core.inner_loop.loop import InnerLoop

__all__ = ["Hooks"]

_here = HERE.get


class Hooks:
    """The loop's own methods, and the wrapped ones put in their place while runs are open.

    Attributes:
        loop: The loop.
    """

    _all: dict[AbstractEventLoop, Hooks] = {}  # noqa: RUF012  shared on purpose
    _lock = threading.Lock()

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.users: int = 0
        self.call_soon = loop.call_soon
        self.call_soon_threadsafe = loop.call_soon_threadsafe
        self.call_at = loop.call_at
        self.call_later = loop.call_later
        self.create_task = loop.create_task
        self.run_in_executor = loop.run_in_executor
        self.time = clock_of(loop)
        self._first_steps: deque[asyncio.Handle] | None = None

    # Any: the arguments are those of the loop's own methods
    def set_timer(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None
    ) -> asyncio.TimerHandle:
        """Set a timer of the loop, by that of its two methods which does not call the other."""
        if isinstance(self.loop, asyncio.BaseEventLoop):
            return self.call_at(self.time() + delay, callback, *args, context=context)
        return self.call_later(delay, callback, *args, context=context)

    def task_outside(
        self, work: Coroutine[Any, Any, None], context: Context, steps: deque[asyncio.Handle]
    ) -> asyncio.Task[None]:
        """Make a task of the loop whose first step is the caller's to run, soon: it is in ``steps``."""
        if self.loop.get_task_factory() is not None:  # it may run the first step itself
            return self.create_task(work, context=context)
        self._first_steps = steps
        try:
            return asyncio.Task(work, loop=self.loop, context=context)
        finally:
            self._first_steps = None

    @classmethod
    def on(cls, loop: AbstractEventLoop) -> Hooks:
        """Return the hooks of a loop, put in if there were none; each caller calls `release` once."""
        with cls._lock:
            hooks = cls._all.get(loop)
            if hooks is None:
                hooks = cls._all[loop] = cls(loop)
                hooks._put_in()
            hooks.users += 1
            return hooks

    def release(self) -> None:
        """Take the hooks out when nobody uses them any more."""
        with self._lock:
            self.users -= 1
            if self.users:
                return
            del self._all[self.loop]
        for name, before in self._before.items():
            if before is None:
                delattr(self.loop, name)
            else:
                setattr(self.loop, name, before)

    def _put_in(self) -> None:
        wrapped = _wrapped(self)
        self._before = {name: vars(self.loop).get(name) for name in wrapped}
        for name, method in wrapped.items():
            setattr(self.loop, name, method)


# Any: the arguments are those of the loop's own methods
def _wrapped(hooks: Hooks) -> dict[str, Callable[..., Any]]:
    loop = hooks.loop
    own_call_soon = hooks.call_soon
    own_create_task = hooks.create_task
    own_time = hooks.time

    def inner_of(context: Context | None) -> InnerLoop | None:
        place = _here() if context is None else context.get(HERE)
        if place is None or place.inner.loop is not loop or place.inner.closed:
            return None
        return place.inner

    def call_soon(callback: Any, *args: Any, context: Context | None = None) -> Any:
        place = _here() if context is None else context.get(HERE)
        if place is not None:
            inner = place.inner
            if inner.inside and inner.loop is loop:  # as nearly always: then with no further call
                handle = asyncio.Handle(callback, args, loop, context)
                inner.ready.append(handle)
                return handle
            if inner.loop is loop and not inner.closed:
                return inner.call_soon_foreign(callback, args, context)
        if hooks._first_steps is not None:
            hooks._first_steps.append(asyncio.Handle(callback, args, loop, context))
            return None
        return own_call_soon(callback, *args, context=context)

    def call_soon_threadsafe(callback: Any, *args: Any, context: Context | None = None) -> Any:
        inner = inner_of(context)
        if inner is None:
            return hooks.call_soon_threadsafe(callback, *args, context=context)
        if threading.get_ident() != inner.thread:
            # In the loop's thread it is then seen to be foreign.
            again = functools.partial(call_soon, callback, *args, context=context or copy_context())
            return hooks.call_soon_threadsafe(again, context=Context())
        if callback is create_task:
            inner.close_generator(*args)
            return None
        return call_soon(callback, *args, context=context)

    def call_later(
        delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        inner = inner_of(context)
        if inner is None:
            return hooks.set_timer(delay, callback, *args, context=context)
        return inner.call_later(delay, callback, args, context)

    def call_at(
        when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        inner = inner_of(context)
        if inner is None:
            return hooks.set_timer(when - own_time(), callback, *args, context=context)
        return inner.call_later(when - inner.moment, callback, args, context)

    def create_task(coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        context = options.get("context")
        place = _here() if context is None else context.get(HERE)
        if place is None or place.inner.loop is not loop or place.inner.closed:
            return own_create_task(coroutine, **options)
        return place.inner.create_task(place, coroutine, options)

    def run_in_executor(executor: Any, function: Any, *args: Any) -> Any:
        inner = inner_of(None)
        if inner is not None:
            frame = sys._getframe(1)
            while "asyncio" in frame.f_code.co_filename.split("/")[-2:-1] and frame.f_back:
                frame = frame.f_back
            inner.supervisor.undeclared(
                f"{_named(function)} was given to a thread",
                f"{frame.f_code.co_filename}:{frame.f_lineno}",
                "Make the call in an `async` function with @effect",
            )
        return hooks.run_in_executor(executor, function, *args)

    def time() -> float:
        # not by `inner_of`: a loop asks for the time in each of its rounds
        place = _here()
        if place is None or place.inner.loop is not loop or place.inner.closed:
            return own_time()
        return place.inner.moment

    return {
        "call_soon": call_soon,
        "call_soon_threadsafe": call_soon_threadsafe,
        "call_later": call_later,
        "call_at": call_at,
        "create_task": create_task,
        "run_in_executor": run_in_executor,
        "time": time,
    }


# Any: a function of any signature
def _named(function: Any) -> str:
    """Return what people call a function that `asyncio.to_thread`, or `partial`, has wrapped."""
    while isinstance(function, functools.partial):
        is_context = isinstance(getattr(function.func, "__self__", None), Context)
        function = function.args[0] if is_context else function.func
    return str(getattr(function, "__qualname__", repr(function)))
