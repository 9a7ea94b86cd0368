"""Keeps everything that crosses a bus in a log, run by run, without the publisher noticing.

The bus hands each message to `MessageLog` first of all its subscribers, which puts it into a queue
and returns. A thread of the log's own takes what has gathered, packs it into one page per run (see
`atlas.core.message_pages`) and appends the pages in one transaction. Whoever must know that
something is stored waits for `commit` or `flush`; a run that is alone in asking for that has it noted in
its own thread, if the log is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Final, Literal, NamedTuple, TypeAlias

from atlas.core.event_bus import EventBus, HandlerFailed, Subscription
from atlas.core.log.addresses import MEMORY
from atlas.core.log.engine import Engine
from atlas.core.log.records import NewRecord
from atlas.core.message_pages import (
    PAGE,
    PageRedactor,
    ends_with,
    joined,
    page_text,
    plain,
    pressed,
)
from atlas.core.messages import Event, FrozenDict, Message, message, time_of
from atlas.core.redaction import Secrets
from atlas.errors import (
    AtlasError,
    BusClosedError,
    ConfigurationError,
    LogClosedError,
    LogUnavailableError,
    VersionConflictError,
)

__all__ = ["Fate", "Gate", "LogFailed", "LogRecovered", "MessageLog", "stream_of"]

_FIRST: Final = 2**31
"""Priority of the log's subscription: what happens is kept before anybody acts upon it."""

_NO_ALIASES: Final[Mapping[str, str]] = FrozenDict()

_RETRY_AFTER: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds before the log is tried again; the last for every further time."""

_MOST_AT_ONCE: Final = 64
_LARGEST_AT_ONCE: Final = 65_536
"""Messages, and bytes of a page, that are written in the thread of a loop."""

_MOST_NOTED: Final = 24_000
"""Bytes that the engine may hold as notes before it is asked to enter them: its file stays that much larger."""

_MOST_CONFLICTS: Final = 16
_RUNS_REMEMBERED: Final = 10_000


def stream_of(run: str) -> str:
    """Return the stream of the log in which a run is kept."""
    return f"run/{run}"


@message("log.failed")
class LogFailed(Event):
    """Messages cannot be written at the moment; they wait, and writing is tried again.

    Attributes:
        problem: What is wrong, and what to do.
        waiting: How many messages wait.
    """

    problem: str
    waiting: int


@message("log.recovered")
class LogRecovered(Event):
    """What could not be written before is written now."""


class _Mark:
    """A place in the queue: told when all that was put in before it is stored, or cannot be."""

    __slots__ = ("_tell", "error", "run")

    def __init__(self, tell: Callable[[], object], run: str | None) -> None:
        self._tell: Callable[[], object] | None = tell
        self.run = run
        self.error: BaseException | None = None

    def tell(self) -> None:
        """Tell who waits for it, once."""
        # What it calls may hold this: a cycle for the garbage collector.
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()


Fate: TypeAlias = Literal["keep", "outside", "drop"]
"""What becomes of a message: it is kept; kept as one of which the run itself knows nothing (see
`atlas.core.message_pages.OUTSIDE`); not kept, because it is stored already."""

Gate: TypeAlias = Callable[[Message], Fate]
"""Decides for each message of a run, in the publisher's thread and context."""


class _Page(NamedTuple):
    run: str
    payload: bytes
    size: int
    time_ns: int | None


_Kept: TypeAlias = "tuple[str, Message, bool]"
"""A run, a message of it, and whether that is outside. A plain tuple: there is one for each message."""

_Entry: TypeAlias = "_Kept | _Mark"


class _Try(NamedTuple):
    """Records that the engine was given, or will be, and where their runs are before and after them.

    Tried again, they are refused if they are stored already, as they say their versions.
    """

    pages: list[_Page]
    records: list[NewRecord]
    before: dict[str, int]
    reached: dict[str, int]

    def pressed(self) -> _Try:
        """Return the same as it is appended: of notes, many are compressed together."""
        pages = [page._replace(payload=joined([page.payload])) for page in self.pages]
        records = [
            record._replace(payload=page.payload)
            for record, page in zip(self.records, pages, strict=True)
        ]
        return self._replace(pages=pages, records=records)


class _InHand:
    """What was taken from the queue, and is not known to be stored."""

    __slots__ = ("entries", "tried")

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.tried: _Try | None = None


class MessageLog:
    """Writes the messages of a bus into a log. Attach it to a bus; close it to store the rest.

    Messages of one run are stored in the order in which the bus handed them over: for one publisher,
    the order of publishing.

    When the log cannot be written (a full disk, a lost server), messages wait in memory, the bus is
    told by ``log.failed``, and writing is tried again until it works (``log.recovered``). A publisher
    waits when ``capacity`` messages wait, ``patience`` seconds at most; then its message is not
    kept, which shows as ``bus.handler_failed``, in ``lost`` and as an error of `close`.

    Args:
        engine: The log. It stays the caller's to close.
        session: The run to which messages belong that are published outside every run. None: they
            are not kept, and neither are those of runs that no gate watches.
        capacity: How many messages may wait.
        interval: Seconds to gather messages before they are written; `commit` does not wait for it.
        page: Most messages of one record.
        patience: Seconds that a publisher waits for room.
        secrets: What is replaced in all that is written; see `PageRedactor`.

    Attributes:
        lost: Messages that could not be kept.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        session: str | None = None,
        capacity: int = 65_536,
        interval: float = 0.25,
        page: int = 512,
        patience: float = 10.0,
        secrets: Secrets | None = None,
    ) -> None:
        for name, given in (("capacity", capacity), ("page", page)):
            if given < 1:
                raise ConfigurationError(f"{name} is {given}. Give at least 1.")
        self.lost: int = 0
        self._engine = engine
        self._session = session
        self._capacity = capacity
        self._interval = interval
        self._page = page
        self._patience = patience
        self._secrets = Secrets() if secrets is None else secrets
        self._redactors: dict[str, PageRedactor] = {}
        self._queue: deque[_Entry] = deque()
        self._gates: Mapping[str, Gate] = {}
        self._aliases: Mapping[str, Mapping[str, str]] = {}
        self._bases: Mapping[str, int] = {}
        self._versions: dict[str, int] = {}
        self._overtaken: Mapping[str, VersionConflictError] = {}
        self._buses: list[EventBus] = []
        self._unheard: list[EventBus] = []
        self._listening = threading.RLock()
        self._subscriptions: list[Subscription[Message]] = []
        self._problems: list[str] = []
        # What wakes the thread: whether somebody waits. Half the price of an event, at each commit.
        self._bell: SimpleQueue[bool] = SimpleQueue()
        self._has_rung = False
        self._stop = threading.Event()
        self._room_lock = threading.RLock()
        self._room = threading.Condition(self._room_lock)
        self._is_crowded = False  # whether somebody may wait for room
        self._failing: BaseException | None = None
        self._closing = False
        self._is_over = False
        self._process = os.getpid()  # in one forked from it there is no thread
        # Held by whoever takes from the queue until that is written.
        self._writing = threading.RLock()
        self._in_hand: _InHand | None = None
        self._asked_last: str | None = None
        self._noted = 0
        self._thread = threading.Thread(target=self._write_all, name="atlas-log", daemon=True)
        self._thread.start()

    @property
    def outlives_the_process(self) -> bool:
        """Whether what is stored is there after a crash, so that it is worth waiting for."""
        return self._engine.address != MEMORY

    # -- taking --

    def attach(self, bus: EventBus) -> None:
        """Keep every message that this bus publishes from now on."""
        if self._closing:
            raise LogClosedError("This message log is closed. Make a new one.")
        self._buses.append(bus)
        self._unheard.append(bus)
        if self._session is not None or self._gates:
            self._listen()

    def _listen(self) -> None:
        """Subscribe to what is attached: not before there is anything to keep, as it costs each message."""
        with self._listening:  # who comes second must not go on before there is one who hears
            while self._unheard:
                bus = self._unheard.pop()
                self._subscriptions.append(
                    bus.subscribe("**", self._keep, priority=_FIRST, name="atlas log")
                )

    def watch(
        self,
        run: str,
        gate: Gate | None,
        aliases: Mapping[str, str] = _NO_ALIASES,
        *,
        seen: int | None = None,
    ) -> None:
        """Let a gate decide what becomes of the messages of a run; None: keep them all again.

        A run that was ever watched is written by nobody else. If another process does, it has gone
        on with the run, and nothing more of it is kept here, so that it is not a mixture of both.

        Args:
            run: The run.
            gate: Decides.
            aliases: Ids under which messages that the gate dropped are stored already, by those that
                they were published with. Looked at when messages are written, so it may grow.
            seen: How many messages of it were stored when it was read to go on from there.
        """
        with self._listening:  # or of two that begin in two threads, one is not kept
            if gate is not None:
                self._overtaken = {
                    known: of for known, of in self._overtaken.items() if known != run
                }
                if seen is not None:  # what was written here since is no news
                    self._versions[run] = max(seen, self._versions.get(run, 0))
            self._aliases = {**self._aliases, run: aliases}
            gates = {known: of for known, of in self._gates.items() if known != run}
            self._gates = gates if gate is None else {**gates, run: gate}
            if self._gates:
                self._listen()

    def begin(self, run: str, after: int) -> None:
        """Number the messages of a run from ``after`` + 1 on: it shares that many with another."""
        with self._listening:
            self._bases = {**self._bases, run: after}

    def _keep(self, each: Message) -> None:
        known = each._stamp
        assert known is not None
        run = known[3] if len(known) == 7 else None
        gate = None if run is None else self._gates.get(run)
        if run is None or gate is None:
            if self._session is None:
                return
            run = run or self._session
            fate: Fate = "keep"
        else:
            fate = gate(each)
            if fate == "drop":
                return
        queue = self._queue
        if len(queue) >= self._capacity:
            if type(each) is HandlerFailed:
                return  # most likely it says that there is no room, and must not wait for it
            self._wait_for_room()
        queue.append((run, each, fate == "outside"))
        if not self._has_rung:  # once per burst is enough
            self._has_rung = True
            self._bell.put(False)

    def _wait_for_room(self) -> None:
        if threading.current_thread() is self._thread:
            return  # its own news of a failure must not wait for itself
        self._bell.put(True)
        until = time.monotonic() + self._patience
        with self._room:
            while True:
                self._is_crowded = True  # anew each time, and before looking: else nobody tells
                if len(self._queue) < self._capacity:
                    return
                left = until - time.monotonic()
                if left <= 0 or self._closing:
                    self.lost += 1
                    raise LogUnavailableError(
                        f"{self._capacity:,} messages wait to be written to {self._engine.address} "
                        f"and there is no room for another: {self._failing or 'it is too slow.'}"
                    )
                self._room.wait(left)

    # -- waiting --

    def commit(self, run: str | None = None) -> asyncio.Future[None]:
        """Return what is awaited until everything published so far is stored as safely as promised.

        It ends with `LogUnavailableError` if that cannot be written; it is kept and tried again.

        Args:
            run: Whose messages count; None: those of all. That another process has gone on with a run
                is no error of the others.
        """
        stored = self.begin_commit(run)
        if stored is None:
            stored = asyncio.get_running_loop().create_future()
            stored.set_result(None)
        return stored

    def begin_commit(self, run: str | None = None) -> asyncio.Future[None] | None:
        """Do as `commit`; None: it is done."""
        if self._is_alone(run) and self._write_at_once():
            return None
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if stored.done():
                return
            if mark.error is None:
                stored.set_result(None)
            else:
                stored.set_exception(mark.error)

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle)

        mark = self._mark(tell, run)
        return stored

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything published so far is stored.

        Raises:
            LogUnavailableError: It cannot be written, or not in this time; it is tried again.
        """
        stored = threading.Event()
        mark = self._mark(stored.set)
        if not stored.wait(timeout):
            raise LogUnavailableError(
                f"{len(self._queue):,} messages were not written to {self._engine.address} within "
                f"{timeout} s: {self._failing or 'it is too slow'}. They are tried again."
            )
        if mark.error is not None:
            raise mark.error

    def _mark(self, tell: Callable[[], object], run: str | None = None) -> _Mark:
        self._check_open()
        mark = _Mark(tell, run)
        self._queue.append(mark)
        self._bell.put(True)
        return mark

    def _check_open(self) -> None:
        # Not whether the thread is alive: to be interrupted while one asks that ends it, before 3.13.
        if self._is_over or os.getpid() != self._process:
            raise LogClosedError("This message log is closed.")

    # -- writing at once --

    def _is_alone(self, run: str | None) -> bool:
        """Return whether it is most likely only this run that asks for what is stored.

        Where several ask in turn, the thread stores in one transaction what all of them wait for.
        """
        is_alone = run is not None and run == self._asked_last
        self._asked_last = run
        return is_alone and not self._overtaken

    def _write_at_once(self) -> bool:
        """Store what waits, in this thread, if that is quick; False: it is left to the log's thread.

        To wake that thread, and to be woken by it, takes longer than all that is to be done.

        In the main thread an interrupt may be raised at any call. What was taken is to be found in
        `_in_hand` at each of them until it is known to be stored, and the lock is let go of without
        asking a variable whether it was taken.
        """
        self._check_open()
        if self._closing or self._failing is not None or len(self._queue) > _MOST_AT_ONCE:
            return False
        is_done = False
        try:
            if self._writing.acquire(blocking=False) and self._in_hand is None:
                is_done = not self._queue or self._stored(_InHand())
        finally:
            try:
                self._writing.release()
            except RuntimeError:
                is_done = False  # somebody else has it
        return is_done

    def _stored(self, in_hand: _InHand) -> bool:
        self._in_hand = in_hand
        queue, taken = self._queue, in_hand.entries
        for _ in range(len(queue)):
            taken.append(queue[0])
            queue.popleft()
        self._tell_of_room()
        runs, marks = _by_run(taken)
        if marks or not runs.keys() <= self._versions.keys():  # to look them up may take long
            return False
        try:
            texts = {run: self._text(run, kept) for run, kept in runs.items()}
            if max(map(len, texts.values())) > _LARGEST_AT_ONCE:
                return False
            pages = [_page(run, runs[run], plain(text)) for run, text in texts.items()]
            in_hand.tried = tried = self._prepared(pages)
            if not self._engine.note(tried.records, joined):
                return False
        # Whatever it is, the thread comes to the same, and tells those who must know.
        except Exception:  # noqa: BLE001
            return False
        self._versions.update(tried.reached)
        self._in_hand = None
        noted = self._noted
        self._noted = noted + sum([len(page.payload) for page in pages])
        if noted < _MOST_NOTED <= self._noted:
            self._bell.put(True)
        return True

    # -- writing --

    def _write_all(self) -> None:
        while True:
            if not self._bell.get():
                self._gather()
            # before looking: what comes after is seen in the next round
            self._has_rung = False
            while self._queue or self._in_hand is not None:
                with self._writing:
                    marks = self._write(*self._taken())
                for mark in marks:  # who goes on because of that may have more to write
                    mark.tell()
            self._enter_notes()
            if self._closing and not self._queue:
                self._is_over = True
                return

    def _enter_notes(self) -> None:
        """Have what was noted take its place in the log, where it takes less room."""
        if self._noted:
            self._noted = 0
            # While the log is not available they are as safe as before, and the next time may be better.
            with self._told("Notes are not entered", 0), contextlib.suppress(LogUnavailableError):
                self._engine.flush()

    def _gather(self) -> None:
        """Wait a while for more messages, unless somebody waits for those that are there."""
        until = time.monotonic() + self._interval
        while not self._closing and len(self._queue) < self._page:
            try:
                if self._bell.get(timeout=max(0.0, until - time.monotonic())):
                    return
            except Empty:
                return

    def _taken(self) -> tuple[list[_Entry], _Try | None]:
        """Return what is to be written next, and what of it was tried already."""
        queue, in_hand = self._queue, self._in_hand
        taken: list[_Entry] = []
        tried: _Try | None = None
        if in_hand is not None:
            if in_hand.entries and queue and queue[0] is in_hand.entries[-1]:
                queue.popleft()  # an interrupt came in between
            self._redactors.clear()  # they may be in the middle of a page
            tried = None if in_hand.tried is None else in_hand.tried.pressed()
            taken = in_hand.entries if tried is None else []
            self._in_hand = None
        while queue and len(taken) < 8 * self._page:
            taken.append(queue.popleft())
        self._tell_of_room()
        return taken, tried

    def _tell_of_room(self) -> None:
        if not self._is_crowded:  # as nearly always
            return
        with self._room_lock:  # not the condition, whose own code an interrupt can break off
            self._is_crowded = False
            self._room.notify_all()

    def _write(self, entries: list[_Entry], tried: _Try | None) -> list[_Mark]:
        """Store messages, and return the marks among them, to be told what became of that."""
        runs, marks = _by_run(entries)
        error: BaseException | None = None
        try:
            if tried is not None:
                error = self._append(tried.pages, marks, tried)
            pages = [page for run, kept in runs.items() for page in self._pages(run, kept)]
            if pages:
                error = self._append(pages, marks) or error
        # Whatever it is, the thread must live on: others wait for it.
        except Exception as unexpected:  # noqa: BLE001
            lost = len(entries) - len(marks) + (0 if tried is None else _messages_on(tried.pages))
            error = self._give_up(lost, LogUnavailableError(repr(unexpected)))
        for mark in marks:
            is_of_others = error in self._overtaken.values() and not (
                mark.run is None or mark.run in self._overtaken
            )
            mark.error = None if is_of_others else error
        return marks

    def _pages(self, run: str, kept: list[_Kept]) -> Iterator[_Page]:
        for first in range(0, len(kept), self._page):
            part = kept[first : first + self._page]
            try:
                yield _page(run, part, pressed(self._text(run, part)))
            except AtlasError:
                self._redactors.pop(run, None)  # it may be in the middle of that page
                # One that cannot be written must not take the others with it.
                for each in part:
                    with self._told("A message could not be written"):
                        yield _page(run, [each], pressed(self._text(run, [each])))

    def _text(self, run: str, kept: list[_Kept]) -> bytes:
        outside = {place for place, each in enumerate(kept) if each[2]}
        redactor = self._redactors.get(run)
        if redactor is None:
            if len(self._redactors) > _RUNS_REMEMBERED:
                self._redactors.clear()
            redactor = self._redactors[run] = PageRedactor(self._secrets)
        aliases = self._aliases.get(run, _NO_ALIASES)
        return page_text(run, [each[1] for each in kept], outside, aliases, redactor)

    @contextlib.contextmanager
    def _told(self, what: str, count: int = 1) -> Iterator[None]:
        try:
            yield
        except AtlasError as error:
            self.lost += count
            self._problems.append(f"{what}: {error}")
            self._tell(LogFailed(f"{what}, and is not kept: {error}", len(self._queue)))

    def _append(
        self, pages: list[_Page], marks: list[_Mark], tried: _Try | None = None
    ) -> BaseException | None:
        """Append, again and again while the log is unavailable; return why it was given up."""
        refused: BaseException | None = None
        for attempt in itertools.count():
            pages, overtaken = self._without_overtaken(pages)
            refused = refused or overtaken
            if not pages:
                return refused
            if tried is None or attempt or overtaken:
                tried = self._prepared(pages)
            records, reached = tried.records, tried.reached
            try:
                self._engine.append(records, expect=self._expected(tried.before)).wait()
            except LogUnavailableError as error:
                if self._is_given_up(attempt, error, pages, marks):
                    return error
            except VersionConflictError as error:
                if self._is_stored(pages[-1], reached):
                    self._versions.update(reached)
                    break
                if attempt >= _MOST_CONFLICTS:
                    return self._give_up(_messages_on(pages), error)
                self._look_who_wrote(pages, error)
            except AtlasError as error:
                return self._give_up(_messages_on(pages), error)
            else:
                self._versions.update(reached)
                break
        if self._failing is not None:
            self._failing = None
            self._tell(LogRecovered())
        return refused

    def _is_stored(self, page: _Page, reached: Mapping[str, int]) -> bool:
        """Return whether a page is there: a server that was lost may have stored it, and all with it."""
        last = self._engine.read(stream_of(page.run), newest_first=True, limit=1)
        return (
            bool(last)
            and last[0].version == reached[page.run]
            and last[0].payload is not None
            and ends_with(last[0].payload, page.payload)
        )

    def _look_who_wrote(self, pages: list[_Page], error: VersionConflictError) -> None:
        """Forget what was known of the streams that others wrote to; give up runs of our own there."""
        for run in {page.run for page in pages}:
            known = self._versions.pop(run, None)
            head = self._head(run)
            if run not in self._aliases:  # of several processes, such as no run at all
                continue
            if known == head:
                self._versions[run] = head
                continue
            problem = VersionConflictError(
                f"Another process has gone on with run {run}, so that this one cannot any more. "
                f"Resume a run in one process only, when the one that recorded it is dead.",
                expected=error.expected if known is None else known,
                actual=head,
            )
            problem.__cause__ = error
            self._overtaken = {**self._overtaken, run: problem}
            with self._told("A run goes on elsewhere", 0):
                raise problem

    def _without_overtaken(
        self, pages: list[_Page]
    ) -> tuple[list[_Page], VersionConflictError | None]:
        """Return the pages of runs that are ours still, and why the others are not."""
        overtaken = self._overtaken
        if not overtaken:
            return pages, None
        lost = [page for page in pages if page.run in overtaken]
        self.lost += _messages_on(lost)
        refused = overtaken[lost[0].run] if lost else None
        return [page for page in pages if page.run not in overtaken], refused

    def _prepared(self, pages: list[_Page]) -> _Try:
        if len(self._versions) > _RUNS_REMEMBERED:
            self._versions = {run: at for run, at in self._versions.items() if run in self._gates}
        before: dict[str, int] = {}
        reached: dict[str, int] = {}
        records: list[NewRecord] = []
        for page in pages:
            run, payload, size, time_ns = page
            at = reached.get(run)
            if at is None:
                at = self._versions.get(run)
                if at is None:
                    at = self._versions[run] = self._head(run)
                before[run] = at
            # a page's version counts messages: it is that of the last one of the page
            at += size
            reached[run] = at
            records.append(NewRecord(stream_of(run), PAGE, payload, at, time_ns))
        return _Try(pages, records, before, reached)

    def _expected(self, before: Mapping[str, int]) -> dict[str, int]:
        """Return where streams must be, if nobody else has written to them."""
        # One that shares messages with another begins with none of its own.
        return {
            stream_of(run): 0 if at == self._bases.get(run, 0) else at for run, at in before.items()
        }

    def _head(self, run: str) -> int:
        return self._engine.head(stream_of(run)) or self._bases.get(run, 0)

    def _is_given_up(
        self, attempt: int, error: LogUnavailableError, pages: list[_Page], marks: list[_Mark]
    ) -> bool:
        if self._closing:
            self._give_up(_messages_on(pages), error)
            return True
        if self._failing is None:
            self._tell(LogFailed(str(error), len(self._queue) + _messages_on(pages)))
        self._failing = error
        for mark in (*marks, *(entry for entry in list(self._queue) if isinstance(entry, _Mark))):
            mark.error = error
            mark.tell()
        self._stop.wait(_RETRY_AFTER[min(attempt, len(_RETRY_AFTER) - 1)])
        return False

    def _give_up(self, count: int, error: AtlasError) -> AtlasError:
        with self._told(f"{count:,} messages could not be written", count):
            raise error
        return error

    def _tell(self, news: Event) -> None:
        for bus in self._buses:
            with contextlib.suppress(BusClosedError):
                bus.publish(news)

    # -- the end --

    def close(self, timeout: float | None = 30.0) -> None:
        """Store what waits and stop; the buses and the log stay open. Idempotent.

        Args:
            timeout: Seconds to wait for a log that is slow.

        Raises:
            LogUnavailableError: Messages could not be kept, now or before; the text says which.
        """
        if self._closing:
            return
        for subscription in self._subscriptions:
            subscription.close()
        self._closing = True
        self._stop.set()
        self._bell.put(True)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._problems.append(f"{len(self._queue):,} messages were not written in {timeout} s")
        if self._problems or self.lost:
            problems = "; ".join(self._problems[:3]) or f"{self._capacity:,} messages waited"
            raise LogUnavailableError(
                f"Not all messages are kept in {self._engine.address} ({self.lost:,} lost): "
                f"{problems.rstrip('.')}."
            )


def _by_run(entries: list[_Entry]) -> tuple[dict[str, list[_Kept]], list[_Mark]]:
    runs: dict[str, list[_Kept]] = {}
    marks: list[_Mark] = []
    for entry in entries:
        if isinstance(entry, tuple):
            runs.setdefault(entry[0], []).append(entry)
        else:
            marks.append(entry)
    return runs, marks


def _page(run: str, kept: list[_Kept], payload: bytes) -> _Page:
    return _Page(run, payload, len(kept), time_of(kept[-1][1]))


def _messages_on(pages: list[_Page]) -> int:
    return sum(page.size for page in pages)
