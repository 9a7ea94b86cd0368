"""PDF: the text of its pages, with its outline as headings."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from typing import Any

from atlas.errors import MissingDependencyError
from atlas.knowledge.documents import Document, Field, Heading

try:
    import pypdf
except ImportError as error:
    raise MissingDependencyError(
        "Reading PDF needs the package pypdf; install it with `pip install 'atlas[knowledge]'`.",
        extra="knowledge",
    ) from error

__all__ = ["read_pdf"]

# It tells of every small fault of a file; what matters is raised.
logging.getLogger("pypdf").setLevel(logging.ERROR)


def read_pdf(source: str, content: bytes) -> Document:
    """Return a PDF as a document; each page begins on a new line.

    Raises:
        ValueError: It is damaged, or locked by a password.
    """
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("it is locked by a password")
        pages = [_cleaned(page.extract_text()) for page in reader.pages]
    except (pypdf.errors.PyPdfError, RecursionError) as error:
        raise ValueError(f"it is a damaged PDF ({error})") from error
    starts = [0]
    for page in pages:
        starts.append(starts[-1] + len(page) + 2)
    about = reader.metadata
    facts: dict[str, Field] = {"format": "pdf", "pages": len(pages)}
    if about is not None and about.author:
        facts["author"] = str(about.author)
    return Document(
        source=source,
        text="\n\n".join(pages),
        title=str(about.title) if about is not None and about.title else "",
        headings=_outline(reader, pages, starts),
        metadata=facts,
    )


def _cleaned(page: str) -> str:
    """Put words together that a line end has cut, and drop signs that are no text."""
    page = re.sub(r"(?<=[a-zäöüß])-\n(?=[a-zäöüß])", "", page.replace("\0", " "))
    return "\n".join(line.rstrip() for line in page.splitlines()).strip()


def _outline(reader: pypdf.PdfReader, pages: list[str], starts: list[int]) -> list[Heading]:
    headings: list[Heading] = []
    try:
        # Any: the outline is a list of entries and, for what is below one, of such lists.
        entries: list[tuple[int, Iterator[Any]]] = [(1, iter(reader.outline))]
        while entries:
            level, items = entries[-1]
            item = next(items, None)
            if item is None:
                entries.pop()
            elif isinstance(item, list):
                entries.append((level + 1, iter(item)))
            elif item.title and (page := reader.get_destination_page_number(item)) is not None:
                title = " ".join(str(item.title).split())
                within = max(0, pages[page].find(title))
                headings.append(Heading(starts[page] + within, level, title))
    except (pypdf.errors.PyPdfError, LookupError, AttributeError, TypeError, RecursionError):
        # An outline is a help, not the document: a damaged one is left out.
        return []
    return sorted(headings, key=lambda heading: heading.offset)
