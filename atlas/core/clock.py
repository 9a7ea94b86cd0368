"""The clock of the running system: where time comes from unless a test or a replay says otherwise."""

from __future__ import annotations

import time

__all__ = ["SystemClock"]


class SystemClock:
    """The operating system's clock; see `atlas.typing.Clock` for what the methods promise."""

    __slots__ = ()

    time_ns: staticmethod[[], int] = staticmethod(time.time_ns)
    monotonic: staticmethod[[], float] = staticmethod(time.monotonic)
