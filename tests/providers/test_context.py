"""Packing passages for a model: numbered, within the budget, and each number resolved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.errors import ConfigurationError
from atlas.providers.context import ContextPassage, estimated_tokens, pack_context


def passage(text: str, start: int = 0, source: str = "a.md") -> ContextPassage:
    return ContextPassage(
        text=text,
        citation=f"{source}#L1",
        title=source,
        source=source,
        start=start,
        end=start + len(text),
    )


@given(
    lengths=st.lists(st.integers(1, 400), max_size=12),
    budget=st.integers(1, 1_000),
)
def test_the_text_never_exceeds_the_budget(lengths: list[int], budget: int) -> None:
    passages = [
        passage("x" * length, source=f"{number}.md") for number, length in enumerate(lengths)
    ]

    packed = pack_context(passages, budget)

    assert packed.tokens <= budget
    assert len(packed.passages) + packed.left_out == len(passages)
    for number, taken in enumerate(packed.passages, 1):
        assert f"[{number}] {taken.title}\n" in packed.text


def test_one_that_does_not_fit_is_left_out_and_the_next_tried() -> None:
    packed = pack_context(
        [passage("short", source="a"), passage("y" * 900, source="b"), passage("z", source="c")],
        120,
    )

    assert [each.source for each in packed.passages] == ["a", "c"]
    assert packed.left_out == 1


def test_a_passage_within_another_adds_nothing() -> None:
    packed = pack_context([passage("one two three"), passage("two", start=4)], 500)

    assert len(packed.passages) == 1


def test_the_first_is_shortened_when_it_does_not_fit() -> None:
    packed = pack_context([passage("word " * 500)], 150)

    assert packed.text.endswith(" …")
    assert 100 < packed.tokens <= 150


def test_numbers_in_an_answer_are_resolved() -> None:
    packed = pack_context([passage("a", source="a"), passage("b", source="b")], 500)

    assert {
        n: p.source for n, p in packed.cited("So [2], and [1, 2]. Not [9], nor [x].").items()
    } == {1: "a", 2: "b"}


def test_nothing_is_packed_from_nothing() -> None:
    assert pack_context([], 100).text == ""
    assert pack_context([passage("x")], 1).text == ""
    with pytest.raises(ConfigurationError, match="budget is 0"):
        pack_context([], 0)
    assert estimated_tokens("日本語") >= 3
