"""Chunking: exact spans that lose nothing, pieces that fit, cuts at the coarsest places."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.errors import ConfigurationError
from atlas.knowledge import (
    CodeChunker,
    Document,
    FixedChunker,
    Heading,
    SemanticChunker,
    SentenceChunker,
    StructureChunker,
)
from atlas.knowledge.embedding import word_starts

from support.knowledge import bag_of_words

CHUNKERS = [
    StructureChunker(size=12),
    StructureChunker(size=12, overlap=4),
    CodeChunker(size=12),
    SentenceChunker(size=12),
    SentenceChunker(size=12, overlap=4),
    FixedChunker(size=12),
    FixedChunker(size=12, overlap=4),
    SemanticChunker(bag_of_words, size=12),
]
PIECES = [
    "one two three. ",
    "\n\n",
    "\n",
    "# Title\n",
    "def f():\n    return 1\n",
    "wörd ",
    "字。",
    "\t",
    "\r\n",
    "👩‍👩‍👧‍👦 ",
    "e\u0301",
    "\u202eשלום\u202c ",
    "مرحبا. ",
    "\u2028",
    "\ud800",
    "x" * 40,
]
texts = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@pytest.mark.parametrize("chunker", CHUNKERS, ids=lambda each: each.name)
@given(text=texts, places=st.lists(st.integers(0, 200), max_size=5))
def test_spans_hold_everything_but_white_space(chunker, text: str, places: list[int]) -> None:
    headings = [
        Heading(each, 1 + each % 3, f"h{each}") for each in sorted(set(places)) if each < len(text)
    ]
    document = Document(source="x", text=text, headings=headings)

    chunks = chunker.chunk(document, word_starts)

    covered = set()
    for chunk in chunks:
        assert 0 <= chunk.start < chunk.end <= len(text)
        assert text[chunk.start : chunk.end] == text[chunk.start : chunk.end].strip()
        covered |= set(range(chunk.start, chunk.end))
    lost = [text[place] for place in range(len(text)) if place not in covered]
    assert "".join(lost).strip() == ""
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)


def test_a_heading_within_a_long_word_loses_nothing_of_it() -> None:
    text = "Title\n" + "x" * 100
    document = Document(source="x", text=text, headings=[Heading(7, 1, "h")])

    chunks = StructureChunker(size=8).chunk(document, word_starts)

    assert sum(text[each.start : each.end].count("x") for each in chunks) == 100


@pytest.mark.parametrize("chunker", CHUNKERS, ids=lambda each: each.name)
@given(text=texts)
def test_no_chunk_is_longer_than_it_may_be(chunker, text: str) -> None:
    chunks = chunker.chunk(Document(source="x", text=text), word_starts)

    assert all(chunk.tokens <= chunker.size for chunk in chunks)


@pytest.mark.parametrize("chunker", CHUNKERS, ids=lambda each: each.name)
@pytest.mark.parametrize("piece", ["x", "word ", "字", "\n", "a.b", "( "])
def test_a_text_of_one_line_or_of_one_sign_is_cut_too(chunker, piece: str) -> None:
    text = piece * 20_000

    chunks = chunker.chunk(Document(source="x", text=text), word_starts)

    assert sum(chunk.end - chunk.start for chunk in chunks) >= len("".join(text.split())) * 0.9
    assert all(chunk.tokens <= chunker.size for chunk in chunks)


def test_what_a_model_takes_for_one_word_is_cut_as_well() -> None:
    text = "A picture: " + "QUJD" * 10_000

    def words(text: str) -> np.ndarray:
        return np.array([match.start() for match in re.finditer(r"\S+", text)])

    chunks = StructureChunker(50).chunk(Document(source="x", text=text), words)

    assert len(chunks) > 40
    assert max(chunk.end - chunk.start for chunk in chunks) <= 50 * 16


def test_a_text_is_cut_at_its_headings_first() -> None:
    text = "A\n" + "one two three four. " * 2 + "\n\nB\n" + "five six seven eight. " * 2
    document = Document(
        source="x", text=text, headings=[Heading(0, 1, "A"), Heading(text.index("B"), 1, "B")]
    )

    chunks = StructureChunker(size=14).chunk(document, word_starts)

    assert [chunk.headings for chunk in chunks] == [("A",), ("B",)]
    assert text[chunks[1].start] == "B"


def test_a_chunk_knows_the_headings_it_stands_under() -> None:
    text = "# One\n\n## Two\n\nwords here\n\n# Three\n\nmore words"
    headings = [
        Heading(0, 1, "One"),
        Heading(text.index("## Two"), 2, "Two"),
        Heading(text.index("# Three"), 1, "Three"),
    ]

    chunks = FixedChunker(size=8).chunk(
        Document(source="x", text=text, headings=headings), word_starts
    )

    assert chunks[0].headings == ("One",)
    assert chunks[-1].headings == ("Three",)


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    text = " ".join(f"w{number}." for number in range(40))

    chunks = SentenceChunker(size=12, overlap=4).chunk(Document(source="x", text=text), word_starts)

    assert all(after.start < before.end for before, after in pairwise(chunks))


def test_code_is_cut_before_definitions() -> None:
    text = (
        "import os\n\ndef first():\n    return os.getcwd()\n\ndef second():\n    return os.name\n"
    )

    chunks = CodeChunker(size=14).chunk(
        Document(source="x.py", text=text, kind="code"), word_starts
    )

    assert text[chunks[-1].start :].startswith("def second")


def test_meaning_decides_where_sentences_part() -> None:
    cats = "Cats purr. Cats purr softly. Cats purr loudly. "
    ships = "Ships sail. Ships sail far. Ships sail home."
    document = Document(source="x", text=cats + ships)

    chunks = SemanticChunker(bag_of_words, drop=0.2, size=40).chunk(document, word_starts)

    assert [document.text[c.start : c.end] for c in chunks] == [cats.strip(), ships]


def test_a_text_without_words_has_no_chunks() -> None:
    assert StructureChunker().chunk(Document(source="x", text=" \n\n\t"), word_starts) == []


@pytest.mark.parametrize("make", [StructureChunker, FixedChunker, SentenceChunker, CodeChunker])
def test_sizes_that_make_no_sense_are_refused(make) -> None:
    with pytest.raises(ConfigurationError, match="size is 3"):
        make(size=3)
    with pytest.raises(ConfigurationError, match="overlap is 20"):
        make(size=20, overlap=20)


def test_equal_settings_have_equal_names() -> None:
    assert StructureChunker(100).name == StructureChunker(100).name != StructureChunker(101).name
