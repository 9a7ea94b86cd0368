"""The inner loop itself: the queue of a run, and the turns in which it is emptied."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import types
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, Token, copy_context
from time import monotonic
from typing import Any, Final, cast

from atlas.core.inner_loop.hooks import Hooks
from atlas.core.inner_loop.place import HERE, Delivery, Place, Supervisor, here
from atlas.core.inner_loop.tasks import Cancelled, Fired, InnerTask, InnerTimer
from atlas.errors import EffectError

__all__ = ["InnerLoop", "turn_over"]

_logger = logging.getLogger("asyncio")  # slow callbacks are told where asyncio tells them
_here = HERE.get

_SLICE: Final = 0.0005
"""Seconds after which a run that has more to do lets the loop do its other work."""


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
        moment: The time of the run, in seconds on the loop's clock: that of the last delivery.
    """

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self.supervisor = supervisor
        self.name = name
        self.loop: AbstractEventLoop = asyncio.get_running_loop()
        self.thread: int = threading.get_ident()
        self.ready: deque[asyncio.Handle] = deque()
        self.inside: bool = False
        self.closed: bool = False
        self.timers: dict[str, InnerTimer] = {}
        self.tasks: dict[asyncio.Task[Any], Place] = {}
        self._ahead: dict[Coroutine[Any, Any, Any], asyncio.Task[Any]] = {}
        self._foreign: list[asyncio.Handle] = []
        self._deliveries: deque[Delivery] = deque()
        self._outside: set[asyncio.Task[Any]] = set()
        self._first_steps: deque[asyncio.Handle] = deque()
        self._debug = self.loop.get_debug()
        self._tasks_made = 0
        self._draining = False
        self._entered = False
        self._due = False
        self._waiting: Delivery | None = None
        self._safe: Delivery | None = None
        self._cancellings = 0
        self._is_interrupted = False
        self.moment: float = 0.0
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
        self.hooks: Hooks = Hooks.on(self.loop)
        self.moment = self.hooks.time()
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
                ended, _ = await asyncio.wait(self._outside)
            except asyncio.CancelledError as error:
                cancelled = error
            else:
                self._outside -= ended  # those that were cancelled before they began
        return cancelled

    def _end(self) -> None:
        self.closed = True
        self.inside = False
        for timer in list(self.timers.values()):
            timer.cancel()
        with contextlib.suppress(ValueError):  # left in another context: that one keeps it
            HERE.reset(self._token)
        for handle in (*self.ready, *self._foreign, *self._first_steps):
            if not handle._cancelled:
                self.hooks.call_soon(handle._run, context=Context())
        self.ready.clear()
        self._first_steps.clear()
        self._foreign.clear()
        self._deliveries.clear()
        self.hooks.release()

    # -- time -------------------------------------------------------------------------------------

    def real_now(self) -> float:
        """Return the time on the run's clock that it really is."""
        return max(self.moment, self.hooks.time() + self._shift)

    def go_live(self) -> None:
        """From here on the clock is the real one, going on from this moment; set all timers."""
        self._shift = self.moment - self.hooks.time()
        for timer in self.timers.values():
            timer.arm()

    # -- what the run schedules -------------------------------------------------------------------

    def call_soon_foreign(
        self, callback: Callable[..., object], args: tuple[object, ...], context: Context | None
    ) -> asyncio.Handle:
        """Take in a callback of the run that something else scheduled than the run."""
        handle = asyncio.Handle(callback, args, self.loop, context)
        # Looked at now: a step that comes before this one is taken may cancel, too.
        self._is_interrupted |= self._entered and self.main.cancelling() > self._cancellings
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
        timer = InnerTimer(place, delay, callback, *args, context=context)
        self.timers[timer.effect] = timer
        if self.supervisor.is_live:
            timer.arm()
        return timer

    def create_task(
        self, place: Place, coroutine: Coroutine[Any, Any, Any], options: dict[str, Any]
    ) -> asyncio.Task[Any]:
        """Make a task of the run."""
        if coroutine in self._ahead:
            return self._ahead.pop(coroutine)
        asked_by = _asked_by(sys._getframe(2))
        if asked_by is None:
            return self._task(place.child(), coroutine, options)
        if asked_by.f_code.co_name == "wait_for":
            # From 3.12 on it makes no task, except where there is no time at all. Counted as what the
            # calling task does itself, one run is the same on every Python.
            return self._task(place, coroutine, options, is_counted=False)
        return self._one_of_several(place, coroutine, options, asked_by)

    def _task(
        self,
        child: Place,
        coroutine: Coroutine[Any, Any, Any],
        options: dict[str, Any],
        *,
        is_counted: bool = True,
    ) -> asyncio.Task[Any]:
        context: Context = options.get("context") or copy_context()
        # A context given by the caller may be the one that is entered now; then the places are one.
        with contextlib.suppress(RuntimeError):
            context.run(HERE.set, child)
        options["context"] = context
        if options.get("name") is None:
            options["name"] = f"Task-{child.path}"  # asyncio's own counts what the host does too
        if self.loop.get_task_factory() is None:
            task: asyncio.Task[Any] = InnerTask(coroutine, child, is_counted=is_counted, **options)
        else:
            task = self.hooks.create_task(coroutine, **options)
        if not task.done():
            self.tasks[task] = child
            task.add_done_callback(self._forget)
        return task

    def _one_of_several(
        self,
        place: Place,
        coroutine: Coroutine[Any, Any, Any],
        options: dict[str, Any],
        asked_by: types.FrameType,
    ) -> asyncio.Task[Any]:
        """Make the tasks of all coroutines given to `asyncio.as_completed`, in the order they have there.

        It asks for them in the order of their addresses in memory.
        """
        names = asked_by.f_locals
        given = names.get("fs", names.get("aws"))
        if not isinstance(given, list | tuple) or not any(each is coroutine for each in given):
            caller = asked_by.f_back
            self.supervisor.undeclared(
                "asyncio.as_completed was given coroutines, which it starts in the order of their "
                "addresses in memory",
                "" if caller is None else f"{caller.f_code.co_filename}:{caller.f_lineno}",
                "Give it a list of coroutines, or tasks: `as_completed([create_task(c) for c in ...])`",
            )
            return self._task(place.child(), coroutine, options)
        self._ahead = {
            each: self._task(place.child(), each, dict(options))
            for each in dict.fromkeys(filter(asyncio.iscoroutine, given))
        }
        return self._ahead.pop(coroutine)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)

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
        if not self._due:
            self._schedule()

    def deliver_from_any_thread(self, delivery: Delivery) -> None:
        """Have something handed in when its turn comes. Any thread."""
        if threading.get_ident() == self.thread:  # as for each effect: then with no further call
            self._deliveries.append(delivery)
            if not self._due:
                self._schedule()
        elif not (self.closed or self.loop.is_closed()):
            self.hooks.call_soon_threadsafe(self.deliver, delivery, context=Context())

    def start_outside(
        self, work: Coroutine[Any, Any, None], context: Context
    ) -> asyncio.Task[None]:
        """Start a task of the loop in a context that is in no run; `leave` waits for it.

        Its first step is run in this turn of the loop, or the next, after what the run has to do. It
        has to call `ended_outside` as its last act.
        """
        if self.closed:
            task: asyncio.Task[None] = self.hooks.create_task(work, context=context)
        else:
            task = self.hooks.task_outside(work, context, self._first_steps)
            if not self._due:
                self._schedule()
        if not task.done():  # as it may be where a task factory runs the first step
            self._outside.add(task)
        return task

    def ended_outside(self, task: asyncio.Task[None] | None) -> None:
        """Take note that the calling task, made by `start_outside`, ends now.

        It is given, as to ask asyncio is not cheap before 3.12; None if `start_outside` has not returned.
        """
        self._outside.discard(task)

    def cancel_outside(self, task: asyncio.Task[None]) -> None:
        """Cancel a task made by `start_outside`."""
        task.cancel()
        # one that has not begun never does, and cannot say that it has ended
        task.add_done_callback(self._outside.discard, context=Context())

    def cancel_main(self) -> None:
        """Cancel the main task, as seen from inside."""
        inside, self.inside = self.inside, True
        try:
            self.main.cancel()
        finally:
            self.inside = inside
        self._cancellings = self.main.cancelling()
        self._schedule()

    def is_passed_on(self, task: asyncio.Task[Any], msg: object) -> bool:
        """Return whether a task is cancelled only because the main task is, from outside, and waits for it.

        Then the main task is cancelled when it is its turn, and passes it on as a replay will. What it
        waits for was told already (`asyncio.gather` keeps it in mind), and has to hear it again.
        """
        if self.main.cancelling() <= self._cancellings or not _awaits(
            self.main._fut_waiter,  # type: ignore[attr-defined]  # asyncio's own name for what a task awaits
            task,
        ):
            return False
        if not self._is_interrupted:  # else it was passed on to another one before
            self.call_soon_foreign(self._cancel_main_again, (msg,), Context())
        return True

    def _cancel_main_again(self, msg: object) -> None:
        self.main.uncancel()  # it is one cancellation, and counted
        self.main.cancel(msg)

    def cancellation(self, path: str) -> Delivery | None:
        """Return the delivery that cancels a task of the run; None if it has no such task."""
        if path == "0":
            return Cancelled(path, self.main, self.main.cancel)
        for task, place in self.tasks.items():
            if place.path == path:
                return Cancelled(path, task, task.cancel)
        return None

    def firing(self, effect: str) -> Delivery | None:
        """Return the delivery of a timer that is set; None if there is none of this id."""
        timer = self.timers.get(effect)
        return None if timer is None else Fired(timer)

    # -- turning ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._due and not self.closed:
            self._due = True
            self.hooks.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        """Do one step after another, until nothing is to do or the loop's other work has its turn."""
        goes_on = True
        until = monotonic() + _SLICE
        try:
            while (goes_on := self._step()) and monotonic() < until:
                pass
        finally:
            self._due = False
            if goes_on:
                self._schedule()

    def _step(self) -> bool:
        """Hand one thing in and run what follows from it; return whether there is more to do."""
        if self._first_steps:
            run = self._run_watched if self._debug else _run
            run(self._first_steps.popleft())
        elif self.closed or self._waiting is not None:
            return False
        elif self._safe is not None:
            delivery, self._safe = self._safe, None
            self._hand_in(delivery)
        elif self._foreign:
            self._take_foreign()
        elif self._deliveries and not self.ready and self._entered:
            self._take(self._deliveries.popleft())
        else:
            self._drain()
        if self._first_steps:
            return True
        if self.closed or self._waiting is not None or not self._entered:
            return False
        if self.ready or self._deliveries or self._foreign or self._safe is not None:
            return True
        self.supervisor.quiet()  # a recording has what comes next
        return bool(self.ready or self._deliveries)

    def _take(self, delivery: Delivery) -> None:
        if delivery.is_stale:
            return
        safe = self.supervisor.admit(delivery)
        if safe is None or _is_over(safe):
            self._hand_in(delivery)
            return
        self._waiting = delivery
        if isinstance(safe, asyncio.Future):  # a task that awaits it would cost three times that
            safe.add_done_callback(self._is_safe, context=self._context)
            return
        self.start_outside(self._hand_in_when(safe, delivery), Context())

    def _is_safe(self, safe: asyncio.Future[object]) -> None:
        """Hand in what waited for this."""
        delivery, self._waiting = self._waiting, None
        if self.closed:
            safe.exception()  # whoever waits for the journal once more is told the same
            return
        error = safe.exception()
        if error is None:
            self._safe = delivery
        else:
            self.supervisor.failed(cast("Exception", error))
        if self._due:
            return
        self._due = True
        self._turn()

    async def _hand_in_when(self, safe: Awaitable[object], delivery: Delivery) -> None:
        try:
            await safe
        except Exception as error:  # noqa: BLE001  the supervisor's to judge
            self.supervisor.failed(error)
        else:
            self._safe = delivery
        finally:
            self.ended_outside(asyncio.current_task())
            self._waiting = None
            self._schedule()  # not here: the run's tasks cannot be stepped inside this one

    def _hand_in(self, delivery: Delivery) -> None:
        if self._is_interrupted and self.supervisor.is_live:
            # It was written down, but what the main task waited for was cancelled before the run could
            # have it. A replay has to see it in that order, too.
            self.supervisor.dropped(delivery)
            self._deliveries.appendleft(delivery)
            self._take_foreign()
            return
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
        if self._is_interrupted:
            self._is_interrupted = False
            self.supervisor.interrupted(self)
        else:
            for handle in handles:
                what, where = _described(handle)
                self.supervisor.undeclared(what, where, _MEND)
        self.ready.extend(handles)
        self._drain()

    def _drain(self) -> None:
        ready, run = self.ready, self._run_watched if self._debug else _run
        self.inside = self._draining = True
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    run(handle)
        finally:
            self.inside = self._draining = False
            self._cancellings = self.main.cancelling()

    def _run_watched(self, handle: asyncio.Handle) -> None:
        began = self.hooks.time()
        handle._run()
        took = self.hooks.time() - began
        if took >= getattr(self.loop, "slow_callback_duration", 0.1):
            _logger.warning("Executing %r took %.3f seconds", handle, took)


_run: Final[Callable[[asyncio.Handle], None]] = asyncio.Handle._run


def _is_over(safe: Awaitable[object]) -> bool:
    """Return whether a journal has made safe at once what it was asked to."""
    return isinstance(safe, asyncio.Future) and safe.done() and safe.exception() is None


def _awaits(waiter: object, task: asyncio.Task[Any]) -> bool:
    """Return whether a future is a task, or gathers it."""
    return waiter is task or any(_awaits(each, task) for each in getattr(waiter, "_children", ()))


def _asked_by(frame: types.FrameType | None) -> types.FrameType | None:
    """Return the frame of the function of asyncio that must be known, if it makes a task here."""
    if frame is None or frame.f_code.co_name not in {"ensure_future", "_ensure_future"}:
        return None
    while frame is not None and frame.f_code.co_name in _WRAPPERS:
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") != "asyncio.tasks":
        return None
    return frame if frame.f_code.co_name in {"as_completed", "__init__", "wait_for"} else None


_WRAPPERS = frozenset({"ensure_future", "_ensure_future", "<setcomp>"})

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
