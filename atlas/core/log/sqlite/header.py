"""The first hundred bytes of a log's file: what they must be, and how they are made again.

SQLite reads nothing of a file whose header is damaged. What it holds is known without it, though: it
is the same for every log, but for the size, and for counters that nobody needs who only reads. See
"The Database Header" in SQLite's description of its file format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = [
    "APPLICATION_ID",
    "FORMAT",
    "HEADER_SIZE",
    "PAGE_SIZE",
    "is_sound",
    "restore",
    "told_size",
]

APPLICATION_ID: Final = 0x41744C67  # "AtLg"
FORMAT: Final = 1
HEADER_SIZE: Final = 100
PAGE_SIZE: Final = 4096

_MODEL: Final = b"".join(
    (
        b"SQLite format 3\0",
        PAGE_SIZE.to_bytes(2, "big"),
        b"\2\2",  # the journal is a WAL
        b"\0\x40\x20\x20",  # no bytes reserved in a page; what of one a value may take
        bytes(4),  # how often it was changed, which must be as below
        bytes(4),  # pages
        bytes(8),  # free pages
        bytes(4),  # how often the schema was changed
        (4).to_bytes(4, "big"),  # format of the schema
        bytes(8),
        (1).to_bytes(4, "big"),  # UTF-8
        FORMAT.to_bytes(4, "big"),
        bytes(4),
        APPLICATION_ID.to_bytes(4, "big"),
        bytes(20),
        bytes(4),  # how often it was changed
        (3_040_000).to_bytes(4, "big"),  # a version of SQLite
    )
)
assert len(_MODEL) == HEADER_SIZE

# What all logs have the same, also one that somebody has vacuumed.
_FIXED: Final = (slice(0, 16), slice(20, 24), slice(44, 48), slice(56, 64), slice(68, 92))
_MODES: Final = (b"\1\1", b"\2\2")


def is_sound(header: bytes) -> bool:
    """Whether the first bytes of a file are as those of a log."""
    return (
        len(header) == HEADER_SIZE
        and header[18:20] in _MODES
        and all(header[field] == _MODEL[field] for field in _FIXED)
    )


def told_size(header: bytes) -> int:
    """Return how many bytes the file should have."""
    page = int.from_bytes(header[16:18], "big")
    return int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)


def restore(path: Path) -> None:
    """Give a file the header of a log of its size; good for reading only, as free pages are lost to it."""
    pages = -(-path.stat().st_size // PAGE_SIZE)
    header = bytearray(_MODEL)
    header[28:32] = pages.to_bytes(4, "big")
    with path.open("r+b") as file:
        file.write(header)
    # What is missing of the last page reads as zeros.
    os.truncate(path, pages * PAGE_SIZE)
