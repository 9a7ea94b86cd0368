"""`LogController`: who opens logs, shares them and closes them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from types import TracebackType
from typing import Final, Self

from atlas.core.log.addresses import MEMORY, is_postgresql, path_of, without_password
from atlas.core.log.engine import Durability, Engine
from atlas.core.log.memory import MemoryEngine
from atlas.core.log.sqlite import SqliteEngine
from atlas.errors import CloseFailedError, ConfigurationError, MissingDependencyError
from atlas.typing import Clock

__all__ = ["LOGS", "LogController"]

_log = logging.getLogger("atlas.log")


_CONTROLLERS: Final[weakref.WeakSet[LogController]] = weakref.WeakSet()


@dataclass(slots=True)
class _Lease:
    engine: Engine
    options: dict[str, object]
    users: int = 1


class LogController:
    """Opens logs by address, one engine for each address, and closes it after its last user.

    Safe for threads. Use `LOGS` to share with everything else in the process. A process that is forked
    from this one opens logs of its own: those open here are closed there, and stay open here.

    Example:
        with LogController() as logs:
            log = logs.open_log("runs.db")
    """

    def __init__(self) -> None:
        # Reentrant: wherever a thread is, the garbage collector may close an application that nobody
        # closed, and with it its log.
        self._lock = threading.RLock()
        self._is_busy = False
        self._left: list[Engine] = []
        self._leases: dict[str, _Lease] = {}
        self._unnamed = 0
        self._of_parent: list[Engine] = []
        _CONTROLLERS.add(self)

    def open_log(
        self,
        address: str | PathLike[str],
        *,
        durability: Durability | None = None,
        clock: Clock | None = None,
        read_only: bool | None = None,
    ) -> Engine:
        """Return the engine of a log; the same for everybody who asks for this address.

        Args:
            address: A path, ``sqlite:///runs.db``, ``:memory:`` (a new one each time) or
                ``postgresql://user@host/database``.
            durability: What an acknowledged append survives; None: a power cut, or what the first
                who opened it said.
            clock: Where the log takes its time from; None as for ``durability``.
            read_only: Never write, and make no log; not for ``:memory:``. None as for ``durability``.

        Raises:
            ConfigurationError: The address makes no sense, or the log is open with other options.
            MissingDependencyError: The package for such a log is not installed.
            LogError: It cannot be opened.
        """
        if clock is not None and not hasattr(clock, "time_ns"):
            raise ConfigurationError(
                f"clock is {clock!r}; give an object with `time_ns`, such as SystemClock()."
            )
        options: dict[str, object] = {}
        if durability is not None:
            options["durability"] = durability
        if clock is not None:
            options["clock"] = clock
        if read_only is not None:
            options["read_only"] = read_only
        with self._alone():
            key = self._key(address)
            lease = self._leases.get(key)
            if lease is None:
                lease = _Lease(
                    _create(address, durability, clock, read_only=bool(read_only)), options
                )
                self._leases[key] = lease
                return lease.engine
            _check_same(lease, options)
            lease.users += 1
            return lease.engine

    def close_log(self, engine: Engine) -> None:
        """Let go of an engine; the last one to do so closes it, and gets what that raises.

        Raises:
            ConfigurationError: It was not opened here, or is closed already.
        """
        if any(engine is each for each in self._of_parent):
            return
        with self._lock:
            if self._is_busy:  # in this very thread: see above
                self._left.append(engine)
                return
        with self._alone():
            key = next((k for k, lease in self._leases.items() if lease.engine is engine), None)
            if key is None:
                raise ConfigurationError(
                    f"The log {engine.address} was not opened by this controller, or was closed "
                    f"already. Close it once for each time you opened it."
                )
            lease = self._leases[key]
            lease.users -= 1
            if lease.users:
                return
            del self._leases[key]
        engine.close()

    def close(self) -> None:
        """Close every log that is open still, the one opened last first. Idempotent.

        Raises:
            CloseFailedError: Some could not store everything; the others are closed.
        """
        with self._alone():
            leases = list(self._leases.values())
            self._leases.clear()
        errors: list[Exception] = []
        for lease in reversed(leases):
            try:
                lease.engine.close()
            # Whatever one of them raises, the others are closed.
            except Exception as error:  # noqa: BLE001
                errors.append(error)
        if errors:
            raise CloseFailedError(
                f"Closing {len(errors)} of {len(leases)} logs failed; the first says: {errors[0]}",
                errors=errors,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def forked(self) -> None:
        """Leave the open logs to the process that this one was just forked from.

        Their connections must neither be used here nor closed, not even by the garbage collector.
        """
        self._lock = threading.RLock()  # another thread, which is not here, may have held it
        self._is_busy = False
        for key, lease in list(self._leases.items()):
            if not isinstance(lease.engine, MemoryEngine):  # of which this process has a copy
                lease.engine.disown()
                self._of_parent.append(lease.engine)
                del self._leases[key]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nobody else in; then close what the garbage collector let go of meanwhile."""
        with self._lock:
            self._is_busy = True
            try:
                yield
            finally:
                self._is_busy = False
                left, self._left = self._left, []
        for engine in left:
            try:
                self.close_log(engine)
            except Exception:  # noqa: BLE001  whoever is here has nothing to do with it
                _log.exception("A log that nobody closed could not be closed: %s", engine.address)

    def _key(self, address: str | PathLike[str]) -> str:
        if fspath(address) == MEMORY:
            self._unnamed += 1
            return f"{MEMORY} {self._unnamed}"
        if is_postgresql(address):
            return fspath(address)
        return str(path_of(address).resolve())


def _after_fork() -> None:
    for controller in list(_CONTROLLERS):
        controller.forked()


LOGS: Final = LogController()
"""The logs of this process."""

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _create(
    address: str | PathLike[str],
    durability: Durability | None,
    clock: Clock | None,
    *,
    read_only: bool,
) -> Engine:
    if fspath(address) == MEMORY:
        return MemoryEngine(clock=clock)
    if not is_postgresql(address):
        return SqliteEngine(
            path_of(address), durability=durability or "power", clock=clock, read_only=read_only
        )
    try:
        from atlas.core.log.postgres import PostgresEngine  # noqa: PLC0415 - an optional package
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"The log {without_password(fspath(address))!r} needs a package that is not installed "
            f"({error}). Run: pip install 'atlas[postgres]'",
            extra="postgres",
        ) from error
    return PostgresEngine(
        fspath(address), durability=durability or "power", clock=clock, read_only=read_only
    )


def _check_same(lease: _Lease, options: dict[str, object]) -> None:
    for option, value in options.items():
        if option in lease.options and lease.options[option] != value:
            raise ConfigurationError(
                f"The log {lease.engine.address} is open with {option}={lease.options[option]!r}; "
                f"it cannot be {value!r} as well. Leave the option away, or close the log first."
            )
