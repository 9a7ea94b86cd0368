"""DOCX: the paragraphs and tables of a document, in their order."""

from __future__ import annotations

import io
import re
import zipfile

from atlas.errors import MissingDependencyError
from atlas.knowledge.documents import Document, Field, Heading

try:
    import docx
    from docx.opc.exceptions import OpcError
    from docx.table import Table
except ImportError as error:
    raise MissingDependencyError(
        "Reading DOCX needs the package python-docx; "
        "install it with `pip install 'atlas[knowledge]'`.",
        extra="knowledge",
    ) from error

__all__ = ["read_docx"]


def read_docx(source: str, content: bytes) -> Document:
    """Return a DOCX file as a document.

    Raises:
        ValueError: It is damaged.
    """
    try:
        file = docx.Document(io.BytesIO(content))
    except (OpcError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"it is a damaged DOCX ({error})") from error
    headings: list[Heading] = []
    parts: list[str] = []
    length = 0
    title = file.core_properties.title or ""
    for block in file.iter_inner_content():
        if isinstance(block, Table):
            rows = (" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows)
            text = "\n".join(rows)
        else:
            text = block.text.strip()
            style = (block.style.name if block.style is not None else None) or ""
            level = re.fullmatch(r"Heading (\d)", style)
            if text and (level or style == "Title"):
                headings.append(Heading(length, int(level[1]) if level else 1, text))
        if text:
            parts.append(text)
            length += len(text) + 2
    return Document(
        source=source,
        text="\n\n".join(parts),
        title=title,
        headings=headings,
        metadata={"format": "docx", **_facts(file.core_properties.author, file)},
    )


def _facts(author: str | None, file: docx.document.Document) -> dict[str, Field]:
    facts: dict[str, Field] = {}
    if author:
        facts["author"] = author
    created = file.core_properties.created
    if created is not None:
        facts["date"] = created.date().isoformat()
    language = file.core_properties.language
    if language:
        facts["language"] = language
    return facts
