"""Search by words: BM25 as it is defined, whatever the segments; kept and loaded as it was."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.knowledge.keyword import KeywordIndex, terms

WORDS = ["cat", "dog", "ship", "harbour", "sail", "mouse"]
texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), max_size=25)


def by_definition(query: str, given: list[str], alive: list[bool]) -> list[float]:
    split = [terms(text) for text in given]
    kept = [words for words, lives in zip(split, alive, strict=True) if lives]
    average = max(sum(map(len, kept)) / len(kept), 1.0) if kept else 1.0
    scores = []
    for words, lives in zip(split, alive, strict=True):
        score = 0.0
        for term in terms(query):
            frequency = sum(term in each for each in kept)
            often = words.count(term)
            if frequency and often and lives:
                weight = math.log(1 + (len(kept) - frequency + 0.5) / (frequency + 0.5))
                score += weight * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * len(words) / average))
        scores.append(score)
    return scores


@given(
    given=texts,
    cuts=st.lists(st.integers(0, 25), max_size=4),
    query=st.sampled_from(["cat", "cat dog", "sail sail ship", "nothing"]),
    data=st.data(),
)
def test_scores_are_those_of_bm25(given: list[str], cuts: list[int], query: str, data) -> None:
    alive = data.draw(st.lists(st.booleans(), min_size=len(given), max_size=len(given)))
    index = KeywordIndex()
    edges = [0, *sorted(min(cut, len(given)) for cut in cuts), len(given)]
    for begin, end in pairwise(edges):
        index = index.extended(given[begin:end])

    scores = index.scores(query, np.array(alive, bool))

    assert scores == pytest.approx(by_definition(query, given, alive), rel=1e-4)


def test_an_explanation_adds_up_to_the_score() -> None:
    index = KeywordIndex().extended(["a cat", "a dog and a cat", "ships"])
    alive = np.ones(3, bool)

    told = index.explain("cat dog", 1, alive)

    assert {each.term for each in told} == {"cat", "dog"}
    assert sum(each.score for each in told) == pytest.approx(
        float(index.scores("cat dog", alive)[1])
    )


def test_an_index_does_not_change_when_another_is_made_from_it() -> None:
    first = KeywordIndex().extended(["cat"])

    second = first.extended(["cat", "dog"])

    assert (first.size, second.size) == (1, 3)
    assert len(first.scores("cat", np.ones(1, bool))) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Running runs", ["run", "run"]),
        ("readFile", ["readfil", "read", "file"]),
        ("max_tokens=5", ["max", "token", "5"]),
        ("東京都", ["東京都", "東京", "京都"]),
        ("--all -l", ["all", "l"]),
        ("naïve", ["naïve"]),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@given(given=texts)
def test_an_index_comes_back_as_it_was_kept(tmp_path_factory, given: list[str]) -> None:
    path = tmp_path_factory.mktemp("words") / "index"
    index = KeywordIndex().extended(given[:3]).extended(given[3:])
    alive = np.ones(len(given), bool)

    index.save(path, b"mark")
    loaded = KeywordIndex.load(path)

    assert loaded is not None
    assert loaded[1] == b"mark"
    assert loaded[0].size == index.size
    for word in WORDS:
        assert loaded[0].scores(word, alive) == pytest.approx(index.scores(word, alive))


def test_a_damaged_file_is_no_index(tmp_path: Path) -> None:
    path = tmp_path / "index"
    KeywordIndex().extended(["a cat", "a dog"]).save(path, b"mark")
    whole = path.read_bytes()

    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert KeywordIndex.load(path) is None
        path.write_bytes(whole[:place])
        assert KeywordIndex.load(path) is None
