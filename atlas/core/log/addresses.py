"""What the address of a log says, and how it is shown to people: never with a password."""

from __future__ import annotations

import os
import re
from os import PathLike, fspath
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from atlas.errors import ConfigurationError

__all__ = ["MEMORY", "is_postgresql", "path_of", "without_password"]

MEMORY: Final = ":memory:"
"""The address of a log that is kept in memory only."""

_POSTGRESQL: Final = ("postgresql", "postgres")
# A drive letter of Windows is no scheme.
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_IN_AUTHORITY: Final = re.compile(r"(?<=://)([^/?#@]*?):[^/?#]*@")
_IN_QUERY: Final = re.compile(r"([?&](?:password|passfile|sslpassword)=)[^&#]*", re.IGNORECASE)


def is_postgresql(address: str | PathLike[str]) -> bool:
    """Whether an address is one of a PostgreSQL server."""
    return _scheme(fspath(address)) in _POSTGRESQL


def path_of(address: str | PathLike[str]) -> Path:
    """Return the path of a log that is a file.

    Args:
        address: A path, or ``sqlite:///relative.db``, ``sqlite:////absolute.db``.

    Raises:
        ConfigurationError: The address is of another kind.
    """
    text = fspath(address)
    scheme = _scheme(text)
    if scheme is None and text and _is_path(text):
        return Path(text)
    if scheme == "sqlite":
        parts = urlsplit(text)
        if not parts.netloc and len(parts.path) > 1 and not parts.query:
            return Path(unquote(parts.path[1:]))
    raise ConfigurationError(
        f"{without_password(text)!r} is no address of a log. Give the path of a file ('runs.db'), "
        f"'sqlite:///runs.db', '{MEMORY}' or 'postgresql://user@host/database'."
    )


def _is_path(text: str) -> bool:
    # Surrogates that stand for bytes of a path, as os.listdir gives them, are none of these.
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def without_password(address: str) -> str:
    """Return an address as it may be shown."""
    shown = _IN_AUTHORITY.sub(r"\1:***@", address)
    return _IN_QUERY.sub(r"\1***", shown)


def _scheme(text: str) -> str | None:
    found = _SCHEME.match(text)
    return found[1].lower() if found else None
