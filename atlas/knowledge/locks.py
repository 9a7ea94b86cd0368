"""A lock on a folder that one process holds at a time, and that its death lets go."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

from atlas.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows: an open file that another process may not open is a lock too
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock"]

_BETWEEN_TRIES = 0.05


class FolderLock:
    """The right to write into a folder.

    Args:
        folder: The folder; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "writer.lock"
        self._file: IO[str] | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def try_acquire(self) -> bool:
        """Take the lock when it is free; return whether it is held now."""
        if self._file is not None:
            return True
        file = self._path.open("a+", encoding="utf-8")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return True

    def acquire(self, timeout: float) -> None:
        """Take the lock, waiting for another process that holds it.

        Args:
            timeout: Seconds to wait.

        Raises:
            StoreError: Another process still holds it.
        """
        end = time.monotonic() + timeout
        while not self.try_acquire():
            if time.monotonic() >= end:
                raise StoreError(
                    f"The knowledge base {str(self._path.parent)!r} is being written by process "
                    f"{self._holder()}. Try again when it has finished; searching is possible."
                )
            time.sleep(_BETWEEN_TRIES)

    def release(self) -> None:
        """Let go. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _holder(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8").strip() or "?"
        except OSError:
            return "?"
