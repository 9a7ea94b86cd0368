"""Group commit: many appends, one transaction.

A transaction that must survive a power cut costs a wait for the disk, however much is in it. So
appends queue, and one of those who wait takes the whole queue and commits it for everybody:

- A thread that waits while nobody commits becomes the **leader**: it commits in its own thread, so
  that a lone writer pays for no change of threads. Those who wait meanwhile **follow**; when the
  leader is done, one of those whose appends are still queued leads next.
- A **writer** thread, started on first use, leads for appends that are awaited on an event loop, and
  a little later (``grace``) for those nobody waits for.

A leader whose group before was larger than the queue is now waits a little for the others to come
back, never longer than the commit before took: they were just acknowledged and often go on at once.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from time import monotonic, perf_counter
from typing import Final, TypeAlias

from atlas.core.log.planning import Request
from atlas.core.log.records import Record
from atlas.errors import LogClosedError

__all__ = ["Commit", "GroupCommit", "PendingAppend"]


class PendingAppend:
    """An append on its way; see `atlas.core.log.engine.Append`.

    Attributes:
        done: Whether it is stored, or has failed.
        request: What to append.
        claimed: Whether somebody waits, and so learns of a failure.
        error: Why it failed; None: it did not, or not yet.
    """

    __slots__ = (
        "_commits",
        "_gate",
        "_records",
        "_watchers",
        "claimed",
        "done",
        "error",
        "request",
    )

    def __init__(self, commits: GroupCommit, request: Request) -> None:
        self.request: Request = request
        self.done: bool = False
        self.claimed: bool = False
        self.error: Exception | None = None
        self._commits = commits
        self._records: tuple[Record, ...] | None = None
        self._gate: threading.Lock | None = None
        self._watchers: list[asyncio.Future[None]] | None = None

    def wait(self, timeout: float | None = None) -> tuple[Record, ...]:
        """Block until it is stored; see `atlas.core.log.engine.Append.wait`."""
        self.claimed = True
        if not self.done and not self._commits.settle(self, timeout):
            self.claimed = False
            raise TimeoutError(
                f"The append was not stored within {timeout} s; it is still on its way."
            )
        return self._result()

    def __await__(self) -> Generator[object, None, tuple[Record, ...]]:
        self.claimed = True
        if not self.done:
            future = self._commits.watch(self)
            if future is not None:
                try:
                    yield from future
                except BaseException:
                    self.claimed = False
                    raise
        if self.error is not None:
            raise self.error
        assert self._records is not None
        return self._records

    def succeed(self, records: tuple[Record, ...]) -> None:
        """Take note that it is stored, as these records. For the one who commits."""
        self._records = records
        self.done = True

    def fail(self, error: Exception) -> None:
        """Take note that nothing of it is stored. For the one who commits."""
        self.error = error
        self.done = True

    def _result(self) -> tuple[Record, ...]:
        if self.error is not None:
            raise self.error
        assert self._records is not None
        return self._records


Commit: TypeAlias = Callable[[Sequence[PendingAppend]], None]
"""Stores appends in one transaction and tells each what became of it by `PendingAppend.succeed` or
`PendingAppend.fail`. Raises nothing but interrupts; those it told nothing then are tried again."""


class GroupCommit:
    """A queue of appends and those who commit it. Any thread may call any method.

    Args:
        commit: Does one group; never called twice at the same time.
        grace: Seconds after which appends are committed that nobody waits for; None: each append is
            committed at once, by the thread that makes it.
        address: The log, for error texts.

    Attributes:
        took: Seconds that the last commit took.
    """

    # A queue as long as this is not left to the grace period.
    _LONG_QUEUE: Final = 1_000
    _PATIENCE: Final = 0.002
    # Seconds that an event loop may be held up.
    _QUICK: Final = 0.001

    def __init__(self, commit: Commit, *, grace: float | None, address: str) -> None:
        self._commit = commit
        self._grace = grace
        self._address = address
        self._mutex = threading.Lock()
        self._queue: list[PendingAppend] = []
        self._group: list[PendingAppend] = []
        self._failed: list[PendingAppend] = []
        self._leading = False
        self._closed = False
        self._siblings = 1
        self.took: float = 0.0
        self._wanted = 0
        self._crowd = threading.Event()
        self._armed = False
        self._work = threading.Event()
        self._hurry = threading.Event()
        # Whether the writer was woken for what is in the queue now.
        self._hurried = False
        self._writer: threading.Thread | None = None

    def submit(self, request: Request) -> PendingAppend:
        """Queue an append.

        Raises:
            LogClosedError: The log is closed.
        """
        append = PendingAppend(self, request)
        with self._mutex:
            if self._closed:
                raise LogClosedError(f"The log {self._address} is closed; open it again.")
            if not request.records and request.is_empty:
                append.succeed(())
                return append
            queue = self._queue
            queue.append(append)
            if self._wanted and len(queue) >= self._wanted:
                self._wanted = 0
                self._crowd.set()
            idle = not self._armed
            self._armed = True
        if self._grace is None:
            self.settle(append, None)
        elif idle:
            self._arm()
        elif len(queue) >= self._LONG_QUEUE and not self._hurry.is_set():
            self._hurry.set()
        return append

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for a commit or does one, and the last one was quick."""
        return not (self._leading or self._queue or self._closed) and self.took <= self._QUICK

    def settle(self, append: PendingAppend, timeout: float | None) -> bool:
        """Block until an append is stored or has failed; return False when the time is up."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            with self._mutex:
                if append.done:
                    if append._gate is not None:
                        # For the next thread that waits for the same append.
                        _open(append._gate)
                    return True
                lead = not self._leading
                if lead:
                    self._leading = True
                elif append._gate is None:
                    append._gate = threading.Lock()
                    append._gate.acquire()
                gate = append._gate
            if lead:
                self._lead()
                continue
            assert gate is not None
            if not self._follow(gate, deadline):
                return append.done

    def watch(self, append: PendingAppend) -> asyncio.Future[None] | None:
        """Return a future of the running loop that ends with the append; None: it has ended."""
        future = asyncio.get_running_loop().create_future()
        with self._mutex:
            if append.done:
                return None
            if append._watchers is None:
                append._watchers = []
            append._watchers.append(future)
            wake = not self._hurried
        if wake:
            self._wake_writer()
        return future

    def drain(self) -> None:
        """Block until everything queued so far is stored or has failed."""
        last = self._last()
        if last is not None:
            self.settle(last, None)

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything queued so far is stored; raise what failed unnoticed.

        Raises:
            TimeoutError: It took longer.
        """
        last = self._last()
        if last is not None and not self.settle(last, timeout):
            raise TimeoutError(
                f"The log {self._address} did not store everything within {timeout} s; it goes on."
            )
        self._raise_unnoticed()

    def close(self) -> None:
        """Refuse new appends, store the queued ones, end the writer; raise what failed unnoticed."""
        with self._mutex:
            self._closed = True
        # When Python is ending, the writer never runs again: a log that nobody closed is closed by the
        # garbage collector then, and what was queued was stored before.
        is_alone = sys.is_finalizing()
        if not (is_alone and self._leading):
            self.drain()
        self._work.set()
        self._hurry.set()
        if self._writer is not None and self._writer is not threading.current_thread():
            if not is_alone:
                self._writer.join()
            atexit.unregister(self.drain)
        self._raise_unnoticed()

    def disown(self) -> None:
        """Refuse new appends, and forget the queued ones: after a fork, the parent stores them."""
        self._mutex = threading.Lock()  # a thread that is not here may have held it
        self._closed = True
        self._queue, self._group, self._failed = [], [], []
        self._writer = None

    def _last(self) -> PendingAppend | None:
        with self._mutex:
            on_their_way = self._queue or self._group
            return on_their_way[-1] if on_their_way else None

    # -- leading and following --

    def _follow(self, gate: threading.Lock, deadline: float | None) -> bool:
        """Wait for the leader, or to be made the next one; return False when the time is up."""
        try:
            if deadline is None:
                return gate.acquire()
            if gate.acquire(timeout=max(0.0, deadline - monotonic())):
                return True
        except BaseException:
            self._abdicate()
            raise
        self._abdicate()
        return False

    def _abdicate(self) -> None:
        """Let somebody else lead: whoever stops waiting may just have been made the next leader."""
        if self._grace is not None:
            self._wake_writer()
            return
        with self._mutex:
            for append in self._queue:
                if append._gate is not None:
                    _open(append._gate)

    def _lead(self) -> None:
        try:
            self._gather()
            if self._group:
                started = perf_counter()
                self._commit_group(self._group)
                self.took = perf_counter() - started
        finally:
            self._hand_over()

    def _commit_group(self, group: list[PendingAppend]) -> None:
        try:
            self._commit(group)
        # Whatever is wrong, those who wait are told; tried again, it would go wrong for ever.
        except Exception as error:  # noqa: BLE001
            for append in group:
                if not append.done:
                    append.fail(error)

    def _gather(self) -> None:
        if len(self._queue) < self._siblings:
            with self._mutex:
                self._wanted = self._siblings
                self._crowd.clear()
            self._crowd.wait(min(self.took, self._PATIENCE))
        with self._mutex:
            self._wanted = 0
            self._group, self._queue = self._queue, []
            self._siblings = sum([append.claimed for append in self._group])

    def _hand_over(self) -> None:
        watchers: list[asyncio.Future[None]] = []
        with self._mutex:
            self._leading = False
            group, self._group = self._group, []
            interrupted = [append for append in group if not append.done]
            if interrupted:
                self._queue[:0] = interrupted
            for append in group:
                if append.error is not None and not append.claimed:
                    self._failed.append(append)
                if append._gate is not None:
                    _open(append._gate)
                if append._watchers is not None and append.done:
                    watchers += append._watchers
            waiting = bool(self._queue)
            heir = self._choose_heir() if waiting else None
            if heir is not None:
                _open(heir)
        if watchers:
            _tell(watchers)
        if waiting and heir is None:
            self._wake_writer()

    def _choose_heir(self) -> threading.Lock | None:
        return next((a._gate for a in self._queue if a._gate is not None), None)

    # -- the writer thread --

    def _arm(self) -> None:
        if self._writer is None:
            self._start_writer()
        self._work.set()

    def _wake_writer(self) -> None:
        if self._grace is None:
            return
        self._hurried = True
        self._hurry.set()
        self._arm()

    def _start_writer(self) -> None:
        with self._mutex:
            if self._writer is not None:
                return
            self._writer = threading.Thread(
                target=self._write, name=f"atlas-log-{self._address}", daemon=True
            )
            self._writer.start()
        # A program may end without closing the log; what it appended is stored all the same.
        atexit.register(self.drain)

    def _write(self) -> None:
        while True:
            self._work.wait()
            self._work.clear()
            self._hurry.wait(self._grace)
            with self._mutex:
                self._hurry.clear()
                self._hurried = False
                self._armed = False
                if self._closed and not self._queue:
                    return
                lead = bool(self._queue) and not self._leading
                if lead:
                    self._leading = True
            if lead:
                self._lead()

    def _raise_unnoticed(self) -> None:
        with self._mutex:
            failed, self._failed = self._failed, []
        errors = [a.error for a in failed if a.error is not None and not a.claimed]
        for append in failed:
            append.claimed = True
        if not errors:
            return
        if len(errors) > 1:
            errors[0].add_note(f"{len(errors) - 1} more appends failed that nobody waited for.")
        raise errors[0]


def _open(gate: threading.Lock) -> None:
    # Only under the mutex. It may be open already, and not yet passed through.
    if gate.locked():
        gate.release()


def _tell(watchers: list[asyncio.Future[None]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in watchers:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_end, futures)
        except RuntimeError:
            # The loop is closed: nobody waits there any more.
            continue


def _end(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
