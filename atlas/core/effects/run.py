"""A run: the inner loop, its journal or its recording, and the effects that are under way.

`RunContext` supervises an `InnerLoop`. Recording, it writes down what the run asks for and admits one delivery
after another. Replaying, it compares what the run asks for with the recording, entry by entry, and hands in
what the recording has next whenever the run is quiet. A fork or a resumed run does the one, then the other.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import uuid
import warnings as python_warnings
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from secrets import token_hex
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, cast

from atlas.core import replay_guard
from atlas.core.effect_layers import EffectCall, Layer, checked_layers
from atlas.core.effects.codec import Redactor, error_from, from_text
from atlas.core.effects.comparing import Alike, Asked, Recording
from atlas.core.effects.doubt import InDoubt, Leftovers, Skip, settle
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
    digest_of,
)
from atlas.core.effects.pending import Completion, Pending, text_of
from atlas.core.inner_loop import Delivery, InnerLoop, Place, outside_context
from atlas.core.redaction import Secrets
from atlas.errors import (
    ConfigurationError,
    EffectError,
    ReplayDiverged,
    UndeclaredEffectError,
    UndeclaredEffectWarning,
)

__all__ = ["InDoubt", "Mode", "RunContext", "Skip"]

Mode: TypeAlias = Literal["live", "record", "replay", "fork", "resume"]

AskedT = TypeVar("AskedT", EffectStarted, EffectRead)

_log = logging.getLogger("atlas.effects")
_LOST_PATIENCE = 100


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
        at: For a fork: how many deliveries to repeat; None: all that is recorded.
        seed: Of random numbers and UUIDs, 32 hexadecimal digits; None: a new one.
        layers: Around all effects, the outermost first; see `atlas.core.effect_layers`.
        in_doubt: What to do, resuming, about external effects of which nobody knows if they happened.
        strict: Raise `UndeclaredEffectError` where recording otherwise warns.
        pace: Replay at the recorded pace times this; None: as fast as possible.
        rewrite: Whether what is repeated is written to the journal again; None: in replays only.
        guard: Whether replaying refuses code of the run the network, files and processes.
        secrets: What is written as `REDACTED` wherever effects are asked for it or give it; the run
            itself gets that too, as a replay will.

    Attributes:
        is_live: Whether effects are performed now; else what was recorded is repeated.
        warnings: What got in that is no declared effect, in words.
        seed: The seed in use.
        leg: Which stretch of the run this is: 1, and one more each time it went on as a fork, in a
            replay at the same moment. What may be decided otherwise from there on (the model to ask)
            is to be decided anew in each. A run that is resumed is still on the leg it was on: what
            it asks for again needs the ids it had.

    Raises:
        ConfigurationError: ``pace``, ``layers`` or ``in_doubt`` make no sense.
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
        secrets: Secrets | None = None,
    ) -> None:
        _check(pace, in_doubt)
        self.run_id = run_id
        self.mode = mode
        self.layers: tuple[Layer, ...] = checked_layers(layers)
        self.in_doubt = in_doubt
        self.strict = strict
        self.pace = pace
        self.secrets: Secrets = Secrets() if secrets is None else secrets
        self.seed: str = seed or token_hex(16)
        self.warnings: list[str] = []
        self.leg: int = 0
        self.pending: dict[str, Pending] = {}
        self.requests: RequestStore = RequestStore()
        self._journal = journal if mode != "live" else None
        self._rewrite = mode == "replay" if rewrite is None else rewrite
        self._guard = guard
        self.is_live: bool = mode in ("live", "record")
        self._write: Callable[[Entry], object] = _write_nothing
        self._choose_writing()
        self._recording = Recording(run_id, mode, () if self.is_live else recorded, at)
        self._leftovers: Leftovers | None = None
        self._expected: Delivery | None = None
        self._error: BaseException | None = None
        self._cancelled = 0
        self._exact = True
        self._interrupted = False
        self._told: set[str] = set()
        self._left: deque[Pending] = deque()
        self._replay_began: tuple[float, float] | None = None

    # -- facts ------------------------------------------------------------------------------------

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
        if not self.is_live and not self._recording.begins_with_a_seed():
            raise ReplayDiverged(
                f"The recording of run {self.run_id!r} is empty or does not begin with a seed, so "
                f"there is nothing to repeat."
            )
        self.inner: InnerLoop = InnerLoop(self, self.run_id)
        if self.is_live:
            self._set_seed(RunSeeded(seed=self.seed, moment_ns=round(loop.time() * 1e9)))
        if self._guard and not self.is_live:
            replay_guard.install()
        await self.inner.enter()
        if self.is_live:
            self.inner.moment = self._seeded.moment_ns / 1e9  # as a replay will
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
        if self._leftovers is not None:
            self.warnings.extend(self._leftovers.unused())
        try:
            await self.commit()
        except Exception:
            if self._error is None:
                raise
        if self._error is not None and error is not self._error:
            raise self._error from (None if _is_cancellation(error) else error)

    def _check_all_done(self, error: BaseException | None) -> None:
        entry = self._recording.next
        if not self.is_live and entry is not None and not self._interrupted:
            self._error = self._recording.missing(entry)

    def _set_seed(self, seeded: RunSeeded) -> None:
        self.leg += 1
        self._seeded = seeded
        self.seed = seeded.seed
        # str seeds go through SHA-512 and are the same on every Python
        self.random: random.Random = random.Random(f"random {seeded.seed}")
        self._ids = random.Random(f"uuid {seeded.seed}")

    def uuid(self) -> uuid.UUID:
        """Return a random UUID that follows from the seed."""
        return uuid.UUID(int=self._ids.getrandbits(128), version=4)

    # -- writing and comparing --------------------------------------------------------------------

    def _choose_writing(self) -> None:
        # once, and not anew for each entry
        if self._journal is not None and (self.is_live or self._rewrite):
            self._write = self._journal.write

    async def commit(self) -> None:
        """Return when what was written is safe."""
        safe = self._safe()
        if safe is not None:
            await safe

    def _safe(self) -> Awaitable[object] | None:
        """Return what is awaited until what was written is safe; None: it is."""
        return None if self._journal is None else self._journal.commit()

    def _advance(self, handed_in: str = "") -> None:
        """Step over an entry that was repeated, and what has no meaning after it.

        ``handed_in`` is the effect whose end it is: going live, that one is not performed.
        """
        recording = self._recording
        while True:
            entry = recording.entries[recording.cursor]
            self._write(entry)
            if type(entry) is RunSeeded:
                self._set_seed(entry)
                if recording.cursor == 0:
                    self.inner.moment = entry.moment_ns / 1e9
            recording.cursor += 1
            if recording.cursor >= recording.end:
                break
            if not recording.next_is_silent():
                return
        if self.mode in ("fork", "resume"):
            self._go_live(handed_in)

    def _go_live(self, handed_in: str) -> None:
        self.is_live = True
        self._choose_writing()
        if self.mode == "resume":
            self._leftovers = Leftovers(self._recording, self.pending)
            self._write(RunContinued(kept=self._recording.end))
        else:
            seed = RunSeeded(seed=token_hex(16), moment_ns=round(self.inner.moment * 1e9))
            self._set_seed(seed)
            self._write(seed)
        self.inner.go_live()
        left = self._recording.left()
        for pending in list(self.pending.values()):
            if pending.call.id != handed_in and not pending.is_left and pending.call.id not in left:
                self.perform(pending)

    def _expect(self, asked: AskedT, request: str, alike: Alike | None) -> AskedT:
        """Compare what the run does with what was recorded, and step on."""
        if self._recording.repeats(asked, request, alike):
            recorded = self._recording.next
            self._advance()
            return cast("AskedT", recorded)
        raise self._diverged(asked, request)

    def _diverged(self, asked: Asked, request: str) -> EffectError:
        return self.abort(self._recording.diverged(asked, request))

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
        if self._interrupted and not self.is_live:
            raise ReplayDiverged(
                f"Replaying run {self.run_id!r} was cancelled; no effect can be repeated after that."
            )
        if threading.get_ident() != self.inner.thread:
            raise UndeclaredEffectError(
                f"An effect of run {self.run_id!r} was asked for in another thread than its "
                f"loop's, where no order can be kept. Ask for it in the run's tasks, or make all "
                f"that the thread does one @effect."
            )

    def call(
        self, place: Place, kind: str, declared: Declared, request: str, redactor: Redactor
    ) -> EffectCall:
        """Count an effect, and return what is known of it."""
        effect = place.next_effect()
        note = partial(self._note, effect, redactor)
        return EffectCall(kind, declared, request, effect, self.run_id, 1, note, redactor.hide)

    def start(self, pending: Pending, alike: Alike | None = None) -> None:
        """Begin an effect: write it down and perform it; or compare it, and wait.

        Before a fork, a recorded request that is ``alike`` will do, see `Effect`.
        """
        call = pending.call
        effect, kind = call.id, call.kind
        digest = digest_of(call.request)
        if self.is_live:
            base, shared, rest = self.requests.delta(effect, kind, call.request)
            self._write(EffectStarted(effect, kind, call.declared, digest, base, shared, rest))
            self.pending[effect] = pending
            self.perform(pending)
            return
        if not self._recording.has_next(EffectStarted, effect, kind, digest):
            asked = EffectStarted(effect, kind, call.declared, digest, "", 0, "")
            if not self._recording.repeats(asked, call.request, alike):
                raise self._diverged(asked, call.request)
        self._advance()
        pending.was_started = True
        self.pending[effect] = pending
        if self.is_live:  # from here on: what was to be repeated ended with its start
            self.perform(pending)

    def perform(self, pending: Pending) -> None:
        """Have an effect performed; or take what a crashed run had of it already."""
        if self._leftovers is not None and self._leftovers.hand_over(pending):
            return
        is_external = pending.call.declared == "external"
        is_in_doubt = is_external and pending.was_started and self.mode == "resume"
        work = self._perform(pending, is_in_doubt)
        pending.task = self.inner.start_outside(work, outside_context())

    def emit_cancelled(self, effect: str) -> None:
        """Write down, or compare, that an effect is wanted no more."""
        entry = EffectCancelled(effect)
        if self.is_live:
            self._write(entry)
        elif self._error is None and not self._interrupted:
            recorded = self._recording.next
            if type(recorded) is EffectCancelled and recorded.effect == effect:
                self._advance()
            else:
                self._diverged(entry, "")

    def left(self, pending: Pending) -> None:
        """Stop an effect that nobody can read any more. In any thread, wherever garbage is collected."""
        if self.is_live and not (self.inner.closed or self.inner.loop.is_closed()):
            self._left.append(pending)
            self.inner.hooks.call_soon_threadsafe(self._stop_left, context=Context())

    def _stop_left(self) -> None:
        while self._left and not self.inner.closed:
            pending = self._left.popleft()
            if pending.ended:
                continue
            del self.pending[pending.call.id]
            self.note(pending.call.id, "left", "nobody reads it any more")
            pending.stop()

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
        if is_over if self.is_live else nothing is not None and not self.repeats(place, kind):
            place.next_effect()
            return nothing
        redactor = Redactor(secrets=self.secrets)
        call = self.call(place, kind, "pure", "", redactor)

        async def settled(pending: Pending) -> None:
            pending.give_result(await work())

        pending = Pending(self, call, redactor, settled)
        self.start(pending)
        return await pending.result()

    def repeats(self, place: Place, kind: str) -> bool:
        """Return whether what was recorded next is that an effect of this kind starts here."""
        return not self.is_live and self._recording.has_next(
            EffectStarted, f"{place.path}:{place.effects}", kind
        )

    # Any: whatever the effect gives
    def read(
        self,
        place: Place,
        kind: str,
        produce: Callable[[EffectCall], Any],
        *,
        declared: Declared = "pure",
        request: str = "",
        redactor: Redactor | None = None,
        alike: Alike | None = None,
    ) -> Any:
        """Perform an effect that does not wait, at once; or repeat what it gave."""
        self.check()
        digest = digest_of(request) if request else ""
        if not self.is_live:
            effect = place.next_effect()
            recorded = self._expect(EffectRead(effect, kind, digest, request, ""), request, alike)
            return _given(recorded.value, recorded.failed)
        redactor = redactor or Redactor(secrets=self.secrets)
        call = self.call(place, kind, declared, request, redactor)
        cause: BaseException | None = None
        try:
            value = text_of(call, redactor, produce(call))
        except BaseException as error:  # noqa: BLE001  recorded, and raised again
            value, cause = redactor.error(error), error
        self._write(EffectRead(call.id, kind, digest, request, value, cause is not None))
        return _given(value, cause is not None, cause)

    def note(self, effect: str, what: str, text: str) -> None:
        """Write something for people to the journal."""
        if self.is_live:
            self._write(EffectNoted(effect, what, text))

    def _note(self, effect: str, redactor: Redactor, what: str, text: str) -> None:
        self.note(effect, what, redactor.scrubbed(text))

    # -- supervising the loop ---------------------------------------------------------------------

    def admit(self, delivery: Delivery) -> Awaitable[object] | None:
        """Write a delivery down, or see that it is the one recorded."""
        if self.is_live:
            if self._left:
                self._stop_left()  # what is kept of the run is then known to need nothing of these
            moment_ns = round(self.inner.real_now() * 1e9)
            self.inner.moment = moment_ns / 1e9  # as a replay will
            entry = EffectDelivered(delivery.effect, delivery.what, delivery.value, moment_ns)
            self._write(entry)
            return self._safe() if delivery.durable else None
        if delivery is not self._expected:
            self._interrupt(f"task {delivery.effect}")
            return None
        self._expected = None
        recorded = self._recording.next
        assert isinstance(recorded, EffectDelivered)
        self.inner.moment = recorded.moment_ns / 1e9
        self._advance(recorded.effect)
        return None

    def dropped(self, delivery: Delivery) -> None:
        """Note that a delivery written down came too late."""
        self.note(delivery.effect, "dropped", delivery.what)

    def interrupted(self, inner: InnerLoop) -> None:
        """Write down that the main task was cancelled from outside."""
        if not self.is_live:
            self._interrupt("the main task")
            return
        moment_ns = round(inner.real_now() * 1e9)
        inner.moment = moment_ns / 1e9
        self._write(EffectDelivered("0", "cancel", "", moment_ns))

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
        if not self.is_live or self.strict:
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
        if self.inner.closed:
            _log.warning("The journal of run %r could not be written: %r", self.run_id, error)
            return
        if self._error is None:
            self._error = error
        self._cancelled += 1
        self.inner.cancel_main()

    def quiet(self) -> None:
        """Hand in what was recorded next."""
        if self.is_live or self._interrupted or self._expected is not None:
            return
        if self._error is not None:
            self.abort(cast("EffectError", self._error))
            return
        recording = self._recording
        while (entry := recording.next) is not None:
            if not isinstance(entry, EffectDelivered):
                self.abort(recording.missing(entry))
                return
            if not recording.next_is_dropped():
                self._deliver_again(entry)
                return
            self.inner.moment = entry.moment_ns / 1e9
            self._advance()
            self._advance()
        if self.is_live:  # what was repeated ended with a delivery that was not handed in
            return
        self.abort(recording.ends_here(self._awaited(), next(iter(self.pending), "")))

    def _awaited(self) -> str:
        waiting = [
            f"effect {pending.call.id} ({pending.call.kind})" for pending in self.pending.values()
        ]
        waiting += [f"a timer of {timer.delay} seconds" for timer in self.inner.timers.values()]
        return ", ".join(waiting) or "something that is no effect"

    def _deliver_again(self, entry: EffectDelivered) -> None:
        delivery = self._delivery_of(entry)
        if delivery is None:
            self.abort(self._recording.missing(entry))
            return
        if delivery.what == "timer" and delivery.value != entry.value:
            timer = f"a timer of {delivery.value} seconds"
            self.abort(self._recording.missing(entry, timer))
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
            self._replay_began = (now, self.inner.moment)
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

    async def _perform(self, pending: Pending, is_in_doubt: bool) -> None:
        try:
            if is_in_doubt and not await settle(pending, self.in_doubt):
                return
            safe = self._safe() if pending.call.declared == "external" else None
            if safe is not None:
                await safe
            await pending.work(pending)
        except asyncio.CancelledError as error:
            if not pending.is_wanted:
                raise
            pending.give("error", pending.redactor.error(error))
        # Whatever it is: the run waits for it, and would wait for ever.
        except BaseException as error:
            text = pending.redactor.error(error)
            if not pending.is_wanted:
                self._tell_abandoned(pending.call, text)
            else:
                pending.give("error", text)
            if not isinstance(error, Exception):
                raise
        finally:
            self.inner.ended_outside(pending.task)

    def _tell_abandoned(self, call: EffectCall, text: str) -> None:
        """Note what an effect failed with that the run did not wait for any more."""
        try:
            self.note(call.id, "abandoned", text)
        except Exception:  # noqa: BLE001  after an abandoned run, its journal may be closed
            _log.warning(
                "Effect %r (%s) failed after run %r was over: %s",
                call.id,
                call.kind,
                self.run_id,
                text,
            )


def _write_nothing(entry: Entry) -> None:
    """Leave an entry out: there is no journal, or it has this one."""


def _check(pace: object, in_doubt: object) -> None:
    if pace is not None and not (isinstance(pace, int | float) and 0 < pace < math.inf):
        raise ConfigurationError(
            f"pace is {pace!r}. Give a number above 0: 1 is as fast as it was recorded, 2 twice as fast; "
            f"or None, for as fast as possible."
        )
    if not (in_doubt in ("raise", "retry") or isinstance(in_doubt, Skip) or callable(in_doubt)):
        raise ConfigurationError(
            f"in_doubt is {in_doubt!r}. Give 'raise', 'retry', Skip(value), an async function that "
            f"decides, or, to `app.resume`, 'ask'."
        )


def _given(value: str, failed: bool, cause: BaseException | None = None) -> Any:
    if not failed:
        return from_text(value)
    raise error_from(value) from cause


def _is_cancellation(error: BaseException | None) -> bool:
    return isinstance(error, asyncio.CancelledError)
