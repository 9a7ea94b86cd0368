"""How messages are described, written, read back, and kept compatible.

marshmallow is the one description: `schema_for` derives the schema of a message class. `encode` and
`decode` write and read messages through a compiled form of it, with canonical bytes and old versions
led up to today's by an `upcaster`.
"""

from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.codec import (
    UnknownMessage,
    decode,
    decode_fields,
    dump,
    encode,
    encode_fields,
    load,
)
from atlas.core.schema.derive import MessageSchema, schema_for
from atlas.core.schema.jsonschema import json_schema
from atlas.core.schema.migrations import upcast, upcaster

__all__ = [
    "MessageSchema",
    "UnknownMessage",
    "canonical_text",
    "decode",
    "decode_fields",
    "dump",
    "encode",
    "encode_fields",
    "json_schema",
    "load",
    "schema_for",
    "upcast",
    "upcaster",
]
