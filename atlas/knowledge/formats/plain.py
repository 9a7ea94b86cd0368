"""Plain text, in whatever encoding it is."""

from __future__ import annotations

import codecs

from atlas.knowledge.documents import Document

__all__ = ["decoded", "read_text"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(source: str, content: bytes) -> Document:
    """Return a text as a document."""
    return Document(source=source, text=decoded(content), metadata={"format": "text"})


def decoded(content: bytes) -> str:
    """Return the text in a file: UTF-8, what its first bytes say, or else Windows' Latin.

    Line ends become those of Unix; signs that are no text (NUL, escape codes) become spaces, so that every
    character keeps its place.

    Raises:
        ValueError: It is no text.
    """
    mark = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(mark)
    except UnicodeDecodeError:
        if b"\0" in content:
            raise ValueError("it is no text") from None
        text = content.decode("cp1252", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.translate(_BLANK) if not text.isprintable() else text


_BLANK = dict.fromkeys((*range(9), *range(11, 32), 127), " ")
