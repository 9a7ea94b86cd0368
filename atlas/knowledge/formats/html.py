"""HTML: what a reader sees of a page, without menus and scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from atlas.errors import MissingDependencyError
from atlas.knowledge.documents import Document, Field, Heading

try:
    from bs4 import BeautifulSoup
    from bs4.element import (
        Comment,
        Declaration,
        Doctype,
        NavigableString,
        PageElement,
        ProcessingInstruction,
        Tag,
    )
except ImportError as error:
    raise MissingDependencyError(
        "Reading HTML needs the packages beautifulsoup4 and lxml; "
        "install them with `pip install 'atlas[knowledge]'`.",
        extra="knowledge",
    ) from error

__all__ = ["read_html"]

_UNSEEN = (
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "nav",
    "header",
    "footer",
    "form",
    "aside",
)
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "blockquote",
        "body",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figure",
        "figcaption",
        "hr",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "tbody",
        "tr",
        "ul",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "br",
    ]
)
_APART = frozenset(
    [
        "p",
        "pre",
        "section",
        "table",
        "ul",
        "ol",
        "dl",
        "blockquote",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
    ]
)
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml\b[^>]*?(?:encoding=[\"']([\w.-]+)[\"'][^>]*)?\?>")
_FACTS = {
    "author": "author",
    "article:author": "author",
    "date": "date",
    "dcterms.date": "date",
    "article:published_time": "date",
    "description": "description",
}


def read_html(source: str, content: bytes) -> Document:
    """Return a page as a document."""
    # XHTML is read as HTML too, but the parser warns of what looks like XML.
    declared = _XML.match(content)
    encoding = declared[1].decode("ascii", "replace") if declared and declared[1] else None
    if declared:
        content = content[declared.end() :]
    page = BeautifulSoup(content, "lxml", from_encoding=encoding)
    facts = _facts(page)
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for tag in page.find_all(_UNSEEN):
        # A page whose whole content is in one of them keeps it: some put the body in a form.
        if tag.name in {"script", "style", "template", "svg"} or tag.find("h1") is None:
            tag.decompose()
    text = _Text()
    text.add(_content(page))
    return Document(
        source=source,
        text=text.joined(),
        title=title,
        headings=text.headings,
        metadata={"format": "html", **facts},
    )


def _content(page: BeautifulSoup) -> Tag:
    """Return the element that holds what the page is about."""
    for name in ("main", "article", "body"):
        found = page.find(name)
        if isinstance(found, Tag) and found.get_text(strip=True):
            return found
    return page


def _facts(page: BeautifulSoup) -> dict[str, Field]:
    facts: dict[str, Field] = {}
    for tag in page.find_all("meta"):
        name = _FACTS.get(str(tag.get("name") or tag.get("property") or "").lower())
        if name and tag.get("content"):
            facts[name] = str(tag["content"]).strip()[:500]
    language = (page.html.get("lang") or page.html.get("xml:lang")) if page.html else None
    if language:
        facts["language"] = str(language)
    return facts


class _Text:
    """Text put together from the parts of a page, with one blank line between blocks at most."""

    def __init__(self) -> None:
        self.headings: list[Heading] = []
        self._parts: list[str] = []
        self._length = 0
        self._tail = "\n\n"

    def joined(self) -> str:
        return "".join(self._parts)

    def add(self, element: Tag) -> None:
        """Add what an element shows; without recursion, for pages nest as deep as they like."""
        stack: list[Iterator[PageElement]] = [iter(element.children)]
        open_tags: list[Tag] = []
        while stack:
            child = next(stack[-1], None)
            if child is None:
                stack.pop()
                if open_tags:
                    self._leave(open_tags.pop())
            elif isinstance(child, Tag):
                if re.fullmatch(r"h[1-6]", child.name):
                    self._heading(child)
                else:
                    self._enter(child)
                    stack.append(iter(child.children))
                    open_tags.append(child)
            elif isinstance(child, NavigableString):
                self._words(child, verbatim=any(tag.name == "pre" for tag in open_tags[-3:]))

    def _enter(self, tag: Tag) -> None:
        if tag.name in _BLOCKS:
            self._break(2 if tag.name in _APART else 1)
        elif tag.name in {"td", "th"} and self._tail[-1] != "\n":
            self._put(" | ")

    def _leave(self, tag: Tag) -> None:
        if tag.name in _BLOCKS:
            self._break(2 if tag.name in _APART else 1)

    def _heading(self, tag: Tag) -> None:
        title = " ".join(tag.get_text(" ").replace("¶", "").split())
        if not title:
            return
        self._break(2)
        self.headings.append(Heading(self._length, int(tag.name[1]), title))
        self._put(title)
        self._break(2)

    def _words(self, string: NavigableString, *, verbatim: bool) -> None:
        if isinstance(string, Comment | Declaration | Doctype | ProcessingInstruction):
            return
        text = str(string) if verbatim else re.sub(r"\s+", " ", string)
        if not verbatim and self._tail[-1] in " \n":
            text = text.lstrip(" ")
        if text:
            self._put(text)

    def _break(self, lines: int) -> None:
        have = len(self._tail) - len(self._tail.rstrip("\n"))
        if have < lines:
            self._put("\n" * (lines - have))

    def _put(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
        self._tail = (self._tail + text)[-2:]
