"""What a search returns: passages, where they are, and what each reader of them gets to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from atlas.knowledge.documents import Field
from atlas.knowledge.messages import FoundPassage
from atlas.knowledge.retrieval import Explanation

__all__ = ["DocumentVersion", "Hit", "time_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentVersion:
    """A version of a document in a knowledge base.

    Attributes:
        source: What the document is known by: a path, a URL, a name.
        number: Which version of it this is, from 1.
        title: What it is about; "" for a removal.
        chunks: How many passages it has.
        removed: Whether the document was taken out with this version.
        time: When it was ingested, in UTC.
        position: The version of the knowledge base that it made: search as of this one to find it.
        metadata: What it can be filtered by.
    """

    source: str
    number: int
    title: str
    chunks: int
    removed: bool
    time: datetime
    position: int
    metadata: Mapping[str, Field] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A passage that answers a question.

    Attributes:
        text: The passage: ``source_text[start:end]`` of that version of its document.
        source: What its document is known by: a path, a URL, a name.
        version: Which version of the document it is from.
        start: Where in the document's text it begins, in characters.
        end: Where it ends.
        line: The line it begins on, from 1.
        last_line: The line it ends on.
        title: What its document is about.
        headings: The headings it stands under, outermost first.
        score: How well it fits, comparable within one search only; see `explanation`.
        collection: The collection it was found in.
        metadata: That of its document.
        explanation: How the score came about.
    """

    text: str
    source: str
    version: int
    start: int
    end: int
    line: int
    last_line: int
    title: str
    headings: tuple[str, ...]
    score: float
    collection: str
    explanation: Explanation
    metadata: Mapping[str, Field] = field(default_factory=dict)

    @property
    def citation(self) -> str:
        """Where the passage is, for people and programs: ``docs/bus.md#L10-L24``."""
        place = f"L{self.line}" + (f"-L{self.last_line}" if self.last_line > self.line else "")
        return f"{self.source}#{place}"

    @property
    def heading(self) -> str:
        """The title of its document and the headings it stands under, in one line."""
        above = [self.title, *(heading for heading in self.headings if heading != self.title)]
        return " › ".join(filter(None, above))

    # -- perspectives: the same hit, as three readers need it --

    def for_model(self) -> str:
        """Return what a model is given: the title, the headings, the text, and nothing else."""
        return f"{self.heading}\n{self.text}"

    def for_user(self, width: int = 300) -> str:
        """Return what a person is shown: the title, the place, and how the passage begins.

        Args:
            width: How many characters of the passage.
        """
        begin = " ".join(self.text.split())
        shown = begin if len(begin) <= width else begin[: width - 1].rstrip() + "…"
        return f"{self.title}  {self.citation}\n{shown}"

    def for_log(self) -> FoundPassage:
        """Return what a log keeps: where the passage is and its score, not what it says."""
        return FoundPassage(self.source, self.version, self.start, self.end, round(self.score, 6))


def time_of(time_ns: int) -> datetime:
    """Return a time in ns since 1970 as an aware one in UTC."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC)
