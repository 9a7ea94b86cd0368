"""reStructuredText: the text as it is, with its headings and the fields at its beginning.

Headings are recognised by their underlines. A full parser would refuse the directives and roles that
every project adds to the language, and would lose the places in the text.
"""

from __future__ import annotations

import re

from atlas.knowledge.documents import Document, Field, Heading
from atlas.knowledge.formats.plain import decoded

__all__ = ["read_restructured"]

_TITLE = re.compile(
    r"^(?:(?P<over>([^\w\s])\2{2,})[ ]*\n)?(?P<title>[ ]{0,3}\S.*)\n(?P<under>([^\w\s])\5{2,})[ ]*$",
    re.MULTILINE,
)
_FIELD = re.compile(
    r"^:(author|date|version|language|copyright):\s*(.+)$", re.IGNORECASE | re.MULTILINE
)


def read_restructured(source: str, content: bytes) -> Document:
    """Return a reStructuredText file as a document; its spans are those of the file."""
    text = decoded(content)
    headings: list[Heading] = []
    styles: list[str] = []
    for match in _TITLE.finditer(text):
        title = match["title"].strip()
        if len(match["under"].strip()) < len(title) or title[:2] == "..":
            continue
        # A heading's level is the order in which its kind of lines was first used.
        style = (match["over"] or "")[:1] + match["under"][0]
        if style not in styles:
            styles.append(style)
        headings.append(Heading(match.start(), styles.index(style) + 1, title))
    fields: dict[str, Field] = {
        name.lower(): value.strip() for name, value in _FIELD.findall(text[:4_000])
    }
    return Document(
        source=source,
        text=text,
        title=headings[0].title if headings else "",
        headings=headings,
        metadata={"format": "restructuredtext", **fields},
    )
