"""Connections to PostgreSQL: lent, kept, replaced when they are lost; and one that listens."""

from __future__ import annotations

import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final, TypeAlias

import psycopg

from atlas.core.log.engine import Durability
from atlas.core.log.postgres.place import Place
from atlas.core.log.postgres.statements import NEWEST, Statements
from atlas.errors import LogClosedError, LogUnavailableError

__all__ = ["Connection", "Connections", "CutOffError", "Listener", "RefusedError", "Row"]

# What the statement selects: psycopg cannot know the types.
Row: TypeAlias = tuple[Any, ...]
Connection: TypeAlias = psycopg.Connection[Row]

_MOST_CONNECTIONS: Final = 16
_IDLE_CONNECTIONS: Final = 8
_RECONNECT_S: Final = 0.5

# A writer that stands still must not keep the log's lock for ever. A server that waits for more than
# its own disk goes on to.
_POWER: Final = """
SET idle_in_transaction_session_timeout = '60s';
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off'
"""
_PROCESS: Final = """
SET idle_in_transaction_session_timeout = '60s';
SET synchronous_commit = 'off'
"""


class CutOffError(LogUnavailableError):
    """A connection used before had been lost meanwhile; a new one may work."""


class RefusedError(LogUnavailableError):
    """The server refused a statement, and goes on to take others."""


class Connections:
    """Lends connections and keeps some for the next to come. Any thread may call any method."""

    def __init__(self, place: Place, durability: Durability) -> None:
        self._place = place
        self._settings = _POWER if durability == "power" else _PROCESS
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._idle: list[Connection] = []
        self._closed = False

    def connect(self) -> Connection:
        """Return a new connection, which commits every statement by itself.

        Raises:
            LogUnavailableError: There is none to be had.
        """
        try:
            connection: Connection = psycopg.connect(**self._place.parameters, autocommit=True)
        except psycopg.Error as error:
            raise self._unavailable(error) from error
        try:
            connection.execute(self._settings)
        except BaseException as error:
            connection.close()
            if not isinstance(error, psycopg.Error):
                raise
            raise self._unavailable(error) from error
        return connection

    @contextmanager
    def lend(self, *, new: bool = False) -> Iterator[Connection]:
        """Lend a connection; a transaction that is open at an error is rolled back.

        Waits while many are lent already: a server has few for all its clients. Whoever has one must
        not ask for another.

        Raises:
            LogClosedError: The log is closed.
            LogUnavailableError: The server cannot be reached, or refused.
        """
        with self._room:
            connection, fresh = self._take(new=new)
            try:
                yield connection
            except BaseException as error:
                self._put_right(connection)
                if not isinstance(error, psycopg.Error):
                    raise
                lost = LogUnavailableError if fresh else CutOffError
                kind = lost if connection.closed else RefusedError
                raise self._unavailable(error, kind) from error
            self._give_back(connection)

    def _take(self, *, new: bool) -> tuple[Connection, bool]:
        with self._lock:
            if self._closed:
                raise LogClosedError(f"The log {self._place.address} is closed; open it again.")
            if self._idle and not new:
                return self._idle.pop(), False
        return self.connect(), True

    def _put_right(self, connection: Connection) -> None:
        with suppress(psycopg.Error):
            connection.rollback()
        if not connection.closed:
            self._give_back(connection)
            return
        # The others have most likely been lost with it.
        with self._lock:
            lost, self._idle = self._idle, []
        for other in lost:
            other.close()

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            keep = not self._closed and len(self._idle) < _IDLE_CONNECTIONS
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def _unavailable(
        self, error: psycopg.Error, kind: type[LogUnavailableError] = LogUnavailableError
    ) -> LogUnavailableError:
        said = " ".join(str(error).split()).rstrip(".?")
        password = self._place.parameters.get("password")
        if password:
            said = said.replace(password, "***")
        return kind(f"The log {self._place.address} cannot be used at the moment: {said}.")

    def disown(self) -> None:
        """Lend none any more, and close none: after a fork, they are the parent's."""
        self._lock = threading.Lock()  # a thread that is not here may have held it
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._closed = True

    def close(self) -> None:
        """Close the connections kept; those lent are closed when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class Listener:
    """Knows the last position, by a thread that listens to the server from the first wait on."""

    def __init__(
        self,
        place: Place,
        connections: Connections,
        statements: Statements,
        ask: Callable[[], int],
    ) -> None:
        self._ask = ask
        self._name = f"atlas-log-{place.address}"
        self._connections = connections
        self._sql = statements
        self._news = threading.Condition()
        self._last = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._waker, self._woken = socket.socketpair()

    def heard(self, position: int) -> None:
        """Take note that there are records up to this position."""
        with self._news:
            if position > self._last:
                self._last = position
                self._news.notify_all()

    def wait_beyond(self, position: int, timeout: float | None) -> bool:
        """Block until there is a record after a position; False: time is up, or it was closed."""
        with self._news:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._listen, name=self._name, daemon=True)
                self._thread.start()
            self._news.wait_for(lambda: self._closing.is_set() or self._last > position, timeout)
        if self._last <= position and not self._closing.is_set():
            # Word may be on its way yet, or the thread without a connection.
            with suppress(LogUnavailableError, LogClosedError):
                self.heard(self._ask())
        return not self._closing.is_set() and self._last > position

    def disown(self) -> None:
        """Tell nobody anything any more: after a fork, who listens is not here."""
        self._news = threading.Condition()
        self._closing = threading.Event()
        self._closing.set()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                with closing(self._connections.connect()) as connection:
                    self._follow(connection)
            except (LogUnavailableError, psycopg.Error):
                self._closing.wait(_RECONNECT_S)

    def _follow(self, connection: Connection) -> None:
        connection.execute(self._sql("LISTEN {channel}"))
        # Asked after that: what is appended from now on is told.
        ((position,),) = connection.execute(self._sql(NEWEST))
        self.heard(position)
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing.is_set():
                # Before the wait: some may have come with the answer above.
                for notice in connection.notifies(timeout=0):
                    self.heard(int(notice.payload))
                selector.select()

    def close(self) -> None:
        """Wake who waits and end the thread. Idempotent."""
        with self._news:
            if self._closing.is_set():
                return
            self._closing.set()
            self._news.notify_all()
        self._waker.send(b".")
        # When Python is ending, the thread never runs again: a log that nobody closed is closed by
        # the garbage collector then.
        if self._thread is not None and not sys.is_finalizing():
            self._thread.join()
        self._waker.close()
        self._woken.close()
