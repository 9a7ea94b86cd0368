"""Source code: the text as it is, with its definitions as headings."""

from __future__ import annotations

import re
from pathlib import PurePath

from atlas.knowledge.documents import Document, Heading
from atlas.knowledge.formats.plain import decoded

__all__ = ["read_code"]

_DEFINITION = re.compile(
    r"^(?P<indent>[ \t]*)(?:(?:export|default|pub(?:\([^)]*\))?|public|private|protected|static|"
    r"async|abstract|final|unsafe|const)\s+)*"
    r"(?P<word>class|def|func|function|fn|struct|enum|interface|trait|impl|module|sub)\s+"
    r"(?P<name>[A-Za-z_$][\w$]*(?:(?:\.|::)[\w$]+)*)",
    re.MULTILINE,
)


def read_code(source: str, content: bytes) -> Document:
    """Return a file of source code as a document; its spans are those of the file."""
    text = decoded(content)
    headings = [
        Heading(match.start(), _level(match["indent"]), f"{match['word']} {match['name']}")
        for match in _DEFINITION.finditer(text)
    ]
    path = PurePath(source)
    return Document(
        source=source,
        text=text,
        title=path.name,
        headings=headings,
        kind="code",
        metadata={"format": "code", "language": path.suffix.removeprefix(".")},
    )


def _level(indent: str) -> int:
    return 1 + len(indent.expandtabs(4)) // 4
