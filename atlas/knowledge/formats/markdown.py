"""Markdown: the text as it is, with its headings and the facts of its front matter."""

from __future__ import annotations

import re
from itertools import accumulate, pairwise

from atlas.errors import MissingDependencyError
from atlas.knowledge.documents import Document, Field, Heading
from atlas.knowledge.formats.plain import decoded

try:
    from markdown_it import MarkdownIt
except ImportError as error:
    raise MissingDependencyError(
        "Reading Markdown needs the package markdown-it-py; "
        "install it with `pip install 'atlas[knowledge]'`.",
        extra="knowledge",
    ) from error

__all__ = ["read_markdown"]

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_FACT = re.compile(r"^([A-Za-z]\w*)\s*:\s*(.+?)\s*$", re.MULTILINE)
_PARSER = MarkdownIt("commonmark")


def read_markdown(source: str, content: bytes) -> Document:
    """Return a Markdown file as a document; its spans are those of the file."""
    text = decoded(content)
    front = _FRONT.match(text)
    facts = _facts(front[1]) if front else {}
    # Blank lines in its place keep every line number.
    body = text if front is None else "\n" * text[: front.end()].count("\n") + text[front.end() :]
    headings = _headings(body, text)
    title = str(facts.pop("title", "")) or next((h.title for h in headings if h.level == 1), "")
    return Document(
        source=source,
        text=text,
        title=title,
        headings=headings,
        metadata={"format": "markdown", **facts},
    )


def _headings(body: str, text: str) -> list[Heading]:
    starts = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]
    tokens = _PARSER.parse(body)
    return [
        Heading(starts[opening.map[0]], int(opening.tag[1:]), _plain(inline.content))
        for opening, inline in pairwise(tokens)
        if opening.type == "heading_open" and opening.map is not None and opening.level == 0
    ]


def _plain(title: str) -> str:
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title).strip()


def _facts(front: str) -> dict[str, Field]:
    return {name.lower(): value.strip("\"'") for name, value in _FACT.findall(front)}
