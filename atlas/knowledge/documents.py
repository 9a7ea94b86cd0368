"""What a knowledge base is made of: documents with their headings, and the chunks they are cut into."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from atlas.errors import ValidationError

__all__ = ["Chunk", "Document", "Field", "Heading", "Kind", "heading_path"]

Field: TypeAlias = str | int | float | bool
"""What a field of a document's metadata may hold, so that every store can keep and filter it."""

Kind: TypeAlias = Literal["prose", "code", "table"]
"""How a text is built, which decides where it may be cut."""


# What the log has no form for.
_UNFIT: Final = re.compile("[\\0\\ud800-\\udfff]")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a document.

    Attributes:
        offset: Where its line begins in the document's text, in characters.
        level: 1 for the topmost; a heading ends the sections of its level and deeper ones.
        title: Its words.
    """

    offset: int
    level: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text as it was read from a source, cleaned, with what is known about it.

    Attributes:
        source: What it is known by: a path, a URL or any name. Reading the same source again gives
            another version of the same document.
        text: The cleaned text; all spans refer to it.
        title: What it is about; "" when nothing says so.
        headings: Its headings, in the order of the text.
        kind: How the text is built.
        metadata: Facts to filter by, such as ``author``, ``language``, ``format``, ``modified``.

    Raises:
        ValidationError: A name or a text is none, or a fact cannot be filtered by.
    """

    source: str
    text: str
    title: str = ""
    headings: Sequence[Heading] = ()
    kind: Kind = "prose"
    metadata: Mapping[str, Field] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_name(self.source):
            rule = "a text that is not empty, without NUL and lone surrogates"
            raise ValidationError("Document", "source", self.source, rule)
        for name in ("text", "title"):
            if not isinstance(value := getattr(self, name), str):
                raise ValidationError("Document", name, value, "a text")
        for name, value in self.metadata.items():
            if not _is_fact(value):
                rule = "a text, a finite number, True or False"
                raise ValidationError("Document", f"metadata.{name}", value, rule)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not _UNFIT.search(value)


def _is_fact(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document.

    Attributes:
        start: Its first character in the document's text.
        end: The character after its last one: ``document.text[start:end]`` is the passage.
        tokens: How long it is, in tokens of the embedding model.
        headings: The headings it stands under, outermost first.
    """

    start: int
    end: int
    tokens: int
    headings: tuple[str, ...] = ()


def heading_path(headings: Sequence[Heading], offset: int) -> tuple[str, ...]:
    """Return the titles of the headings that a place in a text stands under, outermost first."""
    path: list[Heading] = []
    for heading in headings:
        if heading.offset > offset:
            break
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
    return tuple(heading.title for heading in path)
