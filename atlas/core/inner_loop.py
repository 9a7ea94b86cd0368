"""The inner loop: part of an event loop's work, cut off from the rest and run in an exact order.

The code of a run is ordinary asyncio code in ordinary tasks of the user's own loop. While at least
one run is open on a loop, the loop's scheduling methods are wrapped (on that one object). What is
scheduled in the context of a run goes into the run's own queue, and this module empties that queue
first in, first out, until nothing is left: then the run is *quiet*. What else the loop has to do can
neither get in between nor change the order.

The world outside enters by *deliveries* only, one at a time, each when the run is quiet. Who admits
them, and writes down which came when, is the run's `Supervisor`; see `atlas.core.effects`. Timers
set inside are such deliveries too, and the loop's clock, read inside, stands at the moment of the
last one. So what a run does follows from its code and its deliveries alone.

Something else that wakes a run up (a future that a host's task resolves, a socket, a thread) is
*foreign*: it works, but nothing could repeat it, and the supervisor is told.

Guarantees: a run's callbacks run in the order in which they were scheduled; a delivery is handed in
only when none is left; tasks of a run have the same paths ("0", "0.0", "0.1", "0.1.0", children
counted as they are made) in every execution that gets the same deliveries, and hash alike, so that
sets of tasks iterate alike. Not covered: sets of other objects hashed by address or of strings,
threads, signals, cyclic garbage collection that ends generators.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import threading
import types
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, Token, copy_context
from typing import Any, Protocol

from atlas.errors import EffectError

__all__ = [
    "HERE",
    "Delivery",
    "InnerLoop",
    "Place",
    "Supervisor",
    "here",
    "outside_context",
    "turn_over",
]

_logger = logging.getLogger("asyncio")  # slow callbacks are told where asyncio tells them
_running_loop = asyncio._get_running_loop


class Place:
    """Where in a run code runs: its task's path, and what that task has counted so far.

    Attributes:
        inner: The run's loop.
        path: The task's path, such as ``"0.1"``.
        effects: How many effects it has begun.
        children: How many tasks it has made.
    """

    __slots__ = ("children", "effects", "inner", "path")

    def __init__(self, inner: InnerLoop, path: str) -> None:
        self.inner = inner
        self.path = path
        self.effects = 0
        self.children = 0

    def next_effect(self) -> str:
        """Return the id of the effect that begins now: the path and a number, ``"0.1:0"``."""
        number = self.effects
        self.effects = number + 1
        return f"{self.path}:{number}"

    def child(self) -> Place:
        """Return the place of a task made here now."""
        number = self.children
        self.children = number + 1
        return Place(self.inner, f"{self.path}.{number}")


HERE: ContextVar[Place | None] = ContextVar("atlas_run", default=None)
"""Where in a run the current code runs; None outside of every run."""

_here = HERE.get


def here() -> Place | None:
    """Return where in a run the caller is, or None if it is in none, or the run is over."""
    place = _here()
    return None if place is None or place.inner.closed else place


def outside_context() -> Context:
    """Return a copy of the current context that is in no run."""
    context = copy_context()
    if _here() is not None:
        context.run(HERE.set, None)
    return context


class Delivery:
    """Something that comes into a run from outside. Subclasses say what happens then.

    Attributes:
        effect: Whose it is: the id of an effect, or the path of a task.
        what: ``"value"``, ``"error"``, ``"chunk"``, ``"end"``, ``"timer"`` or ``"cancel"``.
        value: Its JSON text; "" for none.
        durable: Whether what is written of it must be safe before it is handed in.
    """

    __slots__ = ("durable", "effect", "value", "what")

    def __init__(self, effect: str, what: str, value: str = "", *, durable: bool = False) -> None:
        self.effect = effect
        self.what = what
        self.value = value
        self.durable = durable

    @property
    def is_stale(self) -> bool:
        """Whether nobody waits for it any more."""
        return False

    def hand_in(self) -> None:
        """Let the run have it. Called when the run is quiet; what it schedules runs next."""


class Supervisor(Protocol):
    """Who decides what a run gets to see, and when. All of it in the loop's thread."""

    @property
    def is_live(self) -> bool:
        """Whether the world outside is real; else everything comes from a recording."""
        ...

    def admit(self, delivery: Delivery) -> Awaitable[object] | None:
        """Write down that a delivery is handed in next; what is returned is awaited before."""
        ...

    def dropped(self, delivery: Delivery) -> None:
        """Note that an admitted delivery was wanted no more when its turn came."""
        ...

    def undeclared(self, what: str, place: str, mend: str) -> None:
        """Take note that something got in (or out) that is no delivery. ``place`` is for people."""
        ...

    def interrupted(self, inner: InnerLoop) -> None:
        """Take note that the run's main task was cancelled from outside; what it does comes next."""
        ...

    def failed(self, error: Exception) -> None:
        """Take note that a delivery could not be made safe, and is not handed in."""
        ...

    def quiet(self) -> None:
        """Take note that nothing is left to run, and nothing to hand in."""
        ...

    # Any: whatever comes of it, as it is or as it was recorded
    def wait_outside(
        self,
        place: Place,
        kind: str,
        work: Callable[[], Awaitable[Any]],
        *,
        nothing: object = None,
        is_over: bool = False,
    ) -> Awaitable[Any]:
        """Have something awaited outside of the run, as an effect of it.

        ``nothing`` is what comes of it if that was known at once (``is_over``) and is nothing
        special; then it is not written down.
        """
        ...

    # Any: the value that was read
    def read(self, place: Place, kind: str, produce: Callable[[Any], Any]) -> Any:
        """Look at something outside of the run at once, as an effect of it."""
        ...


class _Fired(Delivery):
    """A timer of the run has gone off."""

    __slots__ = ("timer",)

    def __init__(self, timer: InnerTimer) -> None:
        super().__init__(timer.effect, "timer", repr(timer.delay))
        self.timer = timer

    @property
    def is_stale(self) -> bool:
        return self.timer.cancelled() or self.timer.fired

    def hand_in(self) -> None:
        self.timer.fire()


class _Cancelled(Delivery):
    """A task of the run was cancelled by somebody outside."""

    __slots__ = ("cancel", "task")

    def __init__(self, path: str, task: asyncio.Task[Any], cancel: Callable[[], object]) -> None:
        super().__init__(path, "cancel")
        self.task = task
        self.cancel = cancel

    @property
    def is_stale(self) -> bool:
        return self.task.done()

    def hand_in(self) -> None:
        self.cancel()


# Any, here and below: whatever the coroutine returns
class InnerTask(asyncio.Task[Any]):
    """A task of a run. Cancelled from outside the run, it is when the run is quiet.

    Its hash is its number in the run: sets of tasks, which asyncio's own `wait`, `as_completed` and
    `TaskGroup` iterate over, are then in the same order in every process.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], place: Place, **options: Any) -> None:
        inner = place.inner
        self._place = place
        self._number = inner.count_task()
        super().__init__(coroutine, loop=inner.loop, **options)

    __eq__ = object.__eq__

    def __hash__(self) -> int:
        return self._number

    def cancel(self, msg: object = None) -> bool:
        """Cancel the task; see `asyncio.Task.cancel`."""
        inner = self._place.inner
        if inner.inside or inner.closed:
            return super().cancel(msg)
        if self.done():
            return False
        inner.deliver(_Cancelled(self._place.path, self, functools.partial(super().cancel, msg)))
        return True


class InnerTimer(asyncio.TimerHandle):
    """A callback of a run that is due at some time. The real timer is outside.

    Attributes:
        effect: The id under which its going off is written down.
        delay: Seconds from the moment of the run in which it was set.
    """

    __slots__ = ("_inner", "_real", "delay", "effect", "fired")

    def __init__(
        self,
        inner: InnerLoop,
        place: Place,
        delay: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None,
    ) -> None:
        super().__init__(inner.now() + delay, callback, args, inner.loop, context)
        self._inner = inner
        self._real: asyncio.TimerHandle | None = None
        self.effect = place.next_effect()
        self.delay = delay
        self.fired = False

    def arm(self) -> None:
        """Set the real timer."""
        inner = self._inner
        delay = max(0.0, self.when() - inner.now())
        self._real = inner.hooks.set_timer(delay, inner.deliver, _Fired(self), context=Context())

    def fire(self) -> None:
        """Schedule the callback, as the loop would."""
        self._disarm()
        self.fired = True
        self._inner.ready.append(self)

    def cancel(self) -> None:
        """Never call the callback."""
        if not self.cancelled():
            self._disarm()
            # not TimerHandle's own, which would tell the loop about a timer it does not have
            asyncio.Handle.cancel(self)

    def _disarm(self) -> None:
        self._inner.timers.pop(self.effect, None)
        if self._real is not None:
            self._real.cancel()
            self._real = None


@types.coroutine
def turn_over() -> Generator[None, None, None]:
    """Let the loop turn once."""
    yield


class InnerLoop:
    """The inner loop of one run: its queue, its timers, its tasks, what waits to be handed in.

    `enter` makes the calling task the run's main task, "0"; `leave` ends that. Everything is done in
    the loop's own thread, except `deliver_from_any_thread`.

    Attributes:
        loop: The event loop it is on.
        name: The run's name, for people.
        ready: Callbacks that are to run, in order.
        inside: Whether the code that runs now belongs to the run.
        closed: Whether the run is over.
        timers: What is set and has not gone off, by effect id.
    """

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self.supervisor = supervisor
        self.name = name
        self.loop: AbstractEventLoop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.ready: deque[asyncio.Handle] = deque()
        self.inside = False
        self.closed = False
        self.timers: dict[str, InnerTimer] = {}
        self.tasks: dict[asyncio.Task[Any], Place] = {}
        self._foreign: list[asyncio.Handle] = []
        self._deliveries: deque[Delivery] = deque()
        self._outside: set[asyncio.Task[Any]] = set()
        self._tasks_made = 0
        self._draining = False
        self._entered = False
        self._due = False
        self._waiting: Delivery | None = None
        self._safe: Delivery | None = None
        self._cancellings = 0
        self._moment = 0.0
        self._shift = 0.0
        self._finalizers = Place(self, "0.closing")
        self._context = Context()

    # -- entering and leaving ---------------------------------------------------------------------

    async def enter(self) -> None:
        """Make the calling task the main task of the run.

        Raises:
            EffectError: It belongs to a run already, or runs in a context that is not its own (as the
                handlers of a bus do), so that a run could not follow it.
        """
        outer = here()
        if outer is not None:
            raise EffectError(
                f"Run {self.name!r} was opened inside run {outer.inner.name!r}. A run cannot hold "
                f"another; open it in a task that was made outside, or use the one that is open."
            )
        task = asyncio.current_task()
        assert task is not None
        self.main = task
        self._cancellings = task.cancelling()
        self.hooks = _Hooks.on(self.loop)
        self._moment = self.hooks.time()
        self._token: Token[Place | None] = HERE.set(Place(self, "0"))
        self.inside = True
        self._schedule()
        try:
            await turn_over()
        except BaseException:
            self._end()
            raise
        if not self._draining:
            self._end()
            raise EffectError(
                f"Run {self.name!r} was opened in a context that is not its task's own, as in the "
                f"handler of a bus. Open it in a task: `asyncio.create_task(...)`."
            )
        self._entered = True

    async def leave(self) -> None:
        """End the run: cancel the tasks it leaves behind, as `asyncio.run` does, and step outside.

        Raises:
            EffectError: It is left by another task, or in another context, than it was entered in.
        """
        if asyncio.current_task() is not self.main or _here() is None:
            self.abandon()
            raise EffectError(
                f"Run {self.name!r} was left by another task than it was entered by. Enter and "
                f"leave it with one `async with`; a generator used as a fixture does not do."
            )
        cancelled = await self._end_tasks()
        self._end()
        try:
            await turn_over()
        except asyncio.CancelledError as error:
            cancelled = error
        cancelled = await self._end_outside() or cancelled
        if cancelled is not None:
            raise cancelled

    def abandon(self) -> None:
        """End the run at once, waiting for nothing."""
        if not self.closed:
            self._end()
        for task in self._outside:
            task.cancel()

    async def _end_tasks(self) -> asyncio.CancelledError | None:
        left = [task for task in self.tasks if task is not self.main]
        for task in left:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while left:
            try:
                await asyncio.wait(left)
            except asyncio.CancelledError as error:
                if cancelled is not None:
                    return error
                cancelled = error
            left = [task for task in self.tasks if task is not self.main]
        return cancelled

    async def _end_outside(self) -> asyncio.CancelledError | None:
        cancelled: asyncio.CancelledError | None = None
        for task in self._outside:
            task.cancel()
        while self._outside:
            try:
                await asyncio.wait(list(self._outside))
            except asyncio.CancelledError as error:
                cancelled = error
        return cancelled

    def _end(self) -> None:
        self.closed = True
        self.inside = False
        for timer in list(self.timers.values()):
            timer.cancel()
        with contextlib.suppress(ValueError):  # left in another context: that one keeps it
            HERE.reset(self._token)
        for handle in (*self.ready, *self._foreign):
            if not handle._cancelled:
                self.hooks.call_soon(handle._run, context=Context())
        self.ready.clear()
        self._foreign.clear()
        self._deliveries.clear()
        self.hooks.release()

    # -- time -------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the moment of the run, in seconds on the loop's clock: that of the last delivery."""
        return self._moment

    def real_now(self) -> float:
        """Return the time on the run's clock that it really is."""
        return max(self._moment, self.hooks.time() + self._shift)

    def set_moment(self, moment: float) -> None:
        """Set the moment of the run, as its recording says."""
        self._moment = moment

    def go_live(self) -> None:
        """From here on the clock is the real one, going on from this moment; set all timers."""
        self._shift = self._moment - self.hooks.time()
        for timer in self.timers.values():
            timer.arm()

    # -- what the run schedules -------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[..., object], args: tuple[object, ...], context: Context | None
    ) -> asyncio.Handle:
        """Take a callback of the run in."""
        handle = asyncio.Handle(callback, args, self.loop, context)
        if self.inside:
            self.ready.append(handle)
        else:
            self._foreign.append(handle)
            self._schedule()
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        args: tuple[object, ...],
        context: Context | None,
    ) -> asyncio.TimerHandle:
        """Set a timer of the run."""
        place = _here() if context is None else context.get(HERE)
        assert place is not None
        timer = InnerTimer(self, place, delay, callback, *args, context=context)
        self.timers[timer.effect] = timer
        if self.supervisor.is_live:
            timer.arm()
        return timer

    def create_task(
        self, place: Place, coroutine: Coroutine[Any, Any, Any], options: dict[str, Any]
    ) -> asyncio.Task[Any]:
        """Make a task of the run."""
        if sys._getframe(2).f_code.co_name in {"ensure_future", "_ensure_future"}:
            self._check_order(sys._getframe(3))
        context: Context = options.get("context") or copy_context()
        child = place.child()
        # A context given by the caller may be the one that is entered now; then the places are one.
        with contextlib.suppress(RuntimeError):
            context.run(HERE.set, child)
        options["context"] = context
        if self.loop.get_task_factory() is None:
            task: asyncio.Task[Any] = InnerTask(coroutine, child, **options)
        else:
            task = self.hooks.create_task(coroutine, **options)
        if not task.done():
            self.tasks[task] = child
            task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)

    def _check_order(self, frame: types.FrameType | None) -> None:
        """Look for asyncio's one function that makes tasks in the order of their addresses."""
        while frame is not None and frame.f_code.co_name in {"ensure_future", "<setcomp>"}:
            frame = frame.f_back
        if frame is None or frame.f_globals.get("__name__") != "asyncio.tasks":
            return
        if frame.f_code.co_name in {"as_completed", "__init__"}:
            caller = frame.f_back
            self.supervisor.undeclared(
                "asyncio.as_completed was given coroutines, which it starts in the order of their "
                "addresses in memory",
                "" if caller is None else f"{caller.f_code.co_filename}:{caller.f_lineno}",
                "Give it tasks: `as_completed([asyncio.create_task(c) for c in coroutines])`",
            )

    def count_task(self) -> int:
        """Return the number of a task that is made now."""
        self._tasks_made += 1
        return self._tasks_made

    def close_generator(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Make the task that closes an async generator nobody holds any more.

        It gets a path of its own kind: when the garbage collector finds one must not change how
        other tasks are counted.
        """
        context = copy_context()
        context.run(HERE.set, self._finalizers.child())
        task = InnerTask(coroutine, self._finalizers, context=context)
        self.tasks[task] = self._finalizers
        task.add_done_callback(self._forget)

    # -- what comes from outside ------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Have something handed in when its turn comes. In the loop's thread."""
        self._deliveries.append(delivery)
        self._schedule()

    def deliver_from_any_thread(self, delivery: Delivery) -> None:
        """Have something handed in when its turn comes. Any thread."""
        if threading.get_ident() == self.thread:
            self.deliver(delivery)
        elif not (self.closed or self.loop.is_closed()):
            self.hooks.call_soon_threadsafe(self.deliver, delivery, context=Context())

    def start_outside(
        self, work: Coroutine[Any, Any, None], context: Context | None = None
    ) -> asyncio.Task[None]:
        """Start a task of the loop that is in no run; `leave` waits for it."""
        task: asyncio.Task[None]
        if context is None:
            context = outside_context()
        if self.loop.get_task_factory() is None:
            task = asyncio.Task(work, loop=self.loop, context=context)
        else:
            task = self.hooks.create_task(work, context=context)
        self._outside.add(task)
        task.add_done_callback(self._outside.discard, context=Context())
        return task

    def cancel_main(self) -> None:
        """Cancel the main task, as seen from inside."""
        inside, self.inside = self.inside, True
        try:
            self.main.cancel()
        finally:
            self.inside = inside
        self._cancellings = self.main.cancelling()
        self._schedule()

    def cancellation(self, path: str) -> Delivery | None:
        """Return the delivery that cancels a task of the run; None if it has no such task."""
        if path == "0":
            return _Cancelled(path, self.main, self.main.cancel)
        for task, place in self.tasks.items():
            if place.path == path:
                return _Cancelled(path, task, task.cancel)
        return None

    def firing(self, effect: str) -> Delivery | None:
        """Return the delivery of a timer that is set; None if there is none of this id."""
        timer = self.timers.get(effect)
        return None if timer is None else _Fired(timer)

    # -- turning ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._due and not self.closed:
            self._due = True
            self.hooks.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        """Hand one thing in and run what follows from it. Each has a turn of the loop to itself."""
        self._due = False
        if self.closed or self._waiting is not None:
            return
        try:
            if self._safe is not None:
                delivery, self._safe = self._safe, None
                self._hand_in(delivery)
            elif self._foreign:
                self._take_foreign()
            elif self._deliveries and not self.ready and self._entered:
                self._take(self._deliveries.popleft())
            else:
                self._drain()
        finally:
            self._look_around()

    def _look_around(self) -> None:
        if self._waiting is not None or self.closed or not self._entered:
            return
        if not (self.ready or self._foreign or self._deliveries):
            self.supervisor.quiet()
        if self.ready or self._foreign or self._deliveries:
            self._schedule()

    def _take(self, delivery: Delivery) -> None:
        if delivery.is_stale:
            return
        if self.supervisor.is_live:
            self._moment = self.real_now()
        safe = self.supervisor.admit(delivery)
        if safe is None:
            self._hand_in(delivery)
            return
        self._waiting = delivery
        self.start_outside(self._hand_in_when(safe, delivery), Context())

    async def _hand_in_when(self, safe: Awaitable[object], delivery: Delivery) -> None:
        try:
            await safe
        except Exception as error:  # noqa: BLE001  the supervisor's to judge
            self.supervisor.failed(error)
        else:
            self._safe = delivery
        finally:
            self._waiting = None
            self._schedule()  # not here: the run's tasks cannot be stepped inside this one

    def _hand_in(self, delivery: Delivery) -> None:
        if delivery.is_stale:
            self.supervisor.dropped(delivery)
            return
        self.inside = True
        try:
            delivery.hand_in()
        finally:
            self.inside = False
        self._drain()

    def _take_foreign(self) -> None:
        handles, self._foreign = self._foreign, []
        if self.main.cancelling() > self._cancellings:
            self.supervisor.interrupted(self)
        else:
            for handle in handles:
                what, where = _described(handle)
                self.supervisor.undeclared(what, where, _MEND)
        self.ready.extend(handles)
        self._drain()

    def _drain(self) -> None:
        ready = self.ready
        debug = self.loop.get_debug()
        self.inside = self._draining = True
        try:
            while ready:
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                if debug:
                    self._run_watched(handle)
                else:
                    handle._run()
        finally:
            self.inside = self._draining = False
            self._cancellings = self.main.cancelling()

    def _run_watched(self, handle: asyncio.Handle) -> None:
        began = self.hooks.time()
        handle._run()
        took = self.hooks.time() - began
        if took >= getattr(self.loop, "slow_callback_duration", 0.1):
            _logger.warning("Executing %r took %.3f seconds", handle, took)


_MEND = (
    "Wrap what it waits for in an @effect, or have what wakes it happen inside the run; then it is "
    "recorded"
)


def _described(handle: asyncio.Handle) -> tuple[str, str]:
    """Say who is woken by a callback, and at which line it waits."""
    callback = handle._callback  # type: ignore[attr-defined]
    place = handle._context.get(HERE)  # type: ignore[attr-defined]
    path = "?" if place is None else place.path
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return f"the callback {callback!r} of task {path} was scheduled", repr(callback)
    coroutine: Any = task.get_coro()  # Any: whatever kind of generator awaits
    where = ""
    # the innermost code of the user's that waits, not what of asyncio it waits in
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None or "asyncio" in frame.f_code.co_filename.split("/")[-2:-1]:
            break
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    name = getattr(task.get_coro(), "__qualname__", "?")
    return f"task {path} ({name}, waiting at {where or '?'}) was woken", where


# -- the wrapped methods of a loop ----------------------------------------------------------------


class _Hooks:
    """The loop's own methods, and the wrapped ones put in their place while runs are open."""

    _all: dict[AbstractEventLoop, _Hooks] = {}  # noqa: RUF012  shared on purpose
    _lock = threading.Lock()

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.users = 0
        self.call_soon = loop.call_soon
        self.call_soon_threadsafe = loop.call_soon_threadsafe
        self.call_at = loop.call_at
        self.call_later = loop.call_later
        self.create_task = loop.create_task
        self.run_in_executor = loop.run_in_executor
        self.time = loop.time

    # Any: the arguments are those of the loop's own methods
    def set_timer(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None
    ) -> asyncio.TimerHandle:
        """Set a timer of the loop, by that of its two methods which does not call the other."""
        if isinstance(self.loop, asyncio.BaseEventLoop):
            return self.call_at(self.time() + delay, callback, *args, context=context)
        return self.call_later(delay, callback, *args, context=context)

    @classmethod
    def on(cls, loop: AbstractEventLoop) -> _Hooks:
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
def _wrapped(hooks: _Hooks) -> dict[str, Callable[..., Any]]:
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
        if place is None or place.inner.loop is not loop or place.inner.closed:
            return own_call_soon(callback, *args, context=context)
        return place.inner.call_soon(callback, args, context)

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
        return inner.call_soon(callback, args, context)

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
        return inner.call_later(when - inner.now(), callback, args, context)

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
                f"{function!r} was given to a thread",
                f"{frame.f_code.co_filename}:{frame.f_lineno}",
                "Make the call in an `async` function with @effect",
            )
        return hooks.run_in_executor(executor, function, *args)

    def time() -> float:
        inner = inner_of(None)
        return own_time() if inner is None else inner.now()

    return {
        "call_soon": call_soon,
        "call_soon_threadsafe": call_soon_threadsafe,
        "call_later": call_later,
        "call_at": call_at,
        "create_task": create_task,
        "run_in_executor": run_in_executor,
        "time": time,
    }
