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

    statistics = index.statistics(np.array(alive, bool))
    rows = np.flatnonzero(statistics.alive)
    scores = index.scores(query, statistics, rows)

    expected = np.array(by_definition(query, given, alive))
    assert scores == pytest.approx(expected[rows], rel=1e-4)
    assert sorted(index.best(query, statistics, 25)) == np.flatnonzero(expected).tolist()


def test_the_best_are_those_of_looking_at_each_row() -> None:
    random = np.random.default_rng(1)
    # Rare words and common ones, as in texts: word n is in a share of 1 / (n + 2) of them.
    held = [
        [f"w{word}" for word in range(60) if random.random() < 1 / (word + 2)] * (1 + row % 3)
        for row in range(6_000)
    ]
    index = KeywordIndex().extended(" ".join(words) for words in held)
    alive = random.random(6_000) < 0.9
    few, many = alive & (random.random(6_000) < 0.05), alive & (random.random(6_000) < 0.6)
    every = index.statistics(np.ones(6_000, bool))
    some = index.statistics(alive)

    for words in ("w50 w2", "w40 w3 w4 w5 w2", "w3 w4", "w58 w59", "w2", "none"):
        for statistics, among in ((every, None), (some, None), (some, few), (some, many)):
            best = index.best(words, statistics, 50, among=among)
            rows = np.flatnonzero(statistics.alive if among is None else among)
            scores = index.scores(words, statistics, rows)
            expected = np.sort(scores[scores > 0])[-50:]

            assert set(best) <= set(rows)
            assert np.sort(index.scores(words, statistics, np.sort(best))) == pytest.approx(
                expected
            )


def test_an_explanation_adds_up_to_the_score() -> None:
    index = KeywordIndex().extended(["a cat", "a dog and a cat", "ships"])
    alive = np.ones(3, bool)

    statistics = index.statistics(alive)
    told = index.explain("cat dog", statistics, 1)

    assert {each.term for each in told} == {"cat", "dog"}
    assert sum(each.score for each in told) == pytest.approx(
        float(index.scores("cat dog", statistics, np.array([1]))[0])
    )


def test_an_index_does_not_change_when_another_is_made_from_it() -> None:
    first = KeywordIndex().extended(["cat"])

    second = first.extended(["cat", "dog"])

    assert (first.size, second.size) == (1, 3)
    assert len(first.best("cat", first.statistics(np.ones(1, bool)), 5)) == 1


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
    rows = np.arange(len(given))
    statistics = index.statistics(np.ones(len(given), bool))

    index.save(path, b"mark")
    loaded = KeywordIndex.load(path)

    assert loaded is not None
    assert loaded[1] == b"mark"
    assert loaded[0].size == index.size
    for word in WORDS:
        again = loaded[0].scores(word, loaded[0].statistics(statistics.alive), rows)
        assert again == pytest.approx(index.scores(word, statistics, rows))


def test_a_damaged_file_is_no_index(tmp_path: Path) -> None:
    path = tmp_path / "index"
    KeywordIndex().extended(["a cat", "a dog"]).save(path, b"mark")
    whole = path.read_bytes()

    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert KeywordIndex.load(path) is None
        path.write_bytes(whole[:place])
        assert KeywordIndex.load(path) is None
