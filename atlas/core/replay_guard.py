"""A guard around replays: code of a run that is being replayed cannot reach the world unseen.

Python reports to audit hooks what touches network, files and processes. The hook here looks whether the code
that does it belongs to a run that is replayed, and if so refuses. Reading files stays possible, for
imports need it; other code, also in the same thread, is not hindered. Reads of the clock, of chance and of the
environment raise no audit event: use `atlas.core.effects.now` and its like for those.

A hook can never be taken out again, so it is put in once per process, by the first replay.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from atlas.core.inner_loop import HERE
from atlas.errors import UndeclaredEffectError

__all__ = ["install"]

_REFUSED = frozenset(
    {
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.chmod",
        "os.chown",
        "os.kill",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "os.utime",
        "os.putenv",
        "os.unsetenv",
        "shutil.rmtree",
        "shutil.move",
        "shutil.copyfile",
        "urllib.Request",
        "ftplib.connect",
        "http.client.connect",
        "smtplib.connect",
    }
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_installed = threading.Lock()


def install() -> None:
    """Put the guard in, if it is not. Any thread."""
    if _installed.acquire(blocking=False):
        sys.addaudithook(_hook)


# Any: what the events carry is their own affair
def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        flags = args[2]
        # a number is a file that is open already; that was looked at when it was opened
        if isinstance(args[0], int) or not (isinstance(flags, int) and flags & _WRITING):
            return
    elif event not in _REFUSED:
        return
    place = HERE.get()
    if place is None or place.inner.closed or place.inner.supervisor.is_live:
        return
    subject = "" if not args else str(args[-1] if event.startswith("socket.") else args[0])
    # the bytecode of modules that are imported meanwhile
    if "__pycache__" in subject:
        return
    raise UndeclaredEffectError(
        f"While run {place.inner.name!r} was replayed, task {place.path} tried {event} "
        f"({subject or 'no details'}), which is no declared effect. Wrap it in an @effect and record anew."
    )
