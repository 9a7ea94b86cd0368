"""How documents are written into the log: one record per version, with its text and its chunks.

A record is the whole of a version or nothing, so no crash leaves half a document. The streams::

    collection/<name>             knowledge.collection@1   model, dimension, chunker
    document/<name>/<source>      knowledge.document@1     a version of a document
                                  knowledge.removed@1      from here on it is not found

The payload of a document is a header in JSON, its digest, the keys of its chunks' vectors, and its
text; header and text are compressed each for itself. Opening a knowledge base reads headers only; a
text is unpacked when a passage is shown.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, chain, pairwise
from typing import Any, Final

from atlas.errors import LogCorruptedError
from atlas.knowledge.documents import Chunk, Document, Heading
from atlas.knowledge.store import CollectionInfo

__all__ = [
    "COLLECTION",
    "DOCUMENT",
    "REMOVED",
    "StoredDocument",
    "collection_stream",
    "digest_of",
    "document_prefix",
    "document_stream",
    "embedded_text",
    "pack_collection",
    "pack_document",
    "unpack_collection",
    "unpack_document",
    "unpack_text",
]

COLLECTION: Final = "knowledge.collection@1"
DOCUMENT: Final = "knowledge.document@1"
REMOVED: Final = "knowledge.removed@1"
_KEY: Final = 16
_DIGEST: Final = 16
# What headers say again and again, told to the compressor beforehand: it takes a third of what small
# ones need. Never change it: what was written with it can only be read with it.
_HEADER_WORDS: Final = (
    b'],"tokens":[13,23,29,50,59,62,76,98,115,121,135,147,158,163,177,188,195,203,213,223,228,230,233,'
    b'235,236,237,238,239,240","metadata":{"format":"pdf","pages":"docx","csv","json","code",'
    b'"restructured","html","language":"en","author":"","description":"","keywords":"",'
    b'"modified":"2026-"format":"markdown","language":"","title":"","kind":"code","kind":"table",'
    b'"RETURN VALUE"],"ERRORS"],"ATTRIBUTES"],"STANDARDS"],"HISTORY"],"VERSIONS"],"BUGS"],"FILES"],'
    b'"AUTHOR"],"COPYRIGHT"],"ENVIRONMENT"],"EXIT STATUS"],"OPTIONS"],"EXAMPLES"],"FLAGS"],"NOTES"],'
    b'"SEE ALSO"],"LIBRARY"],Introduction"],Installation"],Usage"],License"],Overview"],Parameters"],'
    b'Returns"],{"title":"","kind":"prose","metadata":{"format":"manual","section":"","date":"20"},'
    b'"headings":[[0,1,"NAME"],[,1,"SYNOPSIS"],[,1,"DESCRIPTION"],[,2,"'
)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A version of a document as the log holds it, without its text.

    Attributes:
        document: The document; its text is empty.
        digest: What it is compared by with a version read later.
        chunks: Its passages.
        keys: For each of them, the key of its vector.
    """

    document: Document
    digest: str
    chunks: tuple[Chunk, ...]
    keys: tuple[bytes, ...]


def collection_stream(name: str) -> str:
    """Return the stream of a collection."""
    return f"collection/{name}"


def document_prefix(collection: str) -> str:
    """Return how the streams of a collection's documents begin."""
    return f"document/{collection}/"


def document_stream(collection: str, source: str) -> str:
    """Return the stream of a document."""
    return document_prefix(collection) + source


def digest_of(document: Document, chunker: str) -> str:
    """Return what differs when a document, or the way it is cut, differs.

    When its file was touched is no difference: a fresh checkout of the same files is no work.
    """
    metadata = {name: value for name, value in document.metadata.items() if name != "modified"}
    facts = json.dumps(
        [document.title, document.kind, metadata, _headings(document), chunker], sort_keys=True
    )
    text = document.text.encode("utf-8", "surrogatepass")
    return blake2b(facts.encode() + b"\0" + text, digest_size=_DIGEST).hexdigest()


def embedded_text(document: Document, passage: str) -> str:
    """Return what the embedding model gets of a passage: the document's title stands before it."""
    return f"{document.title}\n{passage}" if document.title else passage


def pack_document(document: Document, digest: str, chunks: list[Chunk], keys: list[bytes]) -> bytes:
    """Return the payload of a document's version."""
    facts = {
        "title": document.title,
        "kind": document.kind,
        "metadata": dict(document.metadata),
        "headings": _headings(document),
        # Each place as its distance from the one before: small numbers take little room.
        "spans": _distances([place for chunk in chunks for place in (chunk.start, chunk.end)]),
        "tokens": [chunk.tokens for chunk in chunks],
    }
    header = _packed(
        json.dumps(facts, ensure_ascii=False, separators=(",", ":")), words=_HEADER_WORDS
    )
    return b"".join(
        (
            len(header).to_bytes(4, "little"),
            header,
            bytes.fromhex(digest),
            *keys,
            _packed(document.text),
        )
    )


def unpack_document(source: str, payload: bytes) -> StoredDocument:
    """Return a document's version, without its text.

    Raises:
        LogCorruptedError: The payload is none of a document.
    """
    end = 4 + int.from_bytes(payload[:4], "little")
    try:
        # Any: the header is JSON, whose form only this module knows.
        header: dict[str, Any] = json.loads(_unpacked(source, payload[4:end]))
    except ValueError as error:
        raise _corrupted(source) from error
    places = list(accumulate(header["spans"]))
    chunks = tuple(map(Chunk, places[::2], places[1::2], header["tokens"]))
    keys_at = end + _DIGEST
    document = Document(
        source=source,
        text="",
        title=header["title"],
        kind=header["kind"],
        headings=tuple(Heading(*each) for each in header["headings"]),
        metadata=header["metadata"],
    )
    return StoredDocument(
        document,
        payload[end:keys_at].hex(),
        chunks,
        tuple(payload[at : at + _KEY] for at in range(keys_at, keys_at + _KEY * len(chunks), _KEY)),
    )


def unpack_text(source: str, payload: bytes, chunks: int) -> str:
    """Return the text of a document's version.

    Args:
        source: What it is known by.
        payload: That of its record.
        chunks: How many passages it has.

    Raises:
        LogCorruptedError: The payload is none of a document.
    """
    begin = 4 + int.from_bytes(payload[:4], "little") + _DIGEST + chunks * _KEY
    return _unpacked(source, payload[begin:])


def pack_collection(collection: CollectionInfo, chunker: str) -> bytes:
    """Return the payload of a collection's record."""
    facts = {"model": collection.model, "dimension": collection.dimension, "chunker": chunker}
    return json.dumps(facts).encode()


def unpack_collection(name: str, payload: bytes) -> tuple[CollectionInfo, str]:
    """Return a collection and the name of the chunker it was made with.

    Raises:
        LogCorruptedError: The payload is none of a collection.
    """
    try:
        facts = json.loads(payload)
        return CollectionInfo(name, facts["model"], facts["dimension"]), facts["chunker"]
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupted(name) from error


def _packed(text: str, *, words: bytes = b"") -> bytes:
    packer = zlib.compressobj(9, zdict=words)
    return packer.compress(text.encode("utf-8", "surrogatepass")) + packer.flush()


def _unpacked(source: str, content: bytes) -> str:
    # The words are used only where the content says that it was packed with them.
    unpacker = zlib.decompressobj(zdict=_HEADER_WORDS)
    try:
        text = (unpacker.decompress(content) + unpacker.flush()).decode("utf-8", "surrogatepass")
    except (zlib.error, UnicodeDecodeError) as error:
        raise _corrupted(source) from error
    if not unpacker.eof:
        raise _corrupted(source)
    return text


def _distances(places: list[int]) -> list[int]:
    return [place - before for before, place in pairwise(chain((0,), places))]


def _headings(document: Document) -> list[tuple[int, int, str]]:
    return [(each.offset, each.level, each.title) for each in document.headings]


def _corrupted(what: str) -> LogCorruptedError:
    return LogCorruptedError(
        f"The record of {what!r} in the log of the knowledge base cannot be understood. Was it "
        f"written by something else than a knowledge base?",
        position=0,
    )
