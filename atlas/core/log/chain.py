"""The hash chain: why a change to any record of a log is noticed.

Each record carries the SHA-256 of its payload (its digest), and the SHA-256 over the link before it,
its own header and that digest (its link). To change one record unnoticed, every later link would
have to change too. The payload enters by its digest only, so that it can be erased and the chain
still verifies. There is no key in it: it finds damage and carelessness, and a forger who leaves the
last link, kept elsewhere, as it was; not one who may rewrite everything.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final

__all__ = ["GENESIS", "digest_of", "link"]

GENESIS: Final = sha256(b"atlas log, format 1").digest()
"""What stands in for the link before the first record."""

# Fixed width and the length of the first text: no two headers have the same bytes.
_HEADER: Final = struct.Struct(">qqqqI")
_pack = _HEADER.pack


def digest_of(payload: bytes) -> bytes:
    """Return the digest of a payload."""
    return sha256(payload).digest()


def link(  # noqa: PLR0917 - one call for each record; by name it costs a third more
    previous: bytes,
    digest: bytes,
    position: int,
    stream: bytes,
    version: int,
    name: bytes,
    time_ns: int,
    wall_ns: int,
) -> bytes:
    """Return the link of a record.

    Args:
        previous: The link of the record before; `GENESIS` for the first.
        digest: SHA-256 of the payload, 32 bytes.
        position: As in the record; so are the others. Integers fit into 64 bits with sign.
        stream: The text in UTF-8.
        version: Its place in the stream.
        name: The text in UTF-8.
        time_ns: When it was appended.
        wall_ns: When it happened.
    """
    header = _pack(position, version, time_ns, wall_ns, len(stream))
    return sha256(previous + header + stream + name + digest).digest()
