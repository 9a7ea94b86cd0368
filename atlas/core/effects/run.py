"""A run: the inner loop, its journal or its recording, and the effects that are under way.

`RunContext` supervises an `InnerLoop`. Recording, it writes down what the run asks for and admits one delivery
after another. Replaying, it compares what the run asks for with the recording, entry by entry, and hands in
what the recording has next whenever the run is quiet. A fork or a resumed run does the one, then the other.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import random
import secrets
import threading
import uuid
import warnings as python_warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, cast

from atlas.core import replay_guard
from atlas.core.effect_layers import EffectCall, Layer
from atlas.core.effects.codec import error_from, error_text, from_text, to_text
from atlas.core.effects.entries import (
    Declared,
    EffectCancelled,
    EffectDelivered,
    EffectNoted,
    EffectRead,
    EffectStarted,
    Entry,
    Journal,
    RequestStore,
    RunContinued,
    RunSeeded,
    cut_at,
    digest_of,
    effective,
    rebuild_requests,
    resume_point,
)
from atlas.core.inner_loop import Delivery, InnerLoop, Place, outside_context
from atlas.errors import (
    EffectError,
    InDoubtError,
    ReplayDiverged,
    UndeclaredEffectError,
    UndeclaredEffectWarning,
)

__all__ = ["InDoubt", "Mode", "Pending", "PendingStream", "RunContext", "Skip"]

Mode: TypeAlias = Literal["live", "record", "replay", "fork", "resume"]


@dataclass(frozen=True, slots=True)
class Skip:
    """The decision not to perform an effect that is in doubt, and what it is to have given."""

    value: object = None


InDoubt: TypeAlias = (
    "Literal['raise', 'retry'] | Skip "
    "| Callable[[EffectCall], Awaitable[Literal['raise', 'retry'] | Skip]]"
)
"""What to do about an external effect that was started before a crash and has no recorded end."""

_LOST_PATIENCE = 100


class Completion(Delivery):
    """What came of an effect."""

    __slots__ = ("pending",)

    def __init__(self, pending: Pending, what: str, value: str = "") -> None:
        super().__init__(pending.call.id, what, value)
        self.durable = what != "chunk" and pending.call.declared != "pure"
        self.pending = pending

    @property
    def is_stale(self) -> bool:
        return self.pending.ended

    def hand_in(self) -> None:
        self.pending.take(self.what, self.value)


class Pending:
    """An effect that a run has asked for and that has not ended. Awaited inside the run.

    Attributes:
        call: What it is.
        launch: Begins to perform it, outside.
        ended: Whether the run has its end, or wants it no more.
        was_started: Whether a recording has its start, so that it may have been performed before.
    """

    __slots__ = ("call", "ended", "future", "launch", "on_cancel", "run", "was_started")

    def __init__(
        self, run: RunContext, call: EffectCall, launch: Callable[[Pending], None]
    ) -> None:
        self.run = run
        self.call = call
        self.launch = launch
        self.ended = False
        self.was_started = False
        self.on_cancel: Callable[[], object] | None = None
        # Any: whatever the effect gives
        self.future: asyncio.Future[Any] = run.inner.loop.create_future()

    def give(self, what: str, value: str = "") -> None:
        """Have what came of it handed in. Any thread."""
        self.run.inner.deliver_from_any_thread(Completion(self, what, value))

    def take(self, what: str, value: str) -> None:
        """Let the run have what came of it."""
        self.end()
        if self.future.done():
            return
        try:
            if what == "value":
                self.future.set_result(from_text(value))
            else:
                self.future.set_exception(error_from(value))
        except Exception as error:  # noqa: BLE001  the recording cannot be read: the caller's affair
            self.future.set_exception(error)

    def end(self) -> None:
        """Count it as ended."""
        self.ended = True
        self.launch = _over  # it holds what holds this: a cycle for the garbage collector
        self.run.pending.pop(self.call.id, None)

    # Any: whatever the effect gives
    async def result(self) -> Any:
        """Wait for what comes of it. Inside the run."""
        try:
            return await self.future
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Want it no more, if it has not ended. Inside the run."""
        if self.ended:
            return
        self.end()
        self.run.emit_cancelled(self.call.id)
        if self.on_cancel is not None:
            self.on_cancel()


class PendingStream(Pending):
    """An effect that gives pieces: an async iterator inside the run.

    The function that makes the pieces is held back while ``WINDOW`` of them wait to be read.
    """

    __slots__ = ("_ahead", "_end", "_items", "_room", "_waiter")

    WINDOW = 64

    def __init__(
        self, run: RunContext, call: EffectCall, launch: Callable[[Pending], None]
    ) -> None:
        super().__init__(run, call, launch)
        # Any: whatever the effect gives
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ahead = 0
        self._room: asyncio.Future[None] | None = None

    def take(self, what: str, value: str) -> None:
        """Let the run have a piece, or the end."""
        if what == "chunk":
            self._items.append(from_text(value))
        else:
            self.end()
            self._end = StopAsyncIteration() if what == "end" else error_from(value)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Any: whatever the effect gives
    async def next(self) -> Any:
        """Return the next piece. Inside the run.

        Raises:
            StopAsyncIteration: There are no more.
        """
        while not self._items:
            if self._end is not None:
                end, self._end = self._end, StopAsyncIteration()
                raise end
            if self.ended:
                raise StopAsyncIteration
            self._waiter = self.run.inner.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                if not self._items and self._end is None:
                    self.cancel()
                raise
        self._ahead -= 1
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return self._items.popleft()

    async def pump(self, pieces: AsyncIterator[Any]) -> None:
        """Have the pieces handed in one by one. Outside the run."""
        async with aclosing(cast("Any", pieces)):
            async for piece in pieces:
                self.give("chunk", text_of(self.call, piece))
                self._ahead += 1
                while self._ahead >= self.WINDOW and not self.ended:
                    self._room = self.run.inner.loop.create_future()
                    await self._room
        self.give("end")


# Any: whatever the effect gives
def text_of(call: EffectCall, result: Any) -> str:
    """Return a result as JSON text.

    Raises:
        EffectError: It has no JSON form.
    """
    try:
        return to_text(result)
    except (TypeError, ValueError, RecursionError) as error:
        raise EffectError(
            f"Effect {call.kind!r} gave {result!r:.200}, which cannot be recorded: {error}. Return JSON "
            f"values, messages, frozen dataclasses, bytes, dates or the like."
        ) from error


class RunContext:
    """A run in which effects are recorded or replayed: an async context manager.

    The body of ``async with RunContext(...)`` and every task it makes are the run. They run in the
    user's own task and loop, but in an order of their own, see `atlas.core.inner_loop`. Leaving it
    cancels the tasks it left behind, waits for them and for the effects under way, and commits the
    journal.

    Args:
        run_id: The run's id; idempotency keys are made from it.
        mode: ``"record"``: perform effects and write the journal. ``"live"``: the same without a
            journal. ``"replay"``: perform nothing, repeat ``recorded``. ``"fork"``: repeat ``recorded``
            up to ``at``, then record. ``"resume"``: repeat all that was recorded of the same run,
            then record.
        journal: Where to write. While repeating, entries are written again only if ``rewrite``.
        recorded: The entries of the run to repeat.
        at: For a fork: how many deliveries to repeat.
        seed: Of random numbers and UUIDs, 32 hexadecimal digits; None: a new one.
        layers: Around all effects, the outermost first; see `atlas.core.effect_layers`.
        in_doubt: What to do, resuming, about external effects of which nobody knows if they happened.
        strict: Raise `UndeclaredEffectError` where recording otherwise warns.
        pace: Replay at the recorded pace times this; None: as fast as possible.
        rewrite: Whether what is repeated is written to the journal again; None: in replays only.
        guard: Whether replaying refuses code of the run the network, files and processes.

    Attributes:
        warnings: What got in that is no declared effect, in words.
        seed: The seed in use.

    Raises:
        EffectError: From entering, in a run; or where a run is not possible.
        ReplayDiverged: The program does not do what was recorded. From the effect at which it was
            noticed and, in any case, from leaving.
        UndeclaredEffectError: Something else than an effect got in, in a replay or a strict run.
    """

    def __init__(
        self,
        run_id: str,
        *,
        mode: Mode = "record",
        journal: Journal | None = None,
        recorded: Iterable[Entry] = (),
        at: int | None = None,
        seed: str | None = None,
        layers: Sequence[Layer] = (),
        in_doubt: InDoubt = "raise",
        strict: bool = False,
        pace: float | None = None,
        rewrite: bool | None = None,
        guard: bool = True,
    ) -> None:
        self.run_id = run_id
        self.mode = mode
        self.layers = tuple(layers)
        self.in_doubt = in_doubt
        self.strict = strict
        self.pace = pace
        self.seed = seed or secrets.token_hex(16)
        self.warnings: list[str] = []
        self.pending: dict[str, Pending] = {}
        self.requests = RequestStore()
        self._journal = journal if mode != "live" else None
        self._rewrite = mode == "replay" if rewrite is None else rewrite
        self._guard = guard
        self._recorded = tuple(recorded) if mode not in ("live", "record") else ()
        self._entries = effective(self._recorded)
        self._cursor = 0
        self._end = self._repeated(at)
        self._live = mode in ("live", "record")
        self._later: dict[str, list[Entry]] = {}
        self._expected: Delivery | None = None
        self._error: BaseException | None = None
        self._cancelled = 0
        self._exact = True
        self._interrupted = False
        self._told: set[str] = set()
        self._replay_began: tuple[float, float] | None = None

    def _repeated(self, at: int | None) -> int:
        if self.mode == "fork":
            return cut_at(self._entries, at or 0)
        return resume_point(self._entries) if self.mode == "resume" else len(self._entries)

    # -- facts ------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Whether effects are performed now; else what was recorded is repeated."""
        return self._live

    @property
    def exact(self) -> bool:
        """Whether all that got in so far was recorded, so that a replay can repeat it."""
        return self._exact

    # -- entering and leaving ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise EffectError(
                f"Run {self.run_id!r} needs a running loop of asyncio, and there is none here. Runs "
                f"are not possible on trio; run this part with asyncio."
            ) from error
        if not self._live and (not self._entries or not isinstance(self._entries[0], RunSeeded)):
            raise ReplayDiverged(
                f"The recording of run {self.run_id!r} is empty or does not begin with a seed, so "
                f"there is nothing to repeat."
            )
        self.inner = InnerLoop(self, self.run_id)
        if self._live:
            self._set_seed(RunSeeded(seed=self.seed, moment_ns=round(loop.time() * 1e9)))
        if self._guard and not self._live:
            replay_guard.install()
        await self.inner.enter()
        if self._live:
            self.inner.set_moment(self._seeded.moment_ns / 1e9)  # as a replay will
            self._write(self._seeded)
        else:
            self._advance()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is GeneratorExit:  # the coroutine is being thrown away: nothing can be awaited
            self.inner.abandon()
            return
        try:
            await self.inner.leave()
        except asyncio.CancelledError:
            if self._error is None:
                raise
        if self._error is None and not isinstance(error, EffectError):
            self._check_all_done(error)
        for _ in range(self._cancelled):
            self.inner.main.uncancel()
        self._tell_unused()
        try:
            await self.commit()
        except Exception:
            if self._error is None:
                raise
        if self._error is not None and error is not self._error:
            raise self._error from (None if _is_cancellation(error) else error)

    def _check_all_done(self, error: BaseException | None) -> None:
        if self._live or self._cursor >= self._end or self._interrupted:
            return
        entry = self._entries[self._cursor]
        self._error = self._missing(entry)

    def _tell_unused(self) -> None:
        """Tell of what a crashed run did that this one, resumed, did not ask for again."""
        for effect, entries in self._later.items():
            started = next((one for one in entries if isinstance(one, EffectStarted)), None)
            if started is not None and started.declared == "external":
                self.warnings.append(
                    f"Effect {effect!r} ({started.kind}) of run {self.run_id!r} was started before "
                    f"the run broke off, but going on it was not asked for again."
                )

    def _set_seed(self, seeded: RunSeeded) -> None:
        self._seeded = seeded
        self.seed = seeded.seed
        # str seeds go through SHA-512 and are the same on every Python
        self.random = random.Random(f"random {seeded.seed}")
        self._ids = random.Random(f"uuid {seeded.seed}")

    def uuid(self) -> uuid.UUID:
        """Return a random UUID that follows from the seed."""
        return uuid.UUID(int=self._ids.getrandbits(128), version=4)

    # -- writing and comparing --------------------------------------------------------------------

    def _write(self, entry: Entry) -> None:
        if self._journal is not None and (self._live or self._rewrite):
            self._journal.write(entry)

    async def commit(self) -> None:
        """Return when what was written is safe."""
        if self._journal is not None:
            await self._journal.commit()

    def _advance(self, handed_in: str = "") -> None:
        """Step over an entry that was repeated, and what has no meaning after it.

        ``handed_in`` is the effect whose end it is: going live, that one is not performed.
        """
        while True:
            self._write(self._entries[self._cursor])
            if isinstance(entry := self._entries[self._cursor], RunSeeded):
                self._set_seed(entry)
                if self._cursor == 0:
                    self.inner.set_moment(entry.moment_ns / 1e9)
            self._cursor += 1
            if self._cursor >= self._end:
                break
            if not isinstance(self._entries[self._cursor], EffectNoted | RunContinued | RunSeeded):
                return
            if self._is_dropped(self._entries[self._cursor]):
                return
        if self.mode in ("fork", "resume"):
            self._go_live(handed_in)

    @staticmethod
    def _is_dropped(entry: Entry) -> bool:
        return isinstance(entry, EffectNoted) and entry.what == "dropped"

    def _given_up(self) -> dict[str, list[Entry]]:
        """Return what was recorded of effects beyond what is repeated, by this or an earlier try."""
        found: dict[str, list[Entry]] = {}
        for entry in self._recorded:
            if isinstance(entry, EffectStarted):
                found[entry.effect] = [entry]
            elif isinstance(entry, EffectDelivered) and entry.effect in found:
                found[entry.effect].append(entry)
        for entry in self._entries[: self._end]:
            if isinstance(entry, EffectDelivered | EffectCancelled):
                found.pop(entry.effect, None)
        return {
            effect: entries
            for effect, entries in found.items()
            if len(entries) > 1 or effect not in self.pending
        }

    def _go_live(self, handed_in: str) -> None:
        self._live = True
        if self.mode == "resume":
            self._later = self._given_up()
            self._write(RunContinued(kept=self._end))
        else:
            seed = RunSeeded(seed=secrets.token_hex(16), moment_ns=round(self.inner.now() * 1e9))
            self._set_seed(seed)
            self._write(seed)
        self.inner.go_live()
        for pending in list(self.pending.values()):
            if pending.call.id != handed_in:
                self.perform(pending)

    def _next(self) -> Entry | None:
        return self._entries[self._cursor] if self._cursor < self._end else None

    def _expect(self, entry: EffectStarted | EffectRead | EffectCancelled, request: str) -> Entry:
        """Compare what the run does with what was recorded, and step on."""
        recorded = self._next()
        if type(recorded) is type(entry) and _alike(recorded, entry):
            self._advance()
            assert recorded is not None
            return recorded
        raise self.abort(self._diverged(entry, request, recorded))

    def _diverged(
        self,
        entry: EffectStarted | EffectRead | EffectCancelled,
        request: str,
        recorded: Entry | None,
    ) -> ReplayDiverged:
        actual = _in_words(entry, request)
        same = recorded if getattr(recorded, "effect", None) == entry.effect else None
        if same is None or type(same) is not type(entry):
            same = next(
                (
                    other
                    for other in self._entries
                    if type(other) is type(entry) and other.effect == entry.effect
                ),
                None,
            )
        if same is None:
            end = "" if recorded is not None else ", which ends here"
            return ReplayDiverged(
                f"Effect {entry.effect!r} is not in the recording of run {self.run_id!r}{end}: the "
                f"program asked for {actual}. It was not performed.",
                effect=entry.effect,
                actual=actual,
            )
        before = self._request_of(same)
        if _alike(same, entry):
            return ReplayDiverged(
                f"Effect {entry.effect!r} ({actual}) comes at another time than in the recording of "
                f"run {self.run_id!r}, which has {self._words_of(recorded)} there.",
                effect=entry.effect,
                recorded=self._words_of(recorded),
                actual=actual,
            )
        return ReplayDiverged(
            f"Effect {entry.effect!r} is another than in the recording of run {self.run_id!r}: "
            f"recorded is {_in_words(same, before)}, the program asked for {actual}."
            f"{_difference(before, request)}",
            effect=entry.effect,
            recorded=_in_words(same, before),
            actual=actual,
        )

    def _words_of(self, entry: Entry | None) -> str:
        return "its end" if entry is None else _in_words(entry, self._request_of(entry))

    def _request_of(self, entry: Entry) -> str:
        if isinstance(entry, EffectStarted):
            return rebuild_requests(self._entries, entry.effect)
        return entry.request if isinstance(entry, EffectRead) else ""

    def _missing(self, entry: Entry) -> ReplayDiverged:
        words = self._words_of(entry)
        effect = getattr(entry, "effect", "")
        return ReplayDiverged(
            f"The program did not do what was recorded next in run {self.run_id!r}: effect "
            f"{effect!r}, {words}.",
            effect=effect,
            recorded=words,
        )

    # Any: raised by the caller, or not
    def abort(self, error: EffectError) -> EffectError:
        """End the run with an error: now, in whatever it waits for, and when it is left."""
        if self._error is None:
            self._error = error
        if asyncio.current_task() is not self.inner.main and not self.inner.closed:
            self._cancelled += 1
            if self._cancelled > _LOST_PATIENCE:
                return error
            self.inner.cancel_main()
        return error

    # -- effects ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse to go on in a run that has failed, or from a thread that is not its loop's.

        Raises:
            EffectError: It is so.
        """
        if self._error is not None:
            raise self._error
        if self._interrupted and not self._live:
            raise ReplayDiverged(
                f"Replaying run {self.run_id!r} was cancelled; no effect can be repeated after that."
            )
        if threading.get_ident() != self.inner.thread:
            raise UndeclaredEffectError(
                f"An effect of run {self.run_id!r} was asked for in another thread than its "
                f"loop's, where no order can be kept. Ask for it in the run's tasks, or make all "
                f"that the thread does one @effect."
            )

    def call(self, place: Place, kind: str, declared: Declared, request: str) -> EffectCall:
        """Count an effect, and return what is known of it."""
        effect = place.next_effect()
        return EffectCall(
            kind, declared, request, effect, self.run_id, note=partial(self.note, effect)
        )

    def start(self, pending: Pending) -> None:
        """Begin an effect: write it down and perform it; or compare it, and wait."""
        call = pending.call
        digest = digest_of(call.request)
        if self._live:
            base, shared, rest = self.requests.delta(call.id, call.kind, call.request)
            started = EffectStarted(call.id, call.kind, call.declared, digest, base, shared, rest)
            self._write(started)
        else:
            entry = EffectStarted(call.id, call.kind, call.declared, digest, "", 0, "")
            self._expect(entry, call.request)
            pending.was_started = True
        self.pending[call.id] = pending
        if self._live:
            self.perform(pending)

    def perform(self, pending: Pending) -> None:
        """Have an effect performed; or take what a crashed run had of it already."""
        later = self._later.pop(pending.call.id, None)
        if later is not None:
            self._take_over(pending, later)
        if pending.was_started and self.mode == "resume" and pending.call.declared == "external":
            self.inner.start_outside(self._settle_doubt(pending))
        elif later is None or not any(isinstance(entry, EffectDelivered) for entry in later):
            pending.launch(pending)

    def _take_over(self, pending: Pending, later: list[Entry]) -> None:
        """Use what was recorded of an effect after the point from which the run goes on."""
        begun = next((entry for entry in later if isinstance(entry, EffectStarted)), None)
        call = pending.call
        asked = (call.kind, digest_of(call.request))
        if begun is not None and (begun.kind, begun.digest) != asked:
            later.clear()
            return
        ended = [entry for entry in later if isinstance(entry, EffectDelivered)]
        if ended and ended[-1].what in ("value", "error", "end"):
            for entry in ended:
                pending.give(entry.what, entry.value)
            pending.was_started = False
            return
        later.clear()
        pending.was_started = True

    async def _settle_doubt(self, pending: Pending) -> None:
        call = pending.call
        decision: object = self.in_doubt
        try:
            if callable(decision):
                decision = await decision(call)
        except Exception as error:  # noqa: BLE001  told to the run
            pending.give("error", error_text(error))
            return
        finally:
            self.inner.ended_outside()
        self.note(call.id, "decision", f"in doubt: {decision!r}")
        if decision == "retry":
            pending.launch(pending)
        elif isinstance(decision, Skip):
            if isinstance(pending, PendingStream):
                pending.give("end")
            else:
                pending.give("value", text_of(call, decision.value))
        else:
            doubt = InDoubtError(
                f"Effect {call.id!r} ({call.kind}) of run {self.run_id!r} was started before the "
                f"run broke off, and nobody knows whether it happened. Find out, then resume with "
                f"in_doubt='retry' to perform it again or Skip(value) to go on without.",
                effect=call.id,
            )
            pending.give("error", error_text(doubt))

    def emit_cancelled(self, effect: str) -> None:
        """Write down, or compare, that an effect is wanted no more."""
        entry = EffectCancelled(effect)
        if self._live:
            self._write(entry)
        elif self._error is None and not self._interrupted:
            recorded = self._next()
            if type(recorded) is EffectCancelled and recorded.effect == effect:
                self._advance()
            else:
                self.abort(self._diverged(entry, "", recorded))

    # Any: whatever comes of it
    async def wait_outside(
        self,
        place: Place,
        kind: str,
        work: Callable[[], Awaitable[Any]],
        *,
        nothing: object = None,
        is_over: bool = False,
    ) -> Any:
        """Have something awaited outside of the run, as an effect of it."""
        self.check()
        if is_over if self._live else nothing is not None and not self._starts(place, kind):
            place.next_effect()
            return nothing
        call = self.call(place, kind, "pure", "")

        async def settle() -> None:
            pending.give("value", text_of(call, await work()))

        pending = Pending(self, call, lambda pending: self.run_outside(pending, settle, ()))
        self.start(pending)
        return await pending.result()

    def _starts(self, place: Place, kind: str) -> bool:
        """Whether the next thing recorded is that an effect of this kind starts here."""
        entry = self._next()
        effect = f"{place.path}:{place.effects}"
        return isinstance(entry, EffectStarted) and (entry.effect, entry.kind) == (effect, kind)

    # Any: whatever the effect gives
    def read(
        self,
        place: Place,
        kind: str,
        produce: Callable[[EffectCall], Any],
        *,
        declared: Declared = "pure",
        request: str = "",
        layers: Sequence[Layer] = (),
        hidden: tuple[str, ...] = (),
    ) -> Any:
        """Perform an effect that does not wait, at once; or repeat what it gave."""
        self.check()
        digest = digest_of(request) if request else ""
        if not self._live:
            effect = place.next_effect()
            recorded = self._expect(EffectRead(effect, kind, digest, request, ""), request)
            assert isinstance(recorded, EffectRead)
            return _given(recorded.value, recorded.failed)
        call = self.call(place, kind, declared, request)
        try:
            value, failed = text_of(call, produce(call)), False
        except Exception as error:  # noqa: BLE001  recorded, and raised again
            value, failed = error_text(error, hidden), True
            cause: Exception | None = error
        else:
            cause = None
        self._write(EffectRead(call.id, kind, digest, request, value, failed))
        return _given(value, failed, cause)

    def note(self, effect: str, what: str, text: str) -> None:
        """Write something for people to the journal."""
        if self._live:
            self._write(EffectNoted(effect, what, text))

    # -- supervising the loop ---------------------------------------------------------------------

    def admit(self, delivery: Delivery) -> Awaitable[object] | None:
        """Write a delivery down, or see that it is the one recorded."""
        if self._live:
            moment_ns = round(self.inner.now() * 1e9)
            self.inner.set_moment(moment_ns / 1e9)
            what = cast("Any", delivery.what)
            self._write(EffectDelivered(delivery.effect, what, delivery.value, moment_ns))
            return self._journal.commit() if delivery.durable and self._journal else None
        if delivery is not self._expected:
            self._interrupt(f"task {delivery.effect}")
            return None
        self._expected = None
        entry = self._entries[self._cursor]
        assert isinstance(entry, EffectDelivered)
        self.inner.set_moment(entry.moment_ns / 1e9)
        delivery.durable = False
        self._advance(entry.effect)
        return None

    def dropped(self, delivery: Delivery) -> None:
        """Note that a delivery written down came too late."""
        self.note(delivery.effect, "dropped", delivery.what)

    def interrupted(self, inner: InnerLoop) -> None:
        """Write down that the main task was cancelled from outside."""
        if not self._live:
            self._interrupt("the main task")
            return
        inner.set_moment(round(inner.real_now() * 1e9) / 1e9)
        self._write(EffectDelivered("0", "cancel", "", round(inner.now() * 1e9)))

    def _interrupt(self, who: str) -> None:
        self._interrupted = True
        if who != "the main task" and self._error is None:
            self._error = ReplayDiverged(
                f"While run {self.run_id!r} was replayed, {who} was cancelled from outside."
            )

    def undeclared(self, what: str, place: str, mend: str) -> None:
        """Warn once per place; in a strict run or a replay, end the run."""
        text = (
            f"In run {self.run_id!r}, {what} from outside, by something that is no effect, so that no "
            f"replay can repeat it. {mend}."
        )
        if not self._live or self.strict:
            self.abort(UndeclaredEffectError(text))
            return
        self._exact = False
        if place in self._told:
            return
        self._told.add(place)
        self.warnings.append(text)
        self.note("", "undeclared", text)
        try:
            python_warnings.warn(text, UndeclaredEffectWarning, stacklevel=2)
        except UndeclaredEffectWarning:
            self.abort(UndeclaredEffectError(text))

    def failed(self, error: Exception) -> None:
        """End the run: its journal cannot be written."""
        if self._error is None:
            self._error = error
        self._cancelled += 1
        self.inner.cancel_main()

    def quiet(self) -> None:
        """Hand in what was recorded next."""
        if self._live or self._interrupted or self._expected is not None:
            return
        if self._error is not None:
            self.abort(cast("EffectError", self._error))
            return
        while self._cursor < self._end:
            entry = self._entries[self._cursor]
            if not isinstance(entry, EffectDelivered):
                self.abort(self._missing(entry))
                return
            if not self._drop_again(entry):
                self._deliver_again(entry)
                return
        self.abort(
            ReplayDiverged(
                f"The recording of run {self.run_id!r} ends here, but the program goes on: it waits "
                f"for {self._awaited()}.",
                effect=next(iter(self.pending), ""),
                actual=self._awaited(),
            )
        )

    def _awaited(self) -> str:
        waiting = [
            f"effect {pending.call.id} ({pending.call.kind})" for pending in self.pending.values()
        ]
        waiting += [f"a timer of {timer.delay} seconds" for timer in self.inner.timers.values()]
        return ", ".join(waiting) or "something that is no effect"

    def _drop_again(self, entry: EffectDelivered) -> bool:
        """Pass over a delivery that came too late when it was recorded."""
        after = self._cursor + 1
        if after >= len(self._entries) or not self._is_dropped(self._entries[after]):
            return False
        if self._entries[after].effect != entry.effect:  # type: ignore[union-attr]
            return False
        self.inner.set_moment(entry.moment_ns / 1e9)
        self._advance()
        self._advance()
        return True

    def _deliver_again(self, entry: EffectDelivered) -> None:
        delivery = self._delivery_of(entry)
        if delivery is None or (delivery.what == "timer" and delivery.value != entry.value):
            actual = "" if delivery is None else f"a timer of {delivery.value} seconds"
            error = self._missing(entry)
            self.abort(
                ReplayDiverged(
                    f"{error} {f'It set {actual}.' if actual else ''}".strip(),
                    effect=entry.effect,
                    recorded=error.recorded,
                    actual=actual,
                )
            )
            return
        self._expected = delivery
        wait = self._wait_before(entry)
        if wait <= 0:
            self.inner.deliver(delivery)
        else:
            self.inner.hooks.set_timer(wait, self.inner.deliver, delivery, context=Context())

    def _wait_before(self, entry: EffectDelivered) -> float:
        if self.pace is None:
            return 0.0
        now, moment = self.inner.hooks.time(), entry.moment_ns / 1e9
        if self._replay_began is None:
            self._replay_began = (now, self.inner.now())
        began, first = self._replay_began
        return (moment - first) / self.pace - (now - began)

    def _delivery_of(self, entry: EffectDelivered) -> Delivery | None:
        if entry.what == "timer":
            return self.inner.firing(entry.effect)
        if entry.what == "cancel":
            return self.inner.cancellation(entry.effect)
        pending = self.pending.get(entry.effect)
        return None if pending is None else Completion(pending, entry.what, entry.value)

    # -- performing, outside ----------------------------------------------------------------------

    def run_outside(
        self, pending: Pending, work: Callable[[], Awaitable[None]], hidden: tuple[str, ...]
    ) -> None:
        """Start the task that performs an effect."""
        context = outside_context()
        task = self.inner.start_outside(self._guarded(pending, work, hidden), context)
        pending.on_cancel = partial(self.inner.cancel_outside, task)

    async def _guarded(
        self, pending: Pending, work: Callable[[], Awaitable[None]], hidden: tuple[str, ...]
    ) -> None:
        try:
            if pending.call.declared == "external" and self._journal is not None:
                await self._journal.commit()
            await work()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and (pending.ended or self.inner.closed):
                raise
            text = error_text(error, hidden)
            if not pending.ended:
                pending.give("error", text)
            elif not self.inner.closed:
                self.note(pending.call.id, "abandoned", text)
        finally:
            self.inner.ended_outside()


def _over(pending: Pending) -> None:
    """Begin nothing."""


def _given(value: str, failed: bool, cause: Exception | None = None) -> Any:
    if not failed:
        return from_text(value)
    raise error_from(value) from cause


def _is_cancellation(error: BaseException | None) -> bool:
    return isinstance(error, asyncio.CancelledError)


def _alike(recorded: Entry, entry: Entry) -> bool:
    if isinstance(recorded, EffectStarted | EffectRead):
        return (
            isinstance(entry, EffectStarted | EffectRead)
            and recorded.digest == entry.digest
            and recorded.effect == entry.effect
            and recorded.kind == entry.kind
        )
    return getattr(recorded, "effect", "") == getattr(entry, "effect", "")


def _in_words(entry: Entry, request: str) -> str:
    if isinstance(entry, EffectStarted | EffectRead):
        shown = request if len(request) <= 200 else request[:197] + "..."
        return f"{entry.kind} {shown}".rstrip()
    if isinstance(entry, EffectCancelled):
        return "that it is wanted no more"
    if isinstance(entry, EffectDelivered):
        if entry.what == "timer":
            return f"a timer of {entry.value} seconds that went off"
        return f"its {entry.what}"
    return type(entry).message_name


def _difference(before: str, after: str) -> str:
    lines = difflib.unified_diff(
        _pretty(before), _pretty(after), "recorded", "program", lineterm="", n=1
    )
    shown = [line if len(line) <= 200 else line[:197] + "..." for line in lines][:40]
    return "\n" + "\n".join(shown) if shown else ""


def _pretty(text: str) -> list[str]:
    if not text:
        return []
    return json.dumps(json.loads(text), indent=1, ensure_ascii=False).splitlines()
